"""The commands of `hires-gan bench`: parse, call, print."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from hires_gan.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Measure this machine.")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Settings that replace those of the file.")
]


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`64,128` -> (64, 128)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{option} is {text!r}; whole numbers are allowed, separated by commas, such as 64,128")
    return tuple(int(part) for part in parts)


@app.command("input")
def bench_input_command(
    shards: Annotated[Path | None, typer.Option(help="A shard folder; by default one is made of photographs.")] = None,
    resolution: Annotated[
        list[str] | None, typer.Option(help="Side of the decoded images, 1024; several times, or 1024,256.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default as many as there are cores.")] = None,
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 32,
    seconds: Annotated[float, typer.Option(help="How long to measure each contestant, in up to 7 rounds.")] = 20.0,
    decoder: Annotated[
        list[str] | None, typer.Option(help="torchvision, dali-cpu or dali, several times if wanted; all there are.")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure what one would use instead, too.")] = True,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Compare the input with its decoders alone, with reading alone, and with other loaders."""
    from hires_gan.bench.input import Request, bench_input, table
    from hires_gan.cores import usable_cores

    sides = numbers("--resolution", ",".join(resolution or ["1024"]))
    count = workers if workers is not None else usable_cores()
    request = Request(shards, sides, count, batch, seconds, tuple(decoder or ()), peers, out)
    for line in table(bench_input(request)):
        typer.echo(line)


