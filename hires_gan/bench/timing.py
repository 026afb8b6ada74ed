"""How long work takes on a device: several contestants, in turns, with cold caches; medians over the rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

Launch = Callable[[], object]
"""Starts one piece of the measured work; what it returns is dropped."""
Ready = Callable[[], Sequence[Launch]]
"""Prepares fresh work, unmeasured; its launches, one after the other, are then the measured window."""

_CPU_SCRATCH = 64 * 2**20
"""Bytes that are written before a window, so that the caches hold nothing of it: more than most last-level caches."""
_GPU_SCRATCH = 256 * 2**20
_FEWEST_FILLS, _MOST_FILLS = 4, 256


class Clock(Protocol):
    """Takes the time of a window."""

    def seconds(self, ready: Ready) -> float:
        """How long a launch takes, on average over a window, the caches cold before the first."""


class CpuClock:
    """Wall time."""

    def __init__(self) -> None:
        self._scratch = torch.zeros(_CPU_SCRATCH, dtype=torch.uint8)

    def seconds(self, ready: Ready) -> float:
        """Wall time of the calls."""
        launches = ready()
        self._scratch.add_(1)
        start = time.perf_counter()
        for launch in launches:
            launch()
        return (time.perf_counter() - start) / len(launches)


class CudaClock:
    """Time on the device between two events, without the time in which the device would wait for Python.

    Before the window the stream is filled with writes to a scratch buffer larger than the L2 cache: they leave nothing
    of the window's tensors in it, and keep the device busy until Python has launched the whole window. Where the device
    has passed the first event by then, the window is taken again with more to write before it.

    Args:
        device: The GPU; its current stream is used.
    """

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._scratch = torch.zeros(max(_GPU_SCRATCH, 4 * cache), dtype=torch.uint8, device=device)
        self._fills = _FEWEST_FILLS

    def seconds(self, ready: Ready) -> float:
        """Device time of the launches."""
        while True:
            launches = ready()
            start, end = _event(), _event()
            for _ in range(self._fills):
                self._scratch.add_(1)
            start.record()
            for launch in launches:
                launch()
            end.record()
            overtaken = bool(start.query())  # type: ignore[no-untyped-call]
            end.synchronize()
            if not overtaken or self._fills >= _MOST_FILLS:
                return float(start.elapsed_time(end)) / 1e3 / len(launches)
            self._fills *= 2


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def clock_of(device: torch.device) -> Clock:
    """A clock for a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def warm_up(ready: Ready, times: int = 2) -> None:
    """Do the work unmeasured: code is compiled, libraries choose, the allocator has the memory."""
    for _ in range(times):
        for launch in ready():
            launch()


def take_turns(contestants: Mapping[str, Ready], clock: Clock, rounds: int) -> dict[str, list[float]]:
    """Measure all contestants in every round, each round beginning with the next of them.

    Args:
        contestants: What is measured, by name; warm.
        clock: Of the device on which they run.
        rounds: How often each is measured.

    Returns:
        For every contestant its seconds per launch, round by round.
    """
    names = list(contestants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(clock.seconds(contestants[name]))
    return taken
