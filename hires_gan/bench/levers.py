"""What each lever of speed is worth: a configuration's steps measured with one more pulled each time."""

from __future__ import annotations

import contextlib
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
from hires_gan.bench.identity import identity, now, say_unknown_commit
from hires_gan.bench.levers_record import Record, read_earlier, told_apart, with_gains
from hires_gan.bench.levers_rows import FIRST, LADDER, LEVERS, Row, Subject, below, first_program, idle, row_of
from hires_gan.bench.levers_table import table
from hires_gan.bench.record_file import held, require_writable, write_record
from hires_gan.bench.train import check_micro
from hires_gan.bench.train_images import Images, synthetic_domains
from hires_gan.bench.train_steps import find_place, recipe_for
from hires_gan.code import code_digest
from hires_gan.errors import UsageError
from hires_gan.progress import say
from hires_gan.training.compiling import CACHE
from hires_gan.training.settings import Plan
from hires_gan.training.trainer import micro_batch

_GAINS = ("gain", "over", "over_reference")


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


@dataclass
class _Bench:
    """What all rows have in common, and by name what has been measured of them, now or in an earlier call."""

    read: Callable[[], Plan]
    config: Path
    request: Request
    head: Record
    rows: dict[str, Record] = field(default_factory=dict)

    def wants(self, row: Row) -> bool:
        """Whether a row is asked for, and not there yet as it would be measured now."""
        name, found = row.lever.name, self.rows.get(row.lever.name)
        if self.request.levers and name not in self.request.levers:
            return False
        if found is None:
            return True
        # What is skipped now has nothing to say that is worth more than what is there.
        return not row.skipped and not (found["status"] == "measured" and row.is_that_of(found))

    def failed(self, row: Row) -> bool:
        """Whether a row is known to have failed, whatever it was measured with."""
        return bool(self.rows.get(row.lever.name, {}).get("status") == "failed")

    def record(self, complete: bool) -> Record:
        rows = [self.rows[lever.name] for lever in LEVERS if lever.name in self.rows]
        return self.head | {"rows": with_gains(rows, LADDER, FIRST), "complete": complete}

    def write(self, complete: bool) -> None:
        if self.request.out is not None:
            write_record(self.request.out, self.record(complete))

    def add(self, record: Record) -> None:
        """Keep a row, also for a later call: one that fails has with it what was measured of it before."""
        name = record["name"]
        if record["status"] == "measured":
            self._end_skipping(name)
        elif earlier := _measurement(self.rows.get(name, {})):
            record = record | {"earlier": earlier}
        self.rows[name] = record
        self.write(complete=False)

    def _end_skipping(self, name: str) -> None:
        """What was skipped for the sake of a row that is measured now is yet to be measured."""
        with_it = [lever.name for lever in LEVERS if lever.needs == name]
        self.rows = {one: row for one, row in self.rows.items() if one not in with_it or row["status"] != "skipped"}

    def require_same(self) -> None:
        """See that the configuration's file and the code are as they were: each row's process reads them.

        Raises:
            UsageError: One of them is another.
        """
        if code_digest() != self.head["code.digest"]:
            raise UsageError("the code was edited while rows are measured: start anew, with another --out")
        if _digest(self.read()) != self.head["settings"]["configuration_digest"]:
            raise UsageError(f"{self.config} was edited while its rows are measured: start anew, with another --out")

    def require_comparable(self, train: Record) -> None:
        """See that a row's process measured this code with these versions on this device.

        Raises:
            UsageError: It had others, as where a variable of the environment hides a GPU from it.
        """
        same = ("code.", "version.", "cpu.", "gpu.", "settings.device")
        for name, before, found in told_apart(self.head, train, same):
            raise UsageError(
                f"a row was measured with {name} {found}, and the others with {before}: start anew, with another --out"
            )


def _measurement(row: Record) -> Record | None:
    """What is known of a row from when it was measured, without the gains: they follow from all rows."""
    if row.get("status") != "measured":
        return row.get("earlier")
    return {name: value for name, value in row.items() if name not in _GAINS}