@app.command("ops")
def bench_ops_command(
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU if there is one.")] = "auto",
    dtype: Annotated[
        list[str] | None, typer.Option(help="Of the images, several times if wanted; float16 on a GPU, else float32.")
    ] = None,
    layout: Annotated[Literal["contiguous", "channels_last", "both"], typer.Option(help="In memory.")] = "both",
    only: Annotated[
        list[str] | None, typer.Option(metavar="CASE", help="Several times if wanted; 'epilogue-*' names several.")
    ] = None,
    size: Annotated[
        Literal["small", "full"] | None, typer.Option(help="Of the images; full on a GPU, else small.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Measure torch.compile's too.")] = True,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Compare the ops with a copy of the same bytes, with plain torch and with torch.compile."""
    from hires_gan.bench.ops import Request, bench_ops, table

    request = Request(device, tuple(dtype or ()), layout, tuple(only or ()), size, compiled, out)
    for line in table(bench_ops(request)):
        typer.echo(line)


@app.command("train")
def bench_train_command(
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="A YAML file; see configs/.")],
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option(help="Timed ones; 32 on a GPU, in whole cycles of the phases.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps before them; one cycle, on a GPU two.")] = None,
    micro: Annotated[
        list[int] | None, typer.Option(help="Images at once, several times if wanted; as in the configuration.")
    ] = None,
    stage_nimg: Annotated[
        int | None, typer.Option(help="So many images into the schedule; by default its last stage.")
    ] = None,
    data: Annotated[
        Literal["synthetic", "real"], typer.Option(help="Random images on the device, or the configuration's.")
    ] = "synthetic",
    profile: Annotated[bool, typer.Option("--profile/--no-profile", help="List the GPU's kernels, too.")] = False,
    reference_json: Annotated[
        Path | None, typer.Option(help="images_per_s of something else on the same GPU, to compare with.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write checkpoints there, and measure what steps lose by it.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Leave out what runs always have, several times if wanted: channels-last, derivatives, epilogue, "
            "one-pass, average, sample-draws, device-draws or unread.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Measure how fast a configuration trains, where the time goes, and what the device could do."""
    from hires_gan.config import load_configuration

    plan = load_configuration(config, overrides or [])
    from hires_gan.bench.train import Request, bench_train
    from hires_gan.bench.train_table import table

    files = {"reference": reference_json, "out": out, "checkpoint": checkpoint}
    parts, micros = tuple(dict.fromkeys(without or ())), tuple(micro or ())
    request = Request(steps, warmup, micros, stage_nimg, data, profile, without=parts, **files)
    for line in table(bench_train(plan, " ".join([config.name, *(overrides or [])]), request)):
        typer.echo(line)


@app.command("memory")
def bench_memory_command(
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="A YAML file; see configs/.")],
    overrides: Overrides = None,
    micro: Annotated[
        list[int] | None, typer.Option(help="Images at once, several times if wanted; one and two groups, and its own.")
    ] = None,
    processes: Annotated[int, typer.Option(metavar="N", help="Divide a step's images among so many.")] = 1,
    stage_nimg: Annotated[
        int | None, typer.Option(help="So many images into the schedule; by default where it may take most.")
    ] = None,
    all_stages: Annotated[bool, typer.Option("--all-stages", help="Measure every stage.")] = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Measure what a step takes of the memory at most, and suggest how many images to compute at once."""
    from hires_gan.config import load_configuration

    plan = load_configuration(config, overrides or [])
    from hires_gan.bench.memory import Request, bench_memory, lines

    request = Request(tuple(micro or ()), processes, stage_nimg, all_stages, out)
    for line in lines(bench_memory(plan, " ".join([config.name, *(overrides or [])]), request), plan):
        typer.echo(line)


@app.command("levers")
def bench_levers_command(
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="A YAML file; see configs/.")],
    overrides: Overrides = None,
    micro: Annotated[int | None, typer.Option(help="Images at once; as in the configuration.")] = None,
    lever: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure these rows alone, several times if wanted.")
    ] = None,
    data: Annotated[
        Literal["synthetic", "real"], typer.Option(help="Random images on the device, or the configuration's.")
    ] = "synthetic",
    steps: Annotated[int | None, typer.Option(help="Timed steps of each row, as in `bench train`.")] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="How long a row may take, compiling included; as long again for the second call of one that compiles."
        ),
    ] = 900.0,
    out: Annotated[
        Path | None, typer.Option(help="A JSON file for the result; the same command goes on with its rows.")
    ] = None,
) -> None:
    """Measure what each lever of speed is worth: float32 step by step first, then one more at a time."""
    from hires_gan.bench.levers import Request, bench_levers
    from hires_gan.bench.levers_table import table
    from hires_gan.config import load_configuration

    read = partial(load_configuration, config, overrides or [])
    request = Request(micro, tuple(lever or ()), data, steps, seconds, out)
    for line in table(bench_levers(read, config, overrides or [], request)):
        typer.echo(line)


@app.command("dials")
def bench_dials_command(
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="A YAML file; see configs/.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of runs, curves and the result.")],
    overrides: Overrides = None,
    seconds: Annotated[float | None, typer.Option(help="Each run trains so long; or --kimg.")] = None,
    kimg: Annotated[float | None, typer.Option(help="Each run shows so many thousand images.")] = None,
    seeds: Annotated[str, typer.Option(help="Of the runs of each dial; one does not tell how far apart two are.")] = (
        "0,1"
    ),
    runs: Annotated[int | None, typer.Option(help="Train so many at most now; the same command goes on.")] = None,
) -> None:
    """Train `fast` and `reference` with the same seeds, and see whether their curves differ by more than chance."""
    from hires_gan.bench.dials import Request, bench_dials, table
    from hires_gan.config import load_configuration

    if seconds is not None and kimg is not None:
        raise UsageError(f"--seconds is {seconds:g} and --kimg {kimg:g}; one of them is allowed")
    whole = [*(overrides or []), *([] if kimg is None else [f"run.total_kimg={kimg}"])]
    load_configuration(config, whole)
    limit = (480.0 if seconds is None else seconds) if kimg is None else None
    for line in table(bench_dials(config, whole, Request(out, limit, numbers("--seeds", seeds), runs)), out):
        typer.echo(line)


@app.command("scaling")
def bench_scaling_command(
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="A YAML file; see configs/.")],
    overrides: Overrides = None,
    step_seconds: Annotated[
        str | None, typer.Option(help="Of a step on one GPU; or NAME=SECONDS,... by phase.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Without: count bytes alone.")] = True,
    calls: Annotated[int | None, typer.Option(help="Of each phase; 16 on a GPU, else 4.")] = None,
    stage_nimg: Annotated[int | None, typer.Option(help="Images into the schedule; by default the last stage.")] = None,
    per_node: Annotated[int, typer.Option(help="GPUs of a node.")] = 8,
    intra: Annotated[float, typer.Option(help="GB/s of a GPU inside a node: two thirds of NVLink 4.")] = 300.0,
    inter: Annotated[float, typer.Option(help="GB/s of a node outside: one port of 400 Gbit/s.")] = 50.0,
    latency: Annotated[str, typer.Option(help="Microseconds inside, outside, and of a control message.")] = "2,8,30",
    jitter: Annotated[float, typer.Option(help="By how many percent a GPU's step times vary.")] = 1.0,
    first: Annotated[list[str] | None, typer.Option(help="SECONDS/KIMG of the first process alone: 60/200.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Predict how a configuration scales to 1,024 GPUs; started by torchrun, measure it on these processes, too."""
    from hires_gan.config import load_configuration

    plan = load_configuration(config, overrides or [])
    from hires_gan.bench import scaling_options as options
    from hires_gan.bench.scaling import Request, bench_scaling
    from hires_gan.bench.scaling_table import table

    network = options.parse_network(per_node, intra, inter, latency)
    seconds, alone = options.parse_seconds(step_seconds), options.parse_first(first or [])
    request = Request(calls, stage_nimg, seconds, measure, network, options.parse_jitter(jitter), alone, out)
    record = bench_scaling(plan, " ".join([config.name, *(overrides or [])]), request)
    for line in table(record) if record else []:
        typer.echo(line)


