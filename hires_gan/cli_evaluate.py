"""`hires-gan evaluate`: parse, call, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hires_gan.errors import Failure, UsageError

if TYPE_CHECKING:
    from hires_gan.checkpoint import Checkpoint
    from hires_gan.evaluation.command import Report, Request
    from hires_gan.evaluation.tracked import TrackedRun


def evaluate(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, a run's folder, or models:/NAME/VERSION.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARDS", help="The real images; of a translation NAME=SHARDS, once for each domain."),
    ] = None,
    metrics: Annotated[str, typer.Option(help="Such as fid,kid,swd; docs/evaluation.md lists them.")] = "swd",
    count: Annotated[
        int | None,
        typer.Option(help="Generated images; as evaluation.count by default; 50000 for FID as papers give it."),
    ] = None,
    reals: Annotated[int | None, typer.Option(help="Real images, the first ones; by default all.", min=1)] = None,
    features: Annotated[
        str, typer.Option(help="inception, vgg16, or package.module:factory of your own.")
    ] = "inception",
    weights: Annotated[Path | None, typer.Option(help="The file of its weights; by default torch hub's cache.")] = None,
    vgg: Annotated[
        Path | None, typer.Option(help="That of VGG16, for ppl_*, content_preservation, --features vgg16.")
    ] = None,
    alexnet: Annotated[Path | None, typer.Option(help="That of AlexNet, for lpips_diversity_*.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch published weights that are not there.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Of latents and styles; by default the run's own.", min=0, max=2**32 - 1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file of the numbers, and how they were taken.")] = None,
    track: Annotated[bool, typer.Option("--track", help="Log the numbers into the checkpoint's MLflow run.")] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="With --track: log the numbers that --out wrote; measure nothing."),
    ] = None,
) -> None:
    """Measure a checkpoint: FID, KID, SWD and others; by one process, or by all that accelerate or torchrun start."""
    from hires_gan.evaluation.catalogue import parse_metrics

    names = parse_metrics(metrics)
    if out is not None and out.is_dir():
        raise UsageError(f"--out is {out}, which is a folder; name a file")
    if source is not None:
        _check_alone(context, track)
    from hires_gan.evaluation.command import Request
    from hires_gan.evaluation.instruments import Sources

    sources = Sources(features, weights, vgg, alexnet, download)
    request = Request(names, tuple(data or ()), _counted(count), reals, seed, sources)
    _together(checkpoint, request, out, track, source)


def _counted(count: int | None) -> int:
    """How many images, within the bounds that training's evaluations have.

    Raises:
        UsageError: If it is out of them.
    """
    from pydantic import ValidationError

    from hires_gan.evaluation.settings import EvaluationSettings

    try:
        return (EvaluationSettings() if count is None else EvaluationSettings(count=count)).count
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Input should", "it has to")
        raise UsageError(f"--count is {count}; {reason}") from error


def _together(checkpoint: str, request: Request, out: Path | None, track: bool, source: Path | None) -> None:
    """Measure, or read what was measured, show it and keep it: every process of the launch comes here."""
    from hires_gan.evaluation.command import agreed_checkpoint, require_all
    from hires_gan.evaluation.command import evaluate as measure
    from hires_gan.evaluation.crew import in_step
    from hires_gan.evaluation.delivery import deliver, read_report
    from hires_gan.training.launch import choose_float32, join_launch
    from hires_gan.training.settings import BackendSettings
    from hires_gan.training.world import telling_losses

    world = join_launch(BackendSettings(), trains=False)
    choose_float32("fp32", "reference")
    with telling_losses(world):
        saved = agreed_checkpoint(checkpoint, world)
        run = in_step(world, lambda: _places(saved, out, track) if world.first else None)
        if source is not None:
            report = in_step(world, lambda: read_report(source, saved))
        else:
            report = measure(saved, request, world, world.device)
        with world.together():
            if world.first:
                _show(report)
            require_all(report, deliver(report, out, run, source) if world.first else ())
        world.leave()


def _check_alone(context: typer.Context, track: bool) -> None:
    """Refuse what says how to measure beside numbers that are there.

    Raises:
        UsageError: If something is given beside `--from` and `--track`, or the latter is not.
    """
    # By its end: typer brings a click of its own, whose names are private.
    given = [one for one in context.params if str(context.get_parameter_source(one)).endswith("COMMANDLINE")]
    others = sorted(set(given) - {"checkpoint", "source", "track"})
    if others or not track:
        found = f"stands beside --{', --'.join(others)}" if others else "stands without --track"
        raise UsageError(f"--from {found}; it logs numbers that are there: give --track, and nothing else")


def _places(saved: Checkpoint, out: Path | None, track: bool) -> TrackedRun | None:
    """Where the numbers go, before hours are spent on them.

    Raises:
        UsageError: If the file cannot be written, or the checkpoint's run cannot be found.
        Failure: If the store cannot be used.
    """
    from hires_gan.evaluation.tracked import TrackedRun

    if out is not None:
        _make_folder_of(out)
    return TrackedRun(saved) if track else None


def _make_folder_of(out: Path) -> None:
    from hires_gan.inference.files import make_folder

    try:
        make_folder(out.parent)
    except Failure as problem:
        raise UsageError(f"--out is {out}: {problem}") from problem
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out is {out}, but its folder cannot be written to; name a file in another one")


def _show(report: Report) -> None:
    """A table, and below it how each number was taken."""
    from rich.console import Console
    from rich.table import Table

    from hires_gan.evaluation.command import table

    rows = table(report.result)
    if not rows:
        return
    translates = any(direction for _, direction, _, _ in rows)
    shown = Table("metric", *(["direction"] if translates else []), "value", "better")
    for metric, direction, value, better in rows:
        shown.add_row(metric, *([direction or "mean"] if translates else []), value, better)
    Console(highlight=False).print(shown)
    for record in report.result.records:
        typer.echo(record.sentence())
