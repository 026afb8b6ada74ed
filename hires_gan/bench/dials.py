"""Both dials of `performance`, trained with the same seeds: do their curves differ by more than those of two seeds?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hires_gan.bench.children import Ended, start
from hires_gan.bench.dials_curves import LEVEL, Apart, Curve, apart, compared, limit
from hires_gan.bench.identity import NAME_THE_COMMIT, UNKNOWN, identity, say_unknown_commit
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

DIALS = ("fast", "reference")
_STOPPED = 75
_GRACE = 120.0
"""Seconds from the signal to the end of a run, at most: it writes a checkpoint."""
_LEAST = 60.0
"""Seconds that a run which goes on is given, at least: in fewer it may not come to its first step."""
_SAME = ("gpu.name", "cpu.model", "git.commit", "git.dirty", "code.digest", "version.torch", "version.cuda")
"""What all runs must have in common."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to train.

    Attributes:
        out: The folder of everything; what was trained there before is kept.
        seconds: How long each run trains, from its start; None: to the configuration's `run.total_kimg`. One that was
            stopped before goes on for what is left of them, or a minute if that is more; but what was trained by a call
            that failed or was killed, and so may have lost it, is not counted.
        seeds: At least two of them tell how far apart two seeds are.
        runs: So many at most are trained now; None: all.
    """

    out: Path
    seconds: float | None = 480.0
    seeds: tuple[int, ...] = (0, 1)
    runs: int | None = None


@dataclass(frozen=True)
class Trained:
    """A run, trained or yet to be."""

    dial: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name

    @property
    def trained_on(self) -> Path:
        """Where it is kept which code trains it on what, beside its log."""
        return self.folder.parent.parent / f"{self.name}.json"

    @property
    def machine(self) -> Record:
        """What `identity` said when it was begun; nothing if it was not."""
        return _read(self.trained_on)

    @property
    def status(self) -> Record:
        """What the run says of itself; nothing if it was not begun."""
        return _read(self.folder / "status.json")

    @property
    def timed(self) -> Path:
        """Where it is kept when the last call began to train it, after how many seconds, and if its time is up."""
        return self.folder.parent.parent / f"{self.name}.time.json"

    @property
    def seconds(self) -> float:
        """How long it was trained by calls whose training a checkpoint keeps."""
        times, status = _read(self.timed), self.status
        if not status:  # deleted, and begun anew
            return 0.0
        own = status["time"] - times["begun"] if _stopped(status, times) else 0.0
        return float(times.get("seconds", 0.0) + own)

    @property
    def done(self) -> bool:
        """Whether it has ended as it should: by itself, or behind a checkpoint as its time was up.

        Whoever else stops it leaves the same status, so that this does not tell.
        """
        times, status = _read(self.timed), self.status
        return status.get("state") == "finished" or (_stopped(status, times) and times["up"])

    def begin(self) -> None:
        """Keep that it is trained from now on."""
        write_record(self.timed, {"seconds": self.seconds, "begun": time.time(), "up": False})

    def end(self) -> None:
        """Keep that its time is up; to be called before it is stopped, so that it is known whatever comes then."""
        write_record(self.timed, _read(self.timed) | {"up": True})


def _read(path: Path) -> Record:
    """What a JSON file holds; nothing if it is not there."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(path.read_text()))
    return {}


def _stopped(status: Record, times: Record) -> bool:
    """Whether a signal ended the last call's training behind a checkpoint; an older status is of a call before."""
    return bool(status.get("state") == "preempted" and status["time"] >= times.get("begun", math.inf))


