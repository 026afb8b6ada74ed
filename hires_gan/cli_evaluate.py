"""`hires-gan evaluate`: parse, call, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hires_gan.errors import Failure, UsageError

if TYPE_CHECKING:
    from hires_gan.checkpoint import Checkpoint
    from hires_gan.evaluation.command import Report
    from hires_gan.evaluation.tracked import TrackedRun

_MOST = 1_000_000


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, a run's folder, or models:/NAME/VERSION.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARDS", help="The real images; of a translation NAME=SHARDS, once for each domain."),
    ] = None,
    metrics: Annotated[str, typer.Option(help="Such as fid,kid,swd; docs/evaluation.md lists them.")] = "swd",
    count: Annotated[
        int, typer.Option(help="Generated images; 50000 for FID as papers give it.", min=1, max=_MOST)
    ] = 8192,
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
) -> None:
    """Measure a checkpoint: FID, KID, SWD and others; by one process, or by all that accelerate or torchrun start."""
    from hires_gan.evaluation.catalogue import parse_metrics

    names = parse_metrics(metrics)
    if out is not None and out.is_dir():
        raise UsageError(f"--out is {out}, which is a folder; name a file")
    from hires_gan.evaluation.command import Request, agreed_checkpoint, require_all
    from hires_gan.evaluation.command import evaluate as measure
    from hires_gan.evaluation.crew import in_step
    from hires_gan.evaluation.instruments import Sources
    from hires_gan.training.launch import choose_float32, join_launch
    from hires_gan.training.settings import BackendSettings
    from hires_gan.training.world import telling_losses

    sources = Sources(features, weights, vgg, alexnet, download)
    request = Request(names, tuple(data or ()), count, reals, seed, sources)
    world = join_launch(BackendSettings(), trains=False)
    choose_float32("fp32", "reference")
    with telling_losses(world):
        saved = agreed_checkpoint(checkpoint, world)
        run = in_step(world, lambda: _places(saved, out, track) if world.first else None)
        report = measure(saved, request, world, world.device)
        with world.together():
            if world.first:
                _deliver(report, out, run)
            require_all(report)
        world.leave()


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


def _deliver(report: Report, out: Path | None, run: TrackedRun | None) -> None:
    """Show the numbers, and keep them."""
    from hires_gan.inference.files import write_whole
    from hires_gan.progress import say

    _show(report)
    if out is not None:
        write_whole(out, lambda partial: partial.write_text(report.as_json(), encoding="utf-8"))
        say(f"written to {out}")
    if run is not None and report.result.values:
        say(run.log(report.result, report.as_json()))


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
