"""Processes that measure together: each makes and describes its part of the images, and the first one compares.

Images go through networks in chunks that follow from their number alone, and a chunk is one process's: whatever the
number of processes, the same chunks are computed, and the results are the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped
from hires_gan.errors import Failure
from hires_gan.evaluation.memory import telling_no_room

T = TypeVar("T")

SIGN = 2.0
"""Seconds between two signs of life of a process for which the others wait."""


class Crew(Protocol):
    """The processes, as this one sees them."""

    @property
    def rank(self) -> int:
        """This one's number, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def neighbours(self) -> int:
        """How many of them run on this machine."""

    @property
    def first(self) -> bool:
        """Whether this is the one that compares."""

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process; all of them have to ask."""

    def collected(self, rows: Tensor) -> list[Tensor] | None:
        """What each process gives, by rank, on the first one; None on the others. All of them have to take part."""

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, by rank: plain JSON values; all of them have to take part."""

    def together(self) -> AbstractContextManager[None]:
        """Do something that may fail on some process: then it fails on all of them, and the first one says why."""


class Alone:
    """One process by itself."""

    rank, size, neighbours, first = 0, 1, 1, True

    def any(self, flag: bool) -> bool:
        """Whether it is true of this process."""
        return flag

    def collected(self, rows: Tensor) -> list[Tensor] | None:
        """What this process gives."""
        return [rows]

    def gathered(self, value: Any) -> list[Any]:
        """What this process gives."""
        return [value]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Just do it."""
        yield


def in_step(crew: Crew, work: Callable[[], T]) -> T:
    """Do a part of what all do; if one of them gives up or fails, all of them do.

    Args:
        crew: The processes; all have to come here.
        work: This one's part, in which it meets none of the others.

    Raises:
        Stopped: If it was raised in any of them.
        UsageError, Failure: If any of them failed, or its GPU had no room, on the first process; on the others what
            ends them without a word.
    """
    done: list[T] = []
    with crew.together(), contextlib.suppress(Stopped), telling_no_room():
        done.append(work())
    if crew.any(not done):
        raise Stopped
    return done[0]


def by_first(crew: Crew, work: Callable[[Asked], T], stopped: Asked) -> T | None:
    """Do what only the first process does, while the others wait for it, however long it takes.

    Whenever `SIGN` seconds have passed, the first one meets the others from within the question whether to stop. So
    none of them waits at one go for longer than the work takes between two such questions, and a stop that any of them
    hears is obeyed as soon.

    Args:
        crew: The processes; all have to come here.
        work: The first one's; it asks again and again whether to stop, and raises `Stopped` then. It meets none of the
            others but by asking, and asks in the thread in which it was called.
        stopped: Whether to stop, as this process knows it.

    Returns:
        What came of it, on the first process; None on the others.

    Raises:
        Stopped: If `stopped` became true in any of them.
        UsageError, Failure: As `in_step` does.
    """
    meetings = _Meetings(crew, stopped)
    return in_step(crew, lambda: meetings.lead(work) if crew.first else meetings.follow())


class _Meetings:
    """Those of one piece of work of the first process; the last one is when it is over."""

    def __init__(self, crew: Crew, stopped: Asked) -> None:
        self._crew, self._stopped = crew, stopped
        self._last, self._over = time.monotonic(), False

    def lead(self, work: Callable[[Asked], T]) -> T:
        """Work, and meet the others meanwhile, and once more at the end."""
        try:
            with telling_no_room():
                found = work(self._asked)
        except (Stopped, Failure):  # with anything else this process ends, which the others notice
            self._end()
            raise
        self._end()
        return found

    def _asked(self) -> bool:
        if self._over or time.monotonic() - self._last < SIGN:
            return self._over or self._stopped()
        self._over = self._crew.any(self._stopped())
        self._last = time.monotonic()
        return self._over

    def _end(self) -> None:
        if not self._over:
            self._crew.any(True)

    def follow(self) -> None:
        """Meet the first one until its work is over.

        Raises:
            Stopped: If this process is to stop.
        """
        wanted = self._stopped()
        while not self._crew.any(wanted):
            wanted = self._stopped()
        if wanted:
            raise Stopped


def chunks(count: int, length: int) -> list[range]:
    """`count` samples, cut into chunks of `length`; the last one may be shorter."""
    return [range(first, min(first + length, count)) for first in range(0, count, length)]


def own_chunks(count: int, length: int, crew: Crew) -> list[range]:
    """Those that this process computes: all take turns, so that none has more than one chunk more than another."""
    return chunks(count, length)[crew.rank :: crew.size]


def in_order(parts: Sequence[Tensor], count: int, length: int) -> Tensor:
    """The rows of all samples in their order.

    Args:
        parts: Of each process the rows of its own chunks, one behind the other: `[n, ...]`.
        count: How many samples there are.
        length: Of a chunk.
    """
    if len(parts) == 1:
        return parts[0]
    rows = parts[0].new_empty((count, *parts[0].shape[1:]))
    for rank, part in enumerate(parts):
        start = 0
        for chunk in chunks(count, length)[rank :: len(parts)]:
            rows[chunk.start : chunk.stop] = part[start : start + len(chunk)]
            start += len(chunk)
    return rows


def gathered_in_order(rows: Tensor, count: int, length: int, crew: Crew) -> Tensor | None:
    """The rows of all samples in their order, on the first process; None on the others.

    Args:
        rows: Of this process's own chunks, `[n, ...]`.
        count: How many samples there are.
        length: Of a chunk.
        crew: The processes.
    """
    parts = crew.collected(rows)
    return None if parts is None else in_order(parts, count, length)
