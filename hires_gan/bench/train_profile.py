"""Which kernels a phase runs on the GPU, by torch.profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Activity:
    """One kernel, copy or fill on the GPU; times in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel in an average step; the share is that of the sum of all kernels' times."""

    name: str
    calls_per_step: float
    ms_per_step: float
    share: float


def profiled(work: Callable[[], object], device: torch.device) -> list[Activity]:
    """What the GPU does for some work."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    return activities(profiler.events() or ())


def activities(events: Iterable[Any]) -> list[Activity]:
    """Those of a profiler's events that are work of the GPU, and not spans of it that have a name."""
    return [
        Activity(event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]


def busy_ms(work: Iterable[Activity]) -> float:
    """How long at least one of them ran."""
    total, reached = 0.0, float("-inf")
    for one in sorted(work, key=lambda one: one.start):
        total += max(0.0, one.end - max(one.start, reached))
        reached = max(reached, one.end)
    return total / 1e3


def kernels(phases: Mapping[str, tuple[int, list[Activity]]]) -> list[Kernel]:
    """The kernels of an average step, those that take longest first; none has a share where the clock saw none run.

    Args:
        phases: Interval and work of one call of each.
    """
    calls: defaultdict[str, float] = defaultdict(float)
    spent: defaultdict[str, float] = defaultdict(float)
    for interval, work in phases.values():
        for one in work:
            calls[one.name] += 1 / interval
            spent[one.name] += (one.end - one.start) / 1e3 / interval
    total = sum(spent.values())
    longest = sorted(spent, key=lambda name: -spent[name])
    return [Kernel(name, calls[name], spent[name], spent[name] / total if total else 0.0) for name in longest]