def bench_levers(read: Callable[[], Plan], config: Path, overrides: Sequence[str], request: Request) -> Record:
    """Measure rows one after the other, each in a process of its own: neither memory nor compiled code is handed on.

    A row that fails does not end the others, which go on without its lever. A row that compiles is called twice, with
    a cache of its own: without code in it, and with the code of the first call.

    Rows that the file of the result has already are not measured again, but for those that failed there, or that have
    other levers now that a row above them is measured, or has failed. What ends the measurement early leaves what has
    been measured in the file, and says it.

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
            file of the result is no such record, or one of other settings, or of another kind of machine or other
            code, or another process goes on with it; or the configuration or the code is edited meanwhile.
        Failure: The result cannot be written.
    """
    _check(request)
    plan = read()
    subject = _subject(plan, request.micro)
    settings = {"config": " ".join([config.name, *overrides]), "micro": subject.micro}
    settings |= {"data": request.data, "steps": request.steps, "device": _device()}
    settings["configuration_digest"] = _digest(plan)
    bench = _Bench(read, config, request, identity("levers") | {"settings": settings})
    with contextlib.nullcontext() if request.out is None else _opened(request.out):
        bench = _begun(bench)
        try:
            _measure_rows(bench, subject, tuple(overrides))
        except BaseException:  # also who ends it early sees what there is
            for line in table(bench.record(complete=False)):
                say(line)
            raise
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


@contextlib.contextmanager
def _opened(out: Path) -> Iterator[None]:
    """The file of the result, which can be written, and which nobody else goes on with."""
    with held(out):
        require_writable(out)
        yield


def _begun(bench: _Bench) -> _Bench:
    """With what an earlier call has left, which stays as it is until a row is added."""
    out = bench.request.out
    earlier = read_earlier(out, bench.head)
    if out is not None:
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


def _measure_rows(bench: _Bench, subject: Subject, overrides: tuple[str, ...]) -> None:
    above = first_program(overrides, subject)
    for lever in LEVERS:
        row = row_of(lever, above, subject)
        if bench.wants(row):
            for record in _measured(bench, row):
                bench.add(record)
        if not (lever.aside or idle(lever, subject)):
            above = below(row, above, bench.failed(row))


def _measured(bench: _Bench, row: Row) -> Iterator[Record]:
    """A row as it is known so far, and once more where its second call says more."""
    record = row.described()
    if row.skipped:
        yield record | {"status": "skipped", "reason": row.skipped}
        return
    record["date"] = now()
    say(f"{row.lever.name}: {row.lever.adds}")
    # What a killed row's compilers still write must not end the rows that follow.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        record |= _called(bench, row, Path(folder), bench.request.steps)
        if not record.get("compile_seconds"):
            yield record
            return
        yield record | {"compile_seconds_cached": None, "not_cached": "the second call was cut off"}
        yield record | _cached(_called(bench, row, Path(folder), 1))


def _called(bench: _Bench, row: Row, folder: Path, steps: int | None) -> Record:
    """What a row's process has come to, which kept to the configuration and the code of all."""
    bench.require_same()
    out = folder / "train.json"
    ended = call(_arguments(bench, row, out, steps), bench.request.seconds, _environment(folder))
    bench.require_same()
    return _judged(bench, ended, out)


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
    bench.require_comparable(train)
    (result,) = train["results"]
    if remarks := result.get("remarks"):  # what went on without a lever
        return {"status": "failed", "reason": remarks[0], "train": train}
    return {"status": "measured", **_figures(result), **dict.fromkeys(_GAINS), "train": train}


def _figures(result: Record) -> Record:
    memory = result["memory"]
    return {
        "images_per_s": result["images_per_s"],
        "ms_per_step": result["average_ms_per_step"],
        "peak_memory": memory["resident"] if memory["reserved"] is None else memory["reserved"],
        "peak_of": "resident" if memory["reserved"] is None else "reserved",
        "compile_seconds": sum(result["compiled"]["seconds"].values()),
    }
