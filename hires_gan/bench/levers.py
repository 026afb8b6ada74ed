"""What each lever of speed is worth: a configuration's steps measured with one more pulled each time."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from hires_gan.bench.children import Ended, call
from hires_gan.bench.identity import identity, now, require_writable, say_unknown_commit, write_record
from hires_gan.bench.levers_record import Record, hours, read_earlier, with_gains
from hires_gan.bench.plain_steps import lacking
from hires_gan.bench.train import check_micro
from hires_gan.bench.train_images import Images, synthetic_domains
from hires_gan.bench.train_steps import find_place, recipe_for
from hires_gan.errors import UsageError
from hires_gan.progress import say
from hires_gan.settings import at_resolution
from hires_gan.training.compiling import CACHE
from hires_gan.training.settings import Plan
from hires_gan.training.trainer import micro_batch


@dataclass(frozen=True)
class Lever:
    """One row.

    Attributes:
        name: As `--lever` has it.
        adds: In a few words.
        overrides: The settings that pull it.
        gpu: Whether it moves something on a GPU alone.
        doubles: Whether the micro-batch is twice as large.
        aside: Whether the rows below do without it.
        part: Of what runs always have, as `hires_gan.ops.leaving_out` names it: what this row adds, so that those above
            it lack it; or, where it stands aside, what this row alone lacks.
        needs: The row without whose lever there is none of this kind: where that failed, this one is skipped.
        brings: The row whose lever this one's setting pulls as well.
    """

    name: str
    adds: str
    overrides: tuple[str, ...] = ()
    gpu: bool = False
    doubles: bool = False
    aside: bool = False
    part: str = ""
    needs: str = ""
    brings: str = ""


_NONE = "levers={graphs: null, fused: null, tf32: null, compile: null}"
LEVERS = (
    Lever(
        "reference",
        "float32, step by step, ops in plain torch",
        ("precision=fp32", "performance=reference", _NONE, "ops={backend: reference, require_native: false}"),
    ),
    Lever("one-pass", "reals and fakes in one pass of the discriminator", part="one-pass"),
    Lever("average", "the running average in one call", gpu=True, part="average"),
    Lever("half", "half precision in the high resolutions", ("precision=HALF",)),
    Lever("channels-last", "convolutions in channels_last", part="channels-last"),
    Lever("native", "the compiled ops", ("ops.backend=native",)),
    Lever("host-draws", "random numbers drawn on the CPU and copied", gpu=True, aside=True, part="device-draws"),
    Lever(
        "sample-draws", "random numbers as functions of the sample, in one kernel", part="sample-draws", needs="native"
    ),
    Lever("epilogue", "what follows a modulated convolution in one kernel", part="epilogue", needs="native"),
    Lever("tf32", "TF32 for what stays in float32", ("levers.tf32=true",), gpu=True),
    Lever("fused", "an optimizer's step in one kernel", ("levers.fused=true",), gpu=True),
    Lever("graphs", "each phase as a CUDA graph", ("levers.graphs=true",), gpu=True, brings="fused"),
    Lever("micro", "twice as many images at once", doubles=True, aside=True),
    Lever("fp16", "float16 in place of bfloat16", ("precision=fp16",), aside=True, needs="half"),
    Lever(
        "recompute",
        "high resolutions computed again in the backward pass",
        ("recipe.generator.recompute=true",),
        aside=True,
    ),
    Lever("torch-derivatives", "torch's own derivatives of convolutions", aside=True, part="derivatives"),
    Lever("read-back", "all losses read back at every step", gpu=True, aside=True, part="unread"),
    Lever("compile-main", "torch.compile of the phases of every step", ("levers.compile=main",)),
    Lever(
        "compile-all", "torch.compile of R1 and path lengths as well", ("levers.compile=all",), brings="compile-main"
    ),
)
"""In this order, each with those before it but those aside. What `fast` does ends with `graphs`.

