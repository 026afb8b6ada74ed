"""What this process is doing: told by the training loop, and read by the thread that watches it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Activity:
    """What the training thread is doing at a moment.

    Attributes:
        name: In a word or two, such as `phase: generator`.
        since: When it began, by `time.monotonic`.
        waits: Whether it waits for the other processes.
        progress: A count that grows whenever something begins, ends or gets on.
        meetings: How often it has met the others so far, this time included. All processes meet in the same order, so
            that the one with the lowest count is the farthest behind.
    """

    name: str
    since: float
    waits: bool
    progress: int
    meetings: int


class _Record:
    """Written by the training thread alone; one for the process, since it trains one run at a time."""

    def __init__(self) -> None:
        self.doing = [("start", time.monotonic(), False)]
        self.progress = self.meetings = 0


_record = _Record()


def current() -> Activity:
    """What the training thread is doing now; to be asked from any thread."""
    name, since, waits = _record.doing[-1]
    return Activity(name, since, waits, _record.progress, _record.meetings)


@contextmanager
def doing(name: str, waits: bool = False) -> Iterator[None]:
    """Do something that has a name, inside of what is being done already; entering and leaving it is progress.

    Args:
        name: In a word or two.
        waits: Whether it waits for the other processes; `waiting` says so.
    """
    _record.doing.append((name, time.monotonic(), waits))
    _record.progress += 1
    try:
        yield
    finally:
        _record.doing.pop()
        _record.progress += 1


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """Meet all other processes: wait until each has come to the same point, and has told what it has to tell."""
    _record.meetings += 1
    with doing(name, waits=True):
        yield


def progressing() -> None:
    """Say that something long gets on; called from inside its loop."""
    _record.progress += 1