@app.command("tracking")
def bench_tracking_command(
    step_ms: Annotated[float, typer.Option(help="Of a step.")] = 60.0,
    batch: Annotated[int, typer.Option(help="Images in a step.")] = 32,
    kimg: Annotated[float, typer.Option(help="How many thousand images to show.")] = 44.0,
    every_kimg: Annotated[float, typer.Option(help="How often metrics are logged.")] = 1.0,
    samples_every_kimg: Annotated[float, typer.Option(help="How often a grid is.")] = 40.0,
    side: Annotated[int, typer.Option(help="Of the grid, in pixels.")] = 2048,
    metrics: Annotated[int, typer.Option(help="Logged at once.")] = 30,
    delay: Annotated[float, typer.Option(help="Seconds for which the slow server's answers are late.")] = 2.0,
    store: Annotated[
        list[str] | None, typer.Option(help="sqlite, server or slow, several times if wanted; all of them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Measure what MLflow costs a step: into a file, a server, and a slow one."""
    from hires_gan.bench.tracking import STORES, Request, bench_tracking, table

    wanted = tuple(store or STORES)
    request = Request(step_ms, batch, kimg, every_kimg, samples_every_kimg, side, metrics, delay, wanted, out)
    for line in table(bench_tracking(request)):
        typer.echo(line)


@app.command("evaluate")
def bench_evaluate_command(
    resolution: Annotated[int, typer.Option(help="Of the images.")] = 64,
    count: Annotated[int, typer.Option(help="Images to generate.")] = 2048,
    reals: Annotated[int | None, typer.Option(help="Images to compare with; as many.", min=1)] = None,
    metrics: Annotated[str, typer.Option(help="swd, or those of features or logits.")] = "fid",
    features: Annotated[
        str | None, typer.Option(help="The network; by default Inception's layers with random weights.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
) -> None:
    """Measure what an evaluation costs beside its generator and its feature network."""
    from hires_gan.bench.evaluation import Request, bench_evaluation, line
    from hires_gan.evaluation.catalogue import parse_metrics

    names = parse_metrics(metrics)
    typer.echo(line(bench_evaluation(Request(resolution, count, names, features, rounds, device, out, reals))))