The first row is a straightforward program that draws on the device; but it reads nothing back, and computes derivatives
of convolutions as convolutions. What that is worth is told by rows aside that lack it; of numbers drawn on the CPU
where those on the device are torch's, too.
"""
_LADDER = [lever.name for lever in LEVERS if not lever.aside]
"""The rows that hand on what they add."""
_FIRST = LEVERS[0].name
_RECOMPUTE = "recipe.generator.recompute"


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        micro: Images at once; None for the configuration's.
        levers: The rows that are wanted; empty for all.
        data: What is trained on.
        steps: Timed ones of each row; None for the default of `bench train`.
        seconds: How long a row may take, and its second call where code is compiled.
        out: Where to write the result as JSON; written after every row, and gone on with if it has rows already.
    """

    micro: int | None = None
    levers: tuple[str, ...] = ()
    data: Literal["synthetic", "real"] = "synthetic"
    steps: int | None = None
    seconds: float = 900.0
    out: Path | None = None


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        plan: The configuration.
        micro: Images at once.
        lazy: Whether phases of its last stage are due now and then, such as R1.
    """

    plan: Plan
    micro: int
    lazy: bool


@dataclass(frozen=True)
class Program:
    """What rows are measured with.

    Attributes:
        overrides: Settings.
        without: Parts that are left out.
        has: The rows of the ladder whose levers are pulled.
        lost: Those whose levers are not, though they stand above, since they failed or need one that did.
    """

    overrides: tuple[str, ...]
    without: tuple[str, ...]
    has: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A lever, and everything that it is measured with; why it is not, if it is skipped."""

    lever: Lever
    program: Program
    micro: int
    skipped: str = ""

    def described(self) -> Record:
        """What tells it from a row of the same name that went on from others."""
        program = self.program
        return {"overrides": list(program.overrides), "micro": self.micro, "without": list(program.without)}


@dataclass
class _Bench:
    """What all rows have in common, and by name what has been measured of them, now or in an earlier call."""

    read: Callable[[], Plan]
    config: Path
    overrides: tuple[str, ...]
    request: Request
    head: Record
    rows: dict[str, Record] = field(default_factory=dict)

    def kept(self, row: Row) -> Record:
        """What is there of the same row, measured with the same settings; nothing if it is yet to be measured."""
        found = self.rows.get(row.lever.name, {})
        same = all(found.get(name) == value for name, value in row.described().items())
        return found if same else {}

    def record(self, complete: bool) -> Record:
        rows = [self.rows[lever.name] for lever in LEVERS if lever.name in self.rows]
        return self.head | {"rows": with_gains(rows, _LADDER, _FIRST), "complete": complete}

    def write(self, complete: bool) -> None:
        if self.request.out is not None:
            write_record(self.request.out, self.record(complete))

    def add(self, record: Record) -> None:
        """Keep a row, also for a later call; none stays skipped for the sake of one that is measured now."""
        if record["status"] == "measured":
            with_it = [lever.name for lever in LEVERS if lever.needs == record["name"]]
            self.rows = {
                name: row for name, row in self.rows.items() if name not in with_it or row["status"] != "skipped"
            }
        self.rows[record["name"]] = record
        self.write(complete=False)

    def require_same(self) -> None:
        """See that the file of the configuration is as it was: each row's process reads it.

        Raises:
            UsageError: It is another.
        """
        if _digest(self.read()) != self.head["settings"]["configuration_digest"]:
            raise UsageError(f"{self.config} was edited while its rows are measured: start anew, with another --out")


def bench_levers(read: Callable[[], Plan], config: Path, overrides: Sequence[str], request: Request) -> Record:
    """Measure rows one after the other, each in a process of its own: neither memory nor compiled code is handed on.

    A row that fails does not end the others, which go on without its lever. A row that compiles is called twice, with
    a cache of its own: without code in it, and with the code of the first call.

    Rows that the file of the result has already are not measured again, but for those that failed there, or whose
    settings are others now that a row above them is measured, or has failed.

    Args:
        read: Gives the configuration, as its file is now.
        config: That file.
        overrides: Settings that replace those of the file, in every row.
        request: What to measure.

    Returns:
        What is written: the head, that of the first call, `settings`, `rows`, each with its own `date`, and `complete`:
        whether all rows that were asked for have been tried.

    Raises:
        UsageError: The arguments cannot be, so many images at once are more than the batch, or no whole groups, or the
            file of the result is no such record, or one of other settings, or of another machine or commit; or the
            configuration is edited meanwhile.
        Failure: The result cannot be written.
    """
    _check(request)
    plan = read()
    subject = _subject(plan, request.micro)
    settings = {"config": " ".join([config.name, *overrides]), "micro": subject.micro}
    settings |= {"data": request.data, "steps": request.steps, "device": _device()}
    settings["configuration_digest"] = _digest(plan)
    bench = _begun(_Bench(read, config, tuple(overrides), request, identity("levers") | {"settings": settings}))
    _measure_rows(bench, subject)
    bench.write(complete=True)
    return bench.record(complete=True)


def _check(request: Request) -> None:
    known = [lever.name for lever in LEVERS]
    for name in request.levers:
        if name not in known:
            raise UsageError(f"--lever is {name!r}; {', '.join(known)} are allowed")
    for option, value in (("--micro", request.micro), ("--steps", request.steps), ("--seconds", request.seconds)):
        if value is not None and value <= 0:
            raise UsageError(f"{option} is {value:g}; a number above 0 is allowed")