def bench_dials(config: Path, overrides: Sequence[str], request: Request) -> Record:
    """Train each dial with each seed, one run after the other, and compare their curves.

    What was compared in the folder before stays there until more can be compared.

    Args:
        config: The configuration's file, which has been read without an error.
        overrides: Settings that replace those of the file, in every run.
        request: What to train.

    Returns:
        What is written to `dials.json`: the head, `settings`, `runs`, `complete`, and once all are trained `metrics`,
        `level`, `limit`, `equal`, `differ` and `undecided`.

    Raises:
        UsageError: The arguments cannot be, or the folder holds runs of other settings, or of another GPU, CPU,
            commit, code or version of torch, or of a commit that is not known, while some are yet to be trained.
        Failure: A run fails, they have no point in common, or the result cannot be written.
    """
    _check(request)
    runs = [Trained(*key, request.out / "runs" / f"{key[0]}-{key[1]}") for key in _keys(request)]
    text = " ".join([config.name, *overrides])
    settings = {"config": text, "seconds": request.seconds, "seeds": list(request.seeds)}
    _make(request.out)
    out, before = request.out / "dials.json", _before(request.out)
    _refuse_others(request.out, before, settings)
    head = identity("dials") | {"settings": settings}
    _open(out, before, head)
    waiting = [run for run in runs if not run.done][: request.runs]
    if waiting:
        _refuse_other_machines(runs, head)
        say_unknown_commit(head)
    for run in waiting:
        _train(run, config, overrides, request, head)
    record = head | {"runs": [_described(run) for run in runs], "complete": all(run.done for run in runs)}
    if record["complete"]:
        record |= _compared(runs, request)
    if record["complete"] or not before.get("complete"):
        write_record(out, record)
    return record


def _check(request: Request) -> None:
    if len(set(request.seeds)) < len(request.seeds) or not request.seeds:
        raise UsageError(f"--seeds is {','.join(map(str, request.seeds))}; different whole numbers are allowed")
    if request.seconds is not None and request.seconds <= 0:
        raise UsageError(f"--seconds is {request.seconds:g}; a number above 0 is allowed")
    if request.runs is not None and request.runs < 0:
        raise UsageError(f"--runs is {request.runs}; 0 or more are allowed")


def _keys(request: Request) -> Iterator[tuple[str, int]]:
    """Seed by seed, so that a dial is never measured on another hour than the other one."""
    for seed in request.seeds:
        for dial in DIALS:
            yield dial, seed


def _make(folder: Path) -> None:
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out is {folder}, which cannot be made: {error.strerror}") from None


