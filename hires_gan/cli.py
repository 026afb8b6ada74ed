"""The commands: parse, call, print."""

from __future__ import annotations

import getpass
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from hires_gan import __version__, cli_bench, cli_evaluate
from hires_gan.cli_bench import Overrides, numbers
from hires_gan.errors import Elsewhere, Failure, UsageError
from hires_gan.progress import say
from hires_gan.training.ending import tell_end

STOPPED_BY_SIGNAL = 75
"""The exit code of a run that wrote a checkpoint and stopped: the same command again goes on."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train Progressive GAN, StyleGAN, StyleGAN2 and MUNIT at up to 1024x1024 on your own images.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at a configuration without running it.")
shards_app = typer.Typer(no_args_is_help=True, help="Look after a shard set.")
app.add_typer(shards_app, name="shards")
app.add_typer(config_app, name="config")
app.add_typer(cli_bench.app, name="bench")
app.command()(cli_evaluate.evaluate)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SRC ...]", help="Folders, zip or tar files, webdataset shards, NVlabs zips."),
]
Pair = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SRC", help="Pairs, in place of SRC: once for each picture, as in --pair a=SRC."),
]
CheckpointArgument = Annotated[str, typer.Argument(help="A checkpoint, a run's folder, or models:/NAME/VERSION.")]
ClassOption = Annotated[int | None, typer.Option("--class", help="The class, for a conditional generator.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")]


def main() -> None:
    """Run the command line; a failure is one sentence on standard error."""
    # Read when torch is loaded. By default, threads that wait for each other keep their core busy, and a machine that
    # does anything else, such as decoding images, computes up to twenty times slower on its CPU.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Likewise: blocks of a GPU's memory can then grow, and far less is lost between them.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    _name_user()
    _end_by_signal()
    try:
        app()
    except Failure as error:
        say(f"error: {error}")
        _end(2 if isinstance(error, UsageError) else 1, str(error))
    except Elsewhere as error:
        time.sleep(1)  # launchers kill all others at the first exit, and the one that knows why has to say it before
        _end(2 if error.usage else 1, "another process has said why")


def _name_user() -> None:
    """Libraries ask for the user's name as they load; a container may run under a number that has none."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def _end_by_signal() -> None:
    """Let SIGTERM end the first process of a container, which the kernel does for any other; training takes it over."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _end(code: int, message: str) -> NoReturn:
    tell_end(code, message)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def prepare(
    sources: Sources = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder of the shards; new, or of the same command, interrupted.")],
    resolution: Annotated[int, typer.Option(help="Side of the images: a power of two.")],
    pair: Pair = None,
    columns: Annotated[
        str, typer.Option(metavar="NAMES", help="Pairs that lie together in SRC: a,b for KEY.a.jpg and KEY.b.jpg.")
    ] = "",
    crop: Annotated[
        Literal["center", "none", "tiles"],
        typer.Option(help="The largest square in the middle; none: squares only; tiles: all crops of the target size."),
    ] = "center",
    filter: Annotated[  # noqa: A002 - it is the option's name
        Literal["lanczos", "bicubic", "bilinear", "box", "hamming"], typer.Option(help="Antialiased resize filter.")
    ] = "lanczos",
    encode: Annotated[
        Literal["auto", "jpeg", "png"],
        typer.Option(help="auto: fitting JPEG files keep their bytes, lossy ones become JPEG, lossless ones PNG."),
    ] = "auto",
    labels: Annotated[
        str, typer.Option(help="none, folders, own (of the zip or the webdataset), or a CSV file with path,label.")
    ] = "none",
    levels: Annotated[str, typer.Option(help="Smaller copies to store as well, such as 64,128.")] = "",
    shard_images: Annotated[int | None, typer.Option(help="Source images per shard.")] = None,
    processes: Annotated[int | None, typer.Option(help="By default as many as there are cores.")] = None,
    max_rejected: Annotated[float, typer.Option(help="The share of files that may be unusable.")] = 0.01,
    max_pixels: Annotated[int, typer.Option(help="Files that claim to be larger are rejected.")] = 178_956_970,
    rank: Annotated[int | None, typer.Option(help="By default as torchrun, SLURM or Kubernetes say.")] = None,
    world_size: Annotated[int | None, typer.Option(help="Likewise, or HIRES_GAN_WORLD_SIZE, or 1.")] = None,
) -> None:
    """Turn images into webdataset shards for training, on one machine or on many that share a file system."""
    from hires_gan.data.command import PrepareOptions
    from hires_gan.data.pairs import parse_pairs
    from hires_gan.data.prepare import prepare as prepare_shards
    from hires_gan.data.ranks import find_rank

    options = PrepareOptions(
        resolution=resolution,
        crop=crop,
        filter=filter,
        encode=encode,
        levels=numbers("--levels", levels),
        columns=tuple(map(str.strip, columns.split(","))) if columns else (),
        labels=labels,
        shard_images=shard_images,
        processes=processes,
        max_rejected=max_rejected,
        max_pixels=max_pixels,
    )
    if bool(sources) == bool(pair):
        raise UsageError("either SRC... or --pair NAME=SRC, twice or more, is needed: what is to be prepared")
    place = find_rank(rank, world_size, os.environ)
    if place.line:
        say(place.line)
    for line in prepare_shards(parse_pairs(pair) if pair else sources or [], out, options, place).lines():
        say(line)


@shards_app.command("check")
def shards_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shard folder.")],
    repair: Annotated[bool, typer.Option("--repair", help="Drop what is bad, and rewrite what names it.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default as many as there are cores.", min=1)
    ] = None,
    report: Annotated[Path | None, typer.Option(help="A CSV file that names every problem.")] = None,
) -> None:
    """Read every byte of a shard set, decode every image, and say what is wrong."""
    from hires_gan.data.check import check_shards
    from hires_gan.data.repair import check_and_repair

    if repair:
        well = check_and_repair(folder, workers, report, typer.echo)
    else:
        found = check_shards(folder, workers, report)
        well = found.ok
        for line in found.lines():
            typer.echo(line)
    if not well:
        raise typer.Exit(1)


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Train, from the latest checkpoint if the run has one."""
    from hires_gan.config import load_configuration, to_yaml

    configuration = load_configuration(config, overrides or [])
    from hires_gan.training.run import train as train_run

    if not train_run(configuration, to_yaml(configuration)):
        for number in (signal.SIGTERM, signal.SIGINT):  # another one does not change how this ends
            signal.signal(number, signal.SIG_IGN)
        tell_end(STOPPED_BY_SIGNAL, "stopped by a signal; the same command goes on from the latest checkpoint")
        raise typer.Exit(STOPPED_BY_SIGNAL)


