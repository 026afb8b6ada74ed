"""How fast images reach the trainer: our loader, the limits of the same machine, and what a user would pick instead.

All are measured in one run, on the same images, in rounds that begin with another of them each time, since other work
on the machine comes and goes; medians count, and a share is the median of the rounds' own shares.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hires_gan.bench.identity import identity
from hires_gan.bench.input_contestants import Contestant, Measurement, Task, measured
from hires_gan.bench.input_images import describe, in_every_form, make_shards, sample_of, stored
from hires_gan.bench.input_limits import reading_alone, reading_cold
from hires_gan.bench.input_loaders import Decoder, contestants, usable_decoders
from hires_gan.bench.input_peers import peers
from hires_gan.bench.input_result import Result, Row, figures, rows_of, table
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.data.manifest import IMAGE
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar, say
from hires_gan.settings import is_power_of_two

__all__ = ["Request", "Result", "Row", "bench_input", "figures", "table"]

MOST_ROUNDS = 7
_ROUND = 4.0
"""Seconds of a round, where there are that many."""
_COPIED = 1000
"""Images of a set that are copied, so that peers can read the same."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        shards: A shard folder; None for sets made of scikit-image's photographs in a temporary folder.
        resolutions: The sides at which the images are wanted: a table for each.
        workers: Processes of every contestant, or threads of its decoder.
        batch: Images in a batch.
        seconds: How long to measure each contestant, in all rounds together.
        decoders: Names of those to measure; empty for all that this machine has.
        peers: Whether to measure what a user would pick instead.
        out: Where to write the result as JSON, with the machine, the versions, the commit and the date.
    """

    shards: Path | None
    resolutions: tuple[int, ...]
    workers: int
    batch: int = 32
    seconds: float = 20.0
    decoders: tuple[str, ...] = ()
    peers: bool = True
    out: Path | None = None

    @property
    def rounds(self) -> int:
        """How often each is measured."""
        return max(1, min(MOST_ROUNDS, int(self.seconds / _ROUND)))


@dataclass(frozen=True)
class _Field:
    """The images of one table, and who takes part."""

    shown: str
    contestants: list[Contestant]


def bench_input(request: Request) -> list[Result]:
    """Measure all at every resolution.

    Returns:
        A table for each resolution.

    Raises:
        UsageError: The arguments cannot be, or there is no such shard set.
        Failure: The images cannot be read or decoded, or the result cannot be written.
    """
    _check(request)
    decoders = usable_decoders(request.decoders)
    if request.out is not None:
        require_writable(request.out)
    head, results = _head(request), list[Result]()
    for resolution in request.resolutions:
        results.append(_at(resolution, request, decoders))
        if request.out is not None:
            found = [asdict(result) | {"figures": figures(result)} for result in results]
            state = {"results": found, "complete": len(results) == len(request.resolutions)}
            write_record(request.out, head | state)
    return results


def _head(request: Request) -> dict[str, Any]:
    settings = {"workers": request.workers, "batch": request.batch, "rounds": request.rounds}
    load = round(os.getloadavg()[0], 2)
    return identity("input") | settings | {"seconds": request.seconds, "load_average_before": load}


def _check(request: Request) -> None:
    for resolution in request.resolutions:
        if resolution < 4 or not is_power_of_two(resolution):
            raise UsageError(f"--resolution is {resolution}; a power of two from 4 up is allowed, such as 1024")
    if not request.resolutions:
        raise UsageError("--resolution is empty; name a power of two, such as 1024")
    if not 1 <= request.workers <= 256:
        raise UsageError(f"--workers is {request.workers}; 1 to 256 are allowed")
    if not 1 <= request.batch <= 4096:
        raise UsageError(f"--batch is {request.batch}; 1 to 4096 are allowed")
    if not request.seconds > 0:
        raise UsageError(f"--seconds is {request.seconds:g}; a positive number is allowed")
    if request.shards is not None:
        opened = ShardSet(request.shards)
        for resolution in request.resolutions:
            stored(opened, resolution)


def _at(resolution: int, request: Request, decoders: Sequence[Decoder]) -> Result:
    with tempfile.TemporaryDirectory(prefix="hires-gan-bench-") as temporary:
        field = _field(resolution, request, decoders, Path(temporary))
        task = Task(resolution, request.workers, request.batch, request.seconds / request.rounds)
        say(f"{field.shown}; {task.workers} processes each, batches of {task.batch}")
        rounds = _rounds(field.contestants, task, request.rounds)
        return Result(resolution, field.shown, rows_of(field.contestants, rounds))


def _field(resolution: int, request: Request, decoders: Sequence[Decoder], folder: Path) -> _Field:
    """Make or copy the images where that is needed."""
    place, column, side, with_peers = _images(resolution, request, folder)
    shards = ShardSet(place)
    shown = describe(shards, request.shards is None, column, side)
    if request.shards not in (None, place):
        shown = shown.replace(str(place), f"{request.shards}, copied for this")
    field = sorted(
        (one for decoder in decoders for one in contestants(decoder, place)), key=lambda one: one.kind != "limit"
    )
    field += [
        Contestant("reading alone, cached", "disk", functools.partial(reading_alone, place)),
        Contestant("reading alone, from disk", "disk", functools.partial(reading_cold, place)),
    ]
    if with_peers:
        forms = folder / "forms"
        forms.mkdir()
        field += peers(in_every_form(shards, forms), "dali-cpu" in decoders)
    return _Field(shown, field)


def _images(resolution: int, request: Request, folder: Path) -> tuple[Path, str, int, bool]:
    """The set to read, the column and side of its images, and whether the peers can read the same."""
    made = folder / "shards"
    made.mkdir()
    if request.shards is None:
        return make_shards(made, resolution), IMAGE, resolution, request.peers
    opened = ShardSet(request.shards)
    column, side = stored(opened, resolution)
    if request.peers and side == resolution:
        return sample_of(opened, column, side, _COPIED, made), IMAGE, side, True
    if request.peers:
        say(
            f"at {resolution} the loader halves images of {side}, for want of a level of {resolution}: peers, which do "
            "not, are left out"
        )
    return request.shards, column, side, False


def _rounds(field: list[Contestant], task: Task, rounds: int) -> list[dict[str, Measurement]]:
    """Measure each contestant once in every round, each round beginning with the next of them."""
    out: set[str] = set()
    found: list[dict[str, Measurement]] = []
    with ProgressBar(f"measuring at {task.resolution}", rounds * len(field), "measurements") as bar:
        for number in range(rounds):
            first = number * len(field) // rounds
            found.append({})
            for one in field[first:] + field[:first]:
                if one.name not in out:
                    with contextlib.suppress(_LeftOutError):
                        found[-1][one.name] = _one(one, task, out)
                bar.advance()
    return found


class _LeftOutError(Exception):
    """A contestant cannot be measured here."""


def _one(contestant: Contestant, task: Task, out: set[str]) -> Measurement:
    """Measure; what fails and is not ours is left out from then on, and said.

    Raises:
        Failure: If a limit or our own loader fails.
    """
    try:
        return measured(contestant, task)
    except Failure as error:
        if contestant.kind in ("limit", "loader"):
            raise
        out.add(contestant.name)
        say(f"not measured: {error}")
        raise _LeftOutError from None
