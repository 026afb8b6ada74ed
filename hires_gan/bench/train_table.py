"""The result of `bench train` as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from hires_gan.ops.leaving_out import PARTS

Record = dict[str, Any]
_KERNELS_SHOWN = 15
_WIDTH = 116


def table(record: Record) -> list[str]:
    """The whole result."""
    settings = record["settings"]
    place = f"{settings['resolution']}x{settings['resolution']}{' in a fade' if settings['fade'] else ''}"
    lines = [
        f"{settings['config']}: {place} from {settings['nimg']} images on, batches of {settings['batch']}, "
        f"{settings['precision']}, performance {settings['performance']}, {settings['ops']} ops, {settings['data']} "
        f"images, on {settings['device']}"
    ]
    lines += [f"left out: {part}: {PARTS[part]}" for part in settings["without"]]
    for result in record["results"]:
        lines += ["", *_speed(result, settings)]
        if "floor" in result:  # else what follows the timed steps has failed
            lines += [*_operations(result), *_counted(result), "", *_phases(result), "", *_floor(result)]
        lines += ["", *_kernels(result["profile"])] if result["profile"] else []
    if "reference" in record:
        lines += ["", *_reference(record)]
    return lines


def _speed(result: Record, settings: Record) -> Iterator[str]:
    saved = result["checkpoint"]
    yield f"micro-batch {result['micro']}: {result['images_per_s']:.2f} images/s, {result['s_per_kimg']:.2f} s/kimg"
    yield _line("for all of the run", f"{result['gpu_days']:.3g} days at this rate for {settings['total_kimg']:g} kimg")
    partial = result["steps"] % settings["cycle"]
    note = f", no whole cycles of {settings['cycle']}: an average step is {result['average_ms_per_step']:.2f} ms"
    yield _line("step", f"{result['ms_per_step']:.2f} ms over {result['steps']} steps{note if partial else ''}")
    device = result["device_ms_per_step"]
    if device is not None:
        host = f"{result['host_ms_per_step']:.2f} ms to launch a step"
        yield _line("host, device", f"{host}, {device:.2f} ms on the device")
    yield _line("waiting for data", f"{result['data_wait_share']:.1%}")
    memory = {name: size for name, size in result["memory"].items() if size is not None}
    yield _line("peak memory", ", ".join(f"{size / 2**30:.2f} GiB {name}" for name, size in memory.items()))
    compiled = result["compiled"]
    if compiled["seconds"]:
        yield _line("compiled", ", ".join(f"{name} in {took:.0f} s" for name, took in compiled["seconds"].items()))
    for remark in result["remarks"]:
        yield _line("remark", remark)
    if saved is not None:
        yield from checkpoint_lines(saved)


def _operations(result: Record) -> Iterator[str]:
    operations = result["operations"]
    again = operations["flop_again_per_image"]
    more = f"; {again / 1e9:.2f} more compute again what was not kept, and count as none" if again else ""
    yield _line("operations", f"{operations['flop_per_image'] / 1e9:.2f} GFLOP per image of an average step{more}")
    share = f"{operations['share_of_peak']:.1%} of a matrix product's"
    yield _line("achieved", f"{operations['tflops']:.3g} TFLOP/s, {share}")
    peak = f"{operations['peak_tflops']:.3g} TFLOP/s ({operations['peak_of']})"
    yield _line("measured limits", f"{peak}, copy {operations['copy_gb_per_s']:.1f} GB/s, read and written together")


def _counted(result: Record) -> Iterator[str]:
    counted = result["counted_micro"]
    if counted != result["micro"]:
        more = f"counting needs more memory; operations and floor are of {counted}, which read weights more often"
        yield _line("counted", f"with a micro-batch of {counted}, not of {result['micro']}: {more}")


def checkpoint_lines(saved: Record) -> Iterator[str]:
    """What checkpoints cost."""
    size = f"{saved['bytes'] / 1e6:.0f} MB, copied in {saved['copy'] * 1e3:.1f} ms"
    lost = f"lose {saved['lost'] * 1e3:.1f} ms beyond it, {saved['lost_share_of_step']:.1%} of a step"
    written = f"written in {saved['background']:.2f} s"
    yield _line("checkpoint", f"{size}; {saved['steps']} steps beside it {lost}; {written}")
    share, every = saved["share_of_wall_time"], saved["every_kimg"]
    none = "not known: checkpoint.every_kimg is null, so that there are no regular checkpoints"
    yield _line("of a run's time", none if share is None else f"{share:.3%}, with a checkpoint every {every:g} kimg")
    if saved["remark"]:
        yield _line("", saved["remark"])


def _line(name: str, text: str) -> str:
    return f"  {name:20}{text}"


def _phases(result: Record) -> Iterator[str]:
    profile = result["profile"]
    on_gpu = all(phase["peak_allocated"] is not None for phase in result["phases"].values())
    head = f"{'phase':16}{'interval':>9}{'ms/call':>10}{'ms/step':>10}{'GFLOP/call':>12}{'floor ms/call':>15}"
    head += f"{'peak GiB':>10}" if on_gpu else ""
    yield head + (f"{'kernels':>9}{'busy ms':>10}" if profile else "")
    for name, phase in result["phases"].items():
        line = f"{name:16}{phase['interval']:>9}{phase['ms_per_call']:>10.2f}{phase['ms_per_step']:>10.2f}"
        line += f"{phase['gflop']:>12.2f}{phase['floor_ms_per_call']:>15.3f}"
        line += f"{phase['peak_allocated'] / 2**30:>10.2f}" if on_gpu else ""
        ran = profile and profile["phases"][name]
        yield line + (f"{ran['kernels']:>9}{ran['busy_ms']:>10.2f}" if ran else "")
    total = sum(phase["ms_per_step"] for phase in result["phases"].values())
    yield f"{'together':16}{'':>19}{total:>10.2f}"
    if result["average_ms_per_step"] == result["ms_per_step"]:
        yield f"{'the rest':16}{'':>19}{result['ms_per_step'] - total:>10.2f}"


def _floor(result: Record) -> Iterator[str]:
    floor = result["floor"]
    share = f"{floor['share_of_step']:.1%} of an average step"
    yield f"floor: {floor['ms_per_step']:.3f} ms per step, {share}; {floor['ms_of_matrices']:.3f} ms of it in matrices"
    yield from textwrap.wrap(floor["in_words"], _WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield ""
    columns = f"{'GFLOP':>10}{'MB':>10}{'ms by ops':>11}{'by bytes':>10}{'larger':>10}"
    wide = max([45, *map(len, floor["by_layer"])])
    yield f"{'an average step, by resolution':{wide + 24}}{columns}"
    for side, cost in floor["by_resolution"].items():
        yield f"{side + 'x' + side if side != '0' else 'weights and vectors':{wide + 24}}{_cost(cost)}"
    yield ""
    yield f"{'an average step, all passes, by layer':{wide + 24}}{columns}"
    for name, cost in floor["by_layer"].items():
        yield f"{name or 'outside the networks':{wide + 24}}{_cost(cost)}"
    yield ""
    yield f"{'a forward pass of a micro-batch, by layer':{wide}}{'calls':>6}  {'shape':16}{columns}"
    for layer in floor["layers"]:
        shape = "x".join(map(str, layer["shape"]))
        yield f"{layer['name']:{wide}}{layer['calls']:>6}  {shape:16}{_cost(layer)}"


def _cost(cost: Record) -> str:
    return (
        f"{cost['gflop']:>10.3f}{cost['mb']:>10.2f}{cost['ms_by_operations']:>11.4f}{cost['ms_by_bytes']:>10.4f}"
        f"{cost['ms']:>10.4f}"
    )


def _kernels(profile: Record) -> Iterator[str]:
    busy = f"{profile['busy_ms_per_step']:.2f} ms"
    count = f"{profile['kernels_per_step']:.0f} kernels in an average step"
    yield f"{count}, which keep the GPU busy for {busy}; the longest:"
    yield f"{'ms/step':>10}{'share':>8}{'calls':>9}  kernel"
    for kernel in profile["kernels"][:_KERNELS_SHOWN]:
        figures = f"{kernel['ms_per_step']:>10.3f}{kernel['share']:>8.1%}{kernel['calls_per_step']:>9.1f}"
        yield f"{figures}  {kernel['name'][:88]}"


def _reference(record: Record) -> Iterator[str]:
    reference = record["reference"]
    yield (
        f"{record['ratio_to_reference']:.3f} times the {reference['images_per_s']:.2f} images/s of {reference['file']} "
        f"({reference['gpu.name']}, {reference['date']})"
    )