def _before(folder: Path) -> Record:
    """What an earlier call has left; nothing if there was none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "dials.json").read_text())
        return found if isinstance(found, dict) and "settings" in found else {}
    return {}


def _open(out: Path, before: Record, head: Record) -> None:
    """See that the result can be written; other settings are refused from now on."""
    if before:
        require_writable(out)
    else:
        write_record(out, head | {"complete": False})


def _refuse_others(folder: Path, before: Record, settings: Record) -> None:
    """Runs of other settings are not to be compared with those to come."""
    made = before.get("settings", {})
    if made and any(made[key] != settings[key] for key in ("config", "seconds")):
        length = "" if made["seconds"] is None else f" for {made['seconds']:g} seconds"
        raise UsageError(f"--out is {folder}, which was made with {made['config']}{length}: give another folder")


def _refuse_other_machines(runs: Sequence[Trained], head: Record) -> None:
    """What differs between two runs has to be their dial or their seed."""
    for run in runs:
        for name in _SAME if run.machine else ():
            before, now = run.machine.get(name), head.get(name)
            if before != now:
                raise UsageError(
                    f"{run.trained_on} says that {run.name} was trained with {name} {before}, and here it is {now}: "
                    "train all runs with one, or give another folder as --out"
                )
        if run.machine and head["git.commit"] == UNKNOWN:
            raise UsageError(
                f"{run.trained_on} says that {run.name} was trained with a commit that is not known, as it is not "
                f"known here: give another folder as --out, and {NAME_THE_COMMIT}"
            )


def _train(run: Trained, config: Path, overrides: Sequence[str], request: Request, head: Record) -> None:
    say(f"training {run.name}")
    if not run.machine:
        write_record(run.trained_on, head)
    own = [f"performance={run.dial}", f"run.seed={run.seed}", f"run.name={run.name}", "tracking.uri=null"]
    where = [f"run.dir={run.folder.parent}"]
    log = request.out / f"{run.name}.log"
    # Its records belong here, whatever server others go to.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    run.begin()
    process = start(["train", config, *overrides, *own, *where], log, environment)
    code = _ended(process, _left(run, request.seconds), run.end)
    if code == _STOPPED and not run.done:
        raise Failure(f"{run.name} was stopped before its end: the same command goes on with it")
    if code not in (0, _STOPPED) or not run.done:
        reason = Ended(code, log.read_text(errors="replace")).reason
        raise Failure(f"{run.name} ended with exit code {code} ({reason}): {log} says more")


def _left(run: Trained, seconds: float | None) -> float | None:
    """How long a run is to be trained now."""
    return None if seconds is None else max(seconds - run.seconds, min(seconds, _LEAST))


def _ended(process: subprocess.Popen[bytes], seconds: float | None, up: Callable[[], None]) -> int | None:
    """The exit code, behind `up` and a signal when the time is; whatever comes, the process does not outlive this.

    Where this one is stopped itself, the other has time for its checkpoint, too: what it has trained counts.
    """
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        up()
        return _stop(process)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> int | None:
    """Let a run write its checkpoint and end; None if it has to be killed."""
    if process.poll() is not None:
        return process.poll()
    try:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_GRACE)
        return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _described(run: Trained) -> Record:
    status = run.status
    found = {key: status.get(key) for key in ("state", "nimg")}
    return {"name": run.name, "dial": run.dial, "seed": run.seed, **found, "trained_on": run.machine}


def _compared(runs: Sequence[Trained], request: Request) -> Record:
    """How far apart they are, and their curves as a page and a picture."""
    from hires_gan.evaluation.catalogue import METRICS
    from hires_gan.tracking.comparison.command import compare

    higher = {name for name, metric in METRICS.items() if metric.better == "higher"}
    folders = [str(run.folder) for run in runs]
    list(compare(folders, request.out, None, None, higher))  # each file is written when its line is asked for
    found = _metrics(runs, _curves(folders, higher))
    most = limit(len(request.seeds), len(found))
    told = {name: one.differs(most) for name, one in found.items()}
    return {
        "metrics": {
            name: dataclasses.asdict(one) | {"ratio": one.ratio, "differs": told[name]} for name, one in found.items()
        },
        "level": LEVEL,
        "limit": most,
        "equal": all(one.equal for one in found.values()),
        "differ": [name for name, differs in told.items() if differs],
        "undecided": None in told.values(),
    }


def _curves(folders: Sequence[str], higher: set[str]) -> list[dict[str, Curve]]:
    """By run, the points of each metric."""
    from hires_gan.tracking.comparison.content import read_comparison

    runs = read_comparison(folders, None, None, higher).runs
    return [{name: (curve.steps, curve.values) for name, curve in run.curves.items()} for run in runs]


def _metrics(runs: Sequence[Trained], curves: Sequence[dict[str, Curve]]) -> dict[str, Apart]:
    shared = [name for name in compared(list(curves[0])) if all(name in own for own in curves)]
    found = {}
    for name in shared:
        one = apart(name, {(run.dial, run.seed): own[name] for run, own in zip(runs, curves, strict=True)})
        if one is not None:
            found[name] = one
    if not found:
        raise Failure(
            "the runs have no point in common: train longer (--seconds), or log more often (tracking.every_kimg, "
            "evaluation.every_kimg)"
        )
    return found


def table(record: Record, out: Path) -> Iterator[str]:
    """The result for people."""
    for run in record["runs"]:
        yield f"{run['name']:16}{run['state'] or 'not trained yet':16}{(run['nimg'] or 0) / 1000:>10.1f} kimg"
    if not record["complete"]:
        yield "the same command again trains what is left"
        return
    yield ""
    yield f"{'metric':32}{'points':>8}{'dials':>12}{'seeds':>12}{'ratio':>8}"
    for name, one in record["metrics"].items():
        yield _line(name, one)
    yield _verdict(record)
    yield from (str(out / name) for name in ("dials.json", "comparison.html", "comparison.png"))


def _line(name: str, one: Record) -> str:
    seeds = "-" if one["seeds"] is None else f"{one['seeds']:.4g}"
    ratio = "-" if one["ratio"] is None else f"{one['ratio']:.2f}"
    note = "equal" if one["equal"] else {True: "differs", False: "", None: ""}[one["differs"]]
    return f"{name:32}{one['points']:>8}{one['dials']:>12.4g}{seeds:>12}{ratio:>8}  {note}".rstrip()


def _verdict(record: Record) -> str:
    if record["equal"]:
        return "fast and reference have the same curves, bit by bit"
    if record["undecided"]:
        return "one seed does not tell how far apart two are: train at least two (--seeds 0,1)"
    chance = (
        f"{record['limit']:.2f} times the distance of two seeds, which {len(record['settings']['seeds'])} seeds and "
        f"{len(record['metrics'])} metrics exceed by chance in {record['level']:.0%} of all comparisons at most"
    )
    if record["differ"]:
        return f"fast and reference are farther apart in {', '.join(record['differ'])} than {chance}"
    return f"fast and reference are in no metric farther apart than {chance}"
