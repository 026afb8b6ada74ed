"""How close the ops come to the speed at which the device copies memory, beside the reference and the compiler."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch

from hires_gan import ops
from hires_gan.bench.identity import identity
from hires_gan.bench.ops_cases import LAYOUTS, PASSES, Case, Pass, Size, training_cases
from hires_gan.bench.ops_passes import (
    Compiled,
    Contestant,
    Eager,
    Problem,
    another,
    calls_in_a_window,
    copies,
    difference,
    pose,
    windows,
)
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.bench.timing import clock_of, take_turns, warm_up
from hires_gan.errors import Failure, UsageError
from hires_gan.ops import native
from hires_gan.progress import ProgressBar, say

ROUNDS = {"cpu": 7, "cuda": 20}
CONTESTANTS = ("ours", "reference", "compiled")
COPY = "copy"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_DEFAULT_DTYPE = {"cpu": "float32", "cuda": "float16"}
_DEFAULT_SIZE: dict[str, Size] = {"cpu": "small", "cuda": "full"}


@dataclass(frozen=True)
class Request:
    """What to measure.

    Args:
        device: `auto` takes a GPU if there is one.
        dtypes: Of the images; by default float16 on a GPU and float32 on a CPU.
        layout: `both` layouts, or one of them.
        only: Names of cases, `*` and `?` standing for any characters; empty for all.
        size: By default full on a GPU and small on a CPU.
        compiled: Whether to measure the compiled reference, which takes most of the time.
        out: Where to write the result as JSON; written after every case, so that what ends early has what it measured.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtypes: tuple[str, ...] = ()
    layout: Literal["contiguous", "channels_last", "both"] = "both"
    only: tuple[str, ...] = ()
    size: Size | None = None
    compiled: bool = True
    out: Path | None = None


@dataclass(frozen=True)
class Row:
    """One pass of one case in one dtype and layout; times are medians over the rounds."""

    case: str
    shape: tuple[int, ...]
    """Of x."""
    dtype: str
    layout: str
    what: Pass
    bytes: int
    """That the pass must at least read and write."""
    seconds: dict[str, float]
    """Of the copy, ours, the reference and the compiled reference; who could not is left out."""
    share: dict[str, float]
    """The copy's time over the contestant's, the median of the rounds' own shares."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why a contestant is left out."""


@dataclass(frozen=True)
class _Plan:
    """A request with its defaults filled in."""

    device: torch.device
    size: Size
    runs: list[tuple[Case, str, str]]
    """Case, dtype and layout."""


def bench_ops(request: Request) -> list[Row]:
    """Measure forward, backward and double backward of the training cases.

    What a pass is, and which bytes it must move, is said where they are made: `Eager`, `Compiled` and `Case.moved`.
    Our result and the compiled one are compared with the reference's before anything is timed.

    Returns:
        The rows, three for every case, dtype and layout.

    Raises:
        UsageError: There is no such case or device.
        Failure: The native ops are not there, one computes something wrong, the memory is too small, or the result
            cannot be written.
    """
    plan = _plan(request)
    kind = plan.device.type
    if not native.available(kind):
        raise Failure(f"there is nothing of ours to measure on {kind}: {native.why_not(kind)}")
    if kind == "cpu":
        say("on a CPU, ours is the twin of the GPU's kernels: it is there to be correct, not to be fast")
    head = _head(plan)  # what is loaded now; a build or a commit meanwhile changes nothing of what is measured
    if request.out is not None:
        require_writable(request.out)
    rows: list[Row] = []
    with ops.backend("native"), ProgressBar("measuring", 3 * len(plan.runs), "passes") as bar:
        for number, run in enumerate(plan.runs, start=1):
            for row in _measured(run, plan.device, request.compiled):
                rows.append(row)
                bar.advance(note=_title(row))
            if request.out is not None:
                write_record(request.out, _result(head, rows, complete=number == len(plan.runs)))
    return rows


def _plan(request: Request) -> _Plan:
    device = _device(request.device)
    size = request.size or _DEFAULT_SIZE[device.type]
    dtypes = request.dtypes or (_DEFAULT_DTYPE[device.type],)
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise UsageError(f"--dtype is {dtype!r}; {', '.join(_DTYPES)} are allowed")
    layouts = tuple(LAYOUTS) if request.layout == "both" else (request.layout,)
    runs = [
        (case, dtype, layout)
        for case in _chosen(training_cases(size), request.only)
        for dtype in dict.fromkeys(dtypes)
        for layout in layouts
        if layout in case.layouts
    ]
    if not runs:
        raise UsageError(f"--layout is {request.layout}, which no case of --only {' '.join(request.only)} has")
    return _Plan(device, size, runs)


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("--device is cuda, but torch finds no GPU here; cpu is allowed")
    return torch.device("cuda", torch.cuda.current_device()) if there and name != "cpu" else torch.device("cpu")