def _begun(bench: _Bench) -> _Bench:
    """With what an earlier call has left, which stays as it is until a row is added."""
    out = bench.request.out
    earlier = read_earlier(out, bench.head)
    if out is not None:
        require_writable(out)
        say_unknown_commit(bench.head)
    if earlier is None:
        return bench
    say(f"{out} has rows already; what was measured is not measured again")
    return replace(bench, head=earlier, rows={row["name"]: row for row in earlier["rows"]})


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _digest(plan: Plan) -> str:
    """Of all settings: a file may be another in a later call, though its name is the same."""
    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _subject(plan: Plan, wanted: int | None) -> Subject:
    recipe = recipe_for(plan, Images("synthetic", domains=synthetic_domains(plan)))
    stage = find_place(recipe, None).stage
    micro = wanted or micro_batch(plan.batch, stage)
    check_micro(micro, stage)
    return Subject(plan, micro, any(phase.interval > 1 for phase in recipe.phases(stage.start)))


def _measure_rows(bench: _Bench, subject: Subject) -> None:
    pulled = Program(bench.overrides, _added_parts(subject))
    for lever in LEVERS:
        row = _row(lever, pulled, subject)
        wanted = not bench.request.levers or lever.name in bench.request.levers
        here = bench.rows.get(lever.name, {}) if row.skipped else bench.kept(row)
        if wanted and here.get("status") not in ("measured", "skipped"):
            bench.add(_measured(bench, row))
        if not (lever.aside or _idle(lever, subject)):
            failed = row.skipped or bench.kept(row).get("status") == "failed"
            # Without the first row's settings, the others would be those of the dial.
            handed_on = not failed or lever.name == _FIRST
            pulled = row.program if handed_on else replace(pulled, lost=(*pulled.lost, lever.name))


def _added_parts(subject: Subject) -> tuple[str, ...]:
    """What the first row lacks, and a later one adds: nothing whose row would measure nothing."""
    adding = [lever for lever in LEVERS if lever.part and not lever.aside]
    return tuple(lever.part for lever in adding if not _idle(lever, subject))


def _row(lever: Lever, pulled: Program, subject: Subject) -> Row:
    plan, micro, without = subject.plan, subject.micro, _without(lever, pulled.without)
    half = plan.precision if plan.precision in ("bf16", "fp16") else "bf16"
    own = tuple(text.replace("HALF", half) for text in lever.overrides)
    if lever.name == _FIRST and _recomputes(plan):
        own += (f"{_RECOMPUTE}=false",)
    if lever.doubles:
        micro *= 2
        own += _room(plan, micro)
        if lacking("one-pass", plan, subject.micro) and not lacking("one-pass", plan, micro):
            without = (*without, "one-pass")  # which half as many images have not got
    brought = (lever.brings,) if lever.brings in pulled.lost else ()
    has = pulled.has if lever.aside else (*pulled.has, *brought, lever.name)
    lost = tuple(name for name in pulled.lost if name not in brought)
    program = Program((*pulled.overrides, *own), without, has, lost)
    needed = f"it goes with {lever.needs}, which failed" if lever.needs in pulled.lost else ""
    return Row(lever, program, micro, _idle(lever, subject) or needed)


def _recomputes(plan: Plan) -> bool:
    return hasattr(plan.recipe, "generator") and hasattr(plan.recipe.generator, "recompute")


def _without(lever: Lever, left_out: tuple[str, ...]) -> tuple[str, ...]:
    if lever.aside and lever.part:
        return (*left_out, lever.part)
    return tuple(part for part in left_out if part != lever.part)


def _room(plan: Plan, micro: int) -> tuple[str, ...]:
    """A batch of `micro` images, where the configuration's is smaller."""
    size = at_resolution(plan.batch.size, plan.recipe.resolution)
    return (f"batch.size={micro}",) if size < micro else ()


def _idle(lever: Lever, subject: Subject) -> str:
    """Why a row would measure nothing; nothing if it does."""
    plan = subject.plan
    if lever.gpu and not torch.cuda.is_available():
        return "moves nothing on a CPU"
    if lever.part and (reason := lacking(lever.part, plan, subject.micro)):
        return reason
    if lever.name == "recompute" and not _recomputes(plan):
        return "the family computes nothing again"
    if lever.name == "compile-all" and not subject.lazy:
        return "all phases belong to every step"
    if lever.name == "fp16" and plan.precision == "fp16":
        return "the configuration's precision, which the row half has"
    if lever.name == "fp16" and plan.recipe.translates:
        return "the family's gradients need the range of bfloat16"
    return ""