@app.command()
def generate(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="The folder of the images.")],
    seeds: Annotated[str | None, typer.Option(help="0-15 or 1,5,8-10; by default 0-15.")] = None,
    styles: Annotated[
        list[Path] | None, typer.Option(help="A file that project wrote; several times if wanted.")
    ] = None,
    truncation: Annotated[float, typer.Option(help="0.7 is usual; 1 is off. Not for Progressive GAN.")] = 1.0,
    cutoff: Annotated[int | None, typer.Option(help="Truncate only the first so many layers.")] = None,
    label: ClassOption = None,
    noise: Annotated[Literal["constant", "random", "none"], typer.Option(help="The layers' noise.")] = "constant",
    mix_rows: Annotated[str | None, typer.Option(help="Make a table: seeds, or a file of styles, at its left.")] = None,
    mix_columns: Annotated[str | None, typer.Option(help="Likewise, at its top.")] = None,
    mix_layers: Annotated[
        str | None, typer.Option(help="Whose styles the columns give: coarse (the default), middle, fine, or 0-3.")
    ] = None,
    interpolate: Annotated[bool, typer.Option("--interpolate", help="Make a film through the images.")] = False,
    frames: Annotated[int | None, typer.Option(help="From one image to the next; by default 60.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames in a second; by default 30.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="From the last image on to the first.")] = False,
    space: Annotated[Literal["w", "z"] | None, typer.Option(help="Where the film leads; by default w.")] = None,
    device: DeviceOption = None,
) -> None:
    """Write one PNG per seed, and their grid; or a table of mixed styles; or a film."""
    from hires_gan.inference import request as asked

    film = asked.parse_film(interpolate, frames, fps, loop, space)
    mixing = asked.parse_mixing(mix_rows, mix_columns, mix_layers)
    given = asked.parse_given_images(seeds, styles or [])
    asked.check_purpose(mixing, film, [name for name, value in (("--seeds", seeds), ("--styles", styles)) if value])
    request = asked.Request(given, asked.Look(truncation, cutoff, label, noise), mixing, film)
    from hires_gan.inference.generate import answer

    typer.echo(answer(checkpoint, request, out, device)[-1])


@app.command()
def translate(
    checkpoint: CheckpointArgument,
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Pictures, or folders of pictures.")],
    to: Annotated[str, typer.Option(help="The domain to which they are translated.")],
    out: Annotated[Path, typer.Option(help="The folder of the images.")],
    source: Annotated[str | None, typer.Option("--from", help="Their own domain; by default the other one.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|keep", help="Of the shorter side; by default as the network was trained.")
    ] = None,
    styles: Annotated[int | None, typer.Option(help="How many are drawn at random; by default 4.")] = None,
    style: Annotated[
        list[Path] | None, typer.Option(help="Pictures of the target domain that give the styles, in place of these.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which styles are drawn; by default 0.")] = None,
    interpolate: Annotated[bool, typer.Option("--interpolate", help="Make films through the styles.")] = False,
    frames: Annotated[int | None, typer.Option(help="From one style to the next; by default 30.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames in a second; by default 30.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="From the last style on to the first.")] = False,
    tile: Annotated[
        str, typer.Option(metavar="N|auto|none", help="Compute in parts of this side; auto: large images alone.")
    ] = "auto",
    device: DeviceOption = None,
) -> None:
    """Write pictures in styles of another domain, one PNG each, and their grid; or a film through the styles."""
    from hires_gan.inference.translation.request import parse_translation

    request = parse_translation(
        to,
        source,
        size=size,
        styles=styles,
        style=style or [],
        seed=seed,
        interpolate=interpolate,
        frames=frames,
        fps=fps,
        loop=loop,
        tile=tile,
    )
    from hires_gan.inference.translate import answer

    typer.echo(answer(checkpoint, request, sources, out, device)[-1])


@app.command()
def project(
    checkpoint: CheckpointArgument,
    image: Annotated[Path, typer.Argument(help="A picture of any kind that prepare reads.")],
    out: Annotated[Path, typer.Option(help="The folder of what is found.")],
    space: Annotated[Literal["w", "w+"], typer.Option(help="One style for all layers, or one for each.")] = "w",
    steps: Annotated[int, typer.Option(help="The more, the closer.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed finds the same styles.", min=0, max=2**32 - 1)] = 0,
    distance: Annotated[
        Literal["auto", "lpips", "vgg", "pixel"], typer.Option(help="auto: the best one whose weights are at hand.")
    ] = "auto",
    weights: Annotated[Path | None, typer.Option(help="torchvision's VGG16 weights, vgg16-397923af.pth.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch them (528 MB) if they are not there.")] = False,
    label: ClassOption = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Of the highest resolutions, while styles are looked for.")
    ] = "fp32",
    device: DeviceOption = None,
) -> None:
    """Find the styles that give back a photograph."""
    if not image.is_file():
        raise UsageError(f"IMAGE is {image}, which is no file; give a picture")
    from hires_gan.inference.distances import DistanceOptions
    from hires_gan.inference.project import project as project_image
    from hires_gan.inference.projection import ProjectionSettings

    settings, options = ProjectionSettings(space, steps, seed), DistanceOptions(distance, weights, download)
    files = project_image(checkpoint, image, out, settings, options, label=label, precision=precision, device=device)
    typer.echo(files[-1])


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' folders, MLflow run ids, or runs' names in MLflow.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of comparison.html and comparison.png.")] = Path(),
    uri: Annotated[
        str | None,
        typer.Option(help="The MLflow store of ids and names; by default MLFLOW_TRACKING_URI, else that of ./runs."),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Look names up in this MLflow experiment alone.")] = None,
) -> None:
    """Lay runs side by side: settings that differ, metrics, speed, cost, curves and grids."""
    from hires_gan.evaluation.catalogue import METRICS
    from hires_gan.tracking.comparison.command import compare as compare_runs

    higher = {name for name, metric in METRICS.items() if metric.better == "higher"}
    for line in compare_runs(runs, out, uri, experiment, higher):
        typer.echo(line)


@app.command()
def export(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="The folder of the files.")],
    file_format: Annotated[
        Literal["onnx", "safetensors"], typer.Option("--format", help="safetensors is what hires_gan.load reads.")
    ],
    batch: Annotated[
        str | None, typer.Option(metavar="N|dynamic", help="ONNX: images at once; by default any number.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX: version of its operators; by default 18.")] = None,
    part: Annotated[
        Literal["generator", "mapping+synthesis"] | None, typer.Option(help="ONNX: one model, or two.")
    ] = None,
) -> None:
    """Write the averaged generator for use elsewhere: ONNX, checked against torch, or safetensors."""
    from hires_gan.inference import export as exporting

    request = exporting.parse_onnx(batch, opset, part, file_format)
    if file_format == "onnx":
        files = exporting.export_onnx(checkpoint, out, request)
    else:
        files = exporting.export_safetensors(checkpoint, out)
    for file in files:
        typer.echo(file)