def _chosen(cases: list[Case], only: tuple[str, ...]) -> list[Case]:
    for pattern in only:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            names = ", ".join(case.name for case in cases)
            raise UsageError(f"--only is {pattern!r}, which no case is called; there are {names}")
    return [case for case in cases if not only or any(fnmatchcase(case.name, pattern) for pattern in only)]


def _measured(run: tuple[Case, str, str], device: torch.device, compiled: bool) -> Iterator[Row]:
    """Measure the three passes of a case."""
    case, dtype, layout = run
    torch.compiler.reset()  # else the compiler gives up after so many versions of one function
    contestants: dict[str, Contestant] = {"ours": Eager(case.ours), "reference": Eager(case.plain)}
    if compiled:
        contestants["compiled"] = Compiled(case)
    moved = case.moved(_DTYPES[dtype].itemsize)
    try:
        problems = [pose(case, _DTYPES[dtype], layout, device)]
        calls = calls_in_a_window(min(moved.values()), device)
        problems += [another(case, problems[0]) for _ in range(calls - 1)]
        for what in PASSES:
            notes = {} if compiled else {"compiled": "not asked for"}
            notes |= _examined(contestants, what, problems[0], f"{case.name} in {dtype}, {layout}")
            able = {name: one for name, one in contestants.items() if name not in notes}
            seconds, share = _timed(able, what, problems, moved[what], device)
            yield Row(case.name, case.shape, dtype, layout, what, moved[what], seconds, share, notes)
    except torch.OutOfMemoryError:
        raise Failure(
            f"{case.name} in {dtype} does not fit the memory of {device}: --size small is smaller, "
            "and --only leaves cases out"
        ) from None


def _examined(contestants: dict[str, Contestant], what: Pass, problem: Problem, title: str) -> dict[str, str]:
    """Compare the results with the reference's, and say why a compiled one cannot take part.

    Raises:
        Failure: If ours is wrong: a fast wrong op is no result.
    """
    expected = contestants["reference"].prepare(what, problem)()
    text = difference(contestants["ours"].prepare(what, problem)(), expected)
    if text:
        raise Failure(f"{title}: our {what} pass is wrong: {text}")
    if "compiled" not in contestants:
        return {}
    try:
        text = difference(contestants["compiled"].prepare(what, problem)(), expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler may raise: the rest of the table does not depend on it
        return {"compiled": f"the compiler failed: {_first_line(error)}"}
    return {"compiled": f"the compiled reference is wrong: {text}"} if text else {}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:200]}"


def _timed(
    contestants: dict[str, Contestant], what: Pass, problems: list[Problem], moved: int, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of all and the copy, and the shares."""
    calls = min(len(problems), calls_in_a_window(moved, device))
    ready = {COPY: copies(moved, calls, device)}
    ready |= {name: windows(one, what, problems[:calls]) for name, one in contestants.items()}
    for one in ready.values():
        warm_up(one)
    taken = take_turns(ready, clock_of(device), ROUNDS[device.type])
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    shares = {
        name: statistics.median(copy / own for copy, own in zip(taken[COPY], taken[name], strict=True))
        for name in contestants
    }
    return seconds, shares


def _head(plan: _Plan) -> dict[str, Any]:
    """What the numbers mean nothing without."""
    build = native.record()
    return identity("ops") | {
        "device": _device_name(plan.device),
        "threads": torch.get_num_threads(),
        "size": plan.size,
        "rounds": ROUNDS[plan.device.type],
        "build": None if build is None else dataclasses.asdict(build),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _result(head: dict[str, Any], rows: list[Row], complete: bool) -> dict[str, Any]:
    """The result as JSON, so far."""
    load = round(os.getloadavg()[0], 2)
    return head | {"load_average_after": load, "complete": complete, "rows": [dataclasses.asdict(row) for row in rows]}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def table(rows: list[Row]) -> list[str]:
    """The result as lines for people."""
    lines: list[str] = []
    reasons: dict[str, int] = {}
    for row in rows:
        title = _title(row)
        if row.what == PASSES[0]:
            lines += ([""] if lines else []) + [title]
            columns = "".join(f"{name:>11}{'of copy':>9}" for name in CONTESTANTS)
            lines.append(f"  {'pass':17}{'MB':>8}{COPY:>11}{columns}")
        cells = "".join(_cell(row, name, reasons) for name in CONTESTANTS)
        lines.append(f"  {row.what:17}{_three(row.bytes / 1e6):>8}{_time(row.seconds[COPY]):>11}{cells}")
    return lines + ([""] if reasons else []) + [f"[{number}] {reason}" for reason, number in reasons.items()]


def _title(row: Row) -> str:
    return f"{row.case}: x {list(row.shape)}, {row.dtype}, {row.layout}"


def _cell(row: Row, name: str, reasons: dict[str, int]) -> str:
    if name in row.seconds:
        return f"{_time(row.seconds[name]):>11}{row.share[name]:>9.1%}"
    mark = f"[{reasons.setdefault(row.notes[name], len(reasons) + 1)}]"
    return f"{'-':>11}{mark:>9}"


def _time(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds * 1e6)} µs"


def _three(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