def _measured(bench: _Bench, row: Row) -> Record:
    lever = row.lever
    record: Record = {"name": lever.name, "adds": lever.adds, **row.described()}
    record |= {"has": list(row.program.has), "lost": list(row.program.lost)}
    if row.skipped:
        return record | {"status": "skipped", "reason": row.skipped}
    bench.require_same()
    record["date"] = now()
    say(f"{lever.name}: {lever.adds}")
    # What a killed row's compilers still write must not end the rows that follow.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out, environment = Path(folder) / "train.json", _environment(Path(folder))
        ended = call(_arguments(bench, row, out, bench.request.steps), bench.request.seconds, environment)
        judged = _judged(bench, ended, out)
        if judged.get("compile_seconds"):
            bench.add(record | judged | {"compile_seconds_cached": None, "not_cached": "the second call was cut off"})
            ended = call(_arguments(bench, row, out, 1), bench.request.seconds, environment)
            judged |= _cached(_judged(bench, ended, out))
        return record | judged


def _environment(folder: Path) -> dict[str, str]:
    """Code that is compiled is kept in the row's folder alone, Triton's with inductor's."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    return own | {CACHE: str(folder / "compiled")}


def _arguments(bench: _Bench, row: Row, out: Path, steps: int | None) -> list[object]:
    counted = [] if steps is None else ["--steps", steps]
    parts = [word for part in row.program.without for word in ("--without", part)]
    fixed = ["--micro", row.micro, "--data", bench.request.data, *counted, *parts, "--out", out]
    return ["bench", "train", "--config", bench.config, *fixed, *row.program.overrides]


def _cached(again: Record) -> Record:
    """What the same row takes to compile with the code of the first call at hand."""
    return {"compile_seconds_cached": again.get("compile_seconds"), "not_cached": again.get("reason")}


def _judged(bench: _Bench, ended: Ended, out: Path) -> Record:
    """What a row has come to."""
    if ended.code is None:
        return {"status": "failed", "reason": f"it took longer than {bench.request.seconds:g} seconds"}
    if ended.code != 0:
        return {"status": "failed", "reason": ended.reason}
    train = json.loads(out.read_text())
    (result,) = train["results"]
    if remarks := result.get("remarks"):
        return {"status": "failed", "reason": remarks[0], "train": train}
    if result["compiled"]["refused"]:
        name, reason = next(iter(result["compiled"]["refused"].items()))
        return {"status": "failed", "reason": f"the {name} was not compiled: {reason}", "train": train}
    gains = dict.fromkeys(("gain", "over", "over_reference"))  # which follow from all rows
    return {"status": "measured", **_figures(result), **gains, "train": train}


def _figures(result: Record) -> Record:
    memory = result["memory"]
    return {
        "images_per_s": result["images_per_s"],
        "ms_per_step": result["average_ms_per_step"],
        "peak_memory": memory["resident"] if memory["reserved"] is None else memory["reserved"],
        "peak_of": "resident" if memory["reserved"] is None else "reserved",
        "compile_seconds": sum(result["compiled"]["seconds"].values()),
    }


def table(record: Record) -> Iterator[str]:
    """The rows for people."""
    settings = record["settings"]
    yield f"{settings['config']}: micro-batch {settings['micro']}, {settings['data']} images, on {settings['device']}"
    figures = f"{'images/s':>10}{'ms/step':>10}{'peak GiB':>10}{'gain':>8}{'in all':>8}"
    yield f"{'lever':18}{figures}  {'over':15}what it adds"
    for row in record["rows"]:
        yield _line(row)
    yield from hours(record)
    yield (
        "Each row has what those above it add, but for rows aside, and for what it is said to be without. gain: "
        "images/s by those of the row under `over`, the last one above that is not aside and differs by nothing but "
        f"what this row and those in between add; in all: by those of {_FIRST}"
    )


def _line(row: Record) -> str:
    if row["status"] != "measured":
        return f"{row['name']:18}{row['status']}: {row['reason']}"
    gains = "".join(f"{_times(row[name]):>8}" for name in ("gain", "over_reference"))
    figures = f"{row['images_per_s']:>10.2f}{row['ms_per_step']:>10.1f}{row['peak_memory'] / 2**30:>10.2f}{gains}"
    aside = "" if row["name"] in _LADDER else "aside: "
    return f"{row['name']:18}{figures}  {row['over'] or '':15}{aside}{row['adds']}{_lacking(row)}{_compiled(row)}"


def _lacking(row: Record) -> str:
    names = dict.fromkeys([*row["lost"], *row["without"]])
    return f"; without {', '.join(names)}" if names else ""


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _compiled(row: Record) -> str:
    if not row["compile_seconds"]:
        return ""
    again = row["compile_seconds_cached"]
    with_code = f"failed: {row['not_cached']}" if again is None else f"{again:.0f} s"
    return f" ({row['compile_seconds']:.0f} s to compile, again from its cache: {with_code})"