@app.command("import-nvlabs")
def import_nvlabs_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.pkl", help="Of stylegan2-ada-pytorch, or stylegan3.")],
    out: Annotated[Path, typer.Option(help="A new folder, for generate, project, export and run.init_from.")],
) -> None:
    """Turn a pickled StyleGAN2 of NVlabs into a checkpoint; nothing in the file is executed."""
    from hires_gan.inference.nvlabs import import_nvlabs, report

    imported = import_nvlabs(file, out)
    report(imported)
    typer.echo(imported.saved.folder)


@config_app.command("show")
def config_show(config: Config, overrides: Overrides = None) -> None:
    """Print the resolved configuration as YAML."""
    from hires_gan.config import load_configuration, to_yaml

    typer.echo(to_yaml(load_configuration(config, overrides or [])), nl=False)


@config_app.command("check")
def config_check(config: Config, overrides: Overrides = None) -> None:
    """Say whether a configuration is valid, without touching data or devices."""
    from hires_gan.config import load_configuration

    load_configuration(config, overrides or [])
    typer.echo(f"{config}: valid")


@config_app.command("schema")
def config_schema(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Not needed: all have one schema.")] = None,
) -> None:
    """Print the JSON schema of configurations, with a description for every key."""
    import json

    from hires_gan.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Check what this one needs.")] = None,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what a health check needs, in seconds.")] = False,
    gpus: Annotated[
        int | None, typer.Option(help="How many GPUs there must be, neither fewer nor more; 0: none is needed.", min=0)
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,NAME...]", help="Environment variables that must be set; several times if wanted."),
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long what may come by itself is waited for.", min=0)
    ] = 0.0,
) -> None:
    """Say what this machine can do, and what is wrong with it."""
    from rich.console import Console

    from hires_gan.config import load_configuration
    from hires_gan.doctor import Asked, complaints, examine, exit_code, report
    from hires_gan.doctor_asked import split_names
    from hires_gan.doctor_pod import require_mounted

    names = split_names(needs or [])
    if config:
        require_mounted(config)
    configuration = load_configuration(config, overrides or []) if config else None
    checks = examine(Asked(quick, configuration, gpus=gpus, needs=names), wait)
    Console(soft_wrap=True, highlight=False).print(report(checks))
    for line in complaints(checks):
        say(f"error: {line}")
    raise typer.Exit(exit_code(checks))
