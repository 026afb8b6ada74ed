"""How long each process's steps take by themselves, and which process the others wait for, step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median_low

import torch

from hires_gan.training.activity import waiting

SLOW = 1.5
"""Times the median from which on the slowest process is worth a word."""
PATIENCE = 3
"""Logs in a row for which it has to be the slowest before it gets one."""
_MOST = 1000
"""Steps that are measured between two readings: on a GPU, each leaves some events behind."""


class Clock:
    """Adds up stretches of the device's time. Reading it is all that waits for the device.

    Args:
        device: On a CUDA device, a stretch is one of its current stream; elsewhere, of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure what is done inside."""
        if self._device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._events.append((first, last))
            return
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start

    def read(self) -> float:
        """Seconds since the last reading."""
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(float(first.elapsed_time(last)) for first, last in self._events) / 1000
        self._events, self._seconds = [], 0.0
        return seconds


@dataclass(frozen=True)
class Own:
    """What steps took of a process itself.

    Attributes:
        seconds: Of a step on average, without those in which it waited for others.
        samples: Its own, of a step on average.
    """

    seconds: float
    samples: float


class Pace:
    """Measures the steps of this process, and what it waits for others in them.

    Args:
        device: Where it computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._steps, self._waits = Clock(device), Clock(device)
        self._count = self._samples = 0
        self._inside = False

    @contextmanager
    def step(self, samples: int) -> Iterator[None]:
        """Do a step, in which this process has so many samples; one without any is not measured."""
        if not samples or self._count >= _MOST:
            yield
            return
        self._inside = True
        try:
            with self._steps.measured():
                yield
            self._count, self._samples = self._count + 1, self._samples + samples
        finally:
            self._inside = False

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Meet the others, as `activity.waiting`: what that takes is not this process's own."""
        with waiting(name), self._waits.measured() if self._inside else nullcontext():
            yield

    def lap(self) -> Own | None:
        """The steps since the last lap; None if none was measured."""
        steps, waits, count = self._steps.read(), self._waits.read(), self._count
        own = Own(max(0.0, steps - waits) / count, self._samples / count) if count else None
        self._count = self._samples = 0
        return own


@dataclass(frozen=True)
class Spread:
    """How far apart the processes are.

    Attributes:
        slowest: The rank of the slowest.
        slowest_seconds: Its own seconds per step.
        median_seconds: The median; of an even number of processes the lower one of the two in the middle, so that of
            two processes the slow one is not half of what it is compared with.
        excess: The slowest's seconds over the median's, and over what it has more to do than that one, if anything.
    """

    slowest: int
    slowest_seconds: float
    median_seconds: float
    excess: float

    @property
    def words(self) -> str:
        """For the status line."""
        return f"slowest rank {self.slowest} at {self.slowest_seconds / max(self.median_seconds, 1e-9):.2f}x the median"

    @property
    def metrics(self) -> dict[str, float]:
        """As they are recorded."""
        return {
            "ranks/slowest": self.slowest,
            "ranks/slowest_seconds": self.slowest_seconds,
            "ranks/median_seconds": self.median_seconds,
        }


def spread(paces: Sequence[Own | None]) -> Spread | None:
    """Compare the processes that have samples.

    Args:
        paces: By rank; None for those that measured no step.

    Returns:
        None if fewer than two have.
    """
    measured = {rank: own for rank, own in enumerate(paces) if own is not None}
    if len(measured) < 2:
        return None
    slowest = max(measured, key=lambda rank: measured[rank].seconds)
    median = median_low(own.seconds for own in measured.values())
    more = max(1.0, measured[slowest].samples / median_low(own.samples for own in measured.values()))
    seconds = measured[slowest].seconds
    return Spread(slowest, seconds, median, seconds / max(median, 1e-9) / more)


class Stragglers:
    """Finds a process that is much slower than the others, log after log.

    Args:
        hosts: The machines, by rank.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._rank, self._row = -1, 0

    def look(self, found: Spread | None) -> str | None:
        """Take the spread of one more log.

        Returns:
            A sentence, once when the same process has been slow for some logs in a row.
        """
        if found is None or found.excess <= SLOW:
            self._rank, self._row = -1, 0
            return None
        self._row = self._row + 1 if found.slowest == self._rank else 1
        self._rank = found.slowest
        return self._sentence(found) if self._row == PATIENCE else None

    def _sentence(self, found: Spread) -> str:
        return (
            f"rank {found.slowest} ({self._hosts[found.slowest]}) holds up the others: its own part of a step takes "
            f"{found.slowest_seconds:.3g} s, and the median {found.median_seconds:.3g} s; look there for another "
            "program, a GPU that is throttled, or slow data"
        )
