"""The clocks of `hires-gan bench train`, in seconds that are only thought of: a GPU's queue, and a loader that decodes
ahead and may be too slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hires_gan.bench import train_measure, train_queue, train_steps
from hires_gan.bench.train_images import Images
from hires_gan.bench.train_queue import queued
from hires_gan.bench.train_steps import Timing, time_phase, time_steps

CPU = torch.device("cpu")


# A GPU's queue


class Gpu:
    """Runs what is launched, in order, as soon as it is launched and the work before it is done.

    Args:
        launching: Seconds that Python takes to launch a call.
        computing: Seconds that the GPU takes for it.
    """

    def __init__(self, launching: float, computing: float) -> None:
        self.launching, self.computing, self.now, self.done = launching, computing, 0.0, 0.0
        self.device = torch.device("cuda")

    def alone(self, phase: object, batch: object) -> None:
        """A call of a phase."""
        self.now += self.launching
        self.done = max(self.done, self.now) + self.computing

    def synchronize(self, device: torch.device) -> None:
        self.now = max(self.now, self.done)

    def event(self, enable_timing: bool) -> Any:
        mark = SimpleNamespace(at=0.0)
        mark.record = lambda: setattr(mark, "at", max(self.now, self.done))
        mark.elapsed_time = lambda other: 1e3 * (other.at - mark.at)
        return mark


@pytest.mark.parametrize(("launching", "computing", "each"), [(1.0, 4.0, 4.0), (1.0, 0.25, 1.0)])
def test_a_call_is_timed_with_its_own_gap(
    launching: float, computing: float, each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python is ahead there is none; where it is not, one before each call. The first call is not measured."""
    gpu = Gpu(launching, computing)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    assert time_phase(gpu, None, None, 4) == pytest.approx(each)  # type: ignore[arg-type]


def test_on_a_cpu_a_call_is_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = SimpleNamespace(now=0.0), iter([7.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(train_steps, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    stand = SimpleNamespace(device=CPU, alone=lambda *_: setattr(clock, "now", clock.now + next(taken)))
    assert time_phase(stand, None, None, 4) == 2.5  # type: ignore[arg-type]


# A loader


class Decoded:
    """A feed whose loader makes one batch after the other, in its own process, and has so many of them begun."""

    SLOTS = 4

    def __init__(self, seconds: float, numbers: Iterator[int], clock: SimpleNamespace) -> None:
        self.waited, self.dropped = 0.0, 0
        self._seconds, self._clock, self._done = seconds, clock, 0.0
        self._batches = self._loaded(numbers)

    def take(self) -> int:
        begun = self._clock.now
        number = next(self._batches)
        self.waited += self._clock.now - begun
        return number

    def copy_ahead(self) -> None:
        """They lie where they are wanted."""

    def lost(self) -> float:
        return self.waited

    def _loaded(self, numbers: Iterator[int]) -> Iterator[int]:
        pending: deque[tuple[int, float]] = deque()
        for number in numbers:
            self._done = max(self._done, self._clock.now) + self._seconds
            pending.append((number, self._done))
            if len(pending) == self.SLOTS:
                number, ready = pending.popleft()
                self._clock.now = max(self._clock.now, ready)
                yield number


class Stepping:
    """A stand whose steps take a second, on numbered batches."""

    device, plan, images = CPU, None, Images("synthetic")

    def __init__(self, clock: SimpleNamespace) -> None:
        self.place, self.steps, self._clock = SimpleNamespace(at=lambda step: step, stage=None), 0, clock
        self.seen: list[int] = []

    def step(self, feed: Any) -> None:
        self.seen.append(feed.take())
        self._clock.now += 1.0
        self.steps += 1


def timed(decoding: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Timing, Stepping]:
    """Some steps behind a warm-up, and behind a break in which the loader could decode all that it may."""
    clock = SimpleNamespace(now=0.0)

    @contextmanager
    def opened(
        plan: object, images: object, stage: object, numbers: Iterator[int], device: object
    ) -> Iterator[Decoded]:
        yield Decoded(decoding, numbers, clock)

    monkeypatch.setattr(train_queue, "supply", opened)
    monkeypatch.setattr(train_steps, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    stand: Any = Stepping(clock)
    with queued(stand) as feed:
        for _ in range(8):
            stand.step(feed)
        clock.now += 100.0
        train_measure._settle(stand, feed)
        return time_steps(stand, feed, steps), stand


@pytest.mark.parametrize("steps", [1, 2, 32])
def test_where_the_loader_is_slower_its_rate_is_measured(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it had decoded before: a batch in five seconds, four of which a step waits."""
    timing, _ = timed(5.0, steps, monkeypatch)
    assert (timing.seconds, timing.lost) == pytest.approx((5.0 * steps, 4.0 * steps))


@pytest.mark.parametrize("steps", [1, 2, 32])
def test_where_the_loader_is_faster_no_step_waits(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timing, _ = timed(0.75, steps, monkeypatch)
    assert (timing.seconds, timing.lost) == pytest.approx((1.0 * steps, 0.0))


def test_what_was_decoded_before_is_dropped_and_what_follows_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stand = timed(5.0, 3, monkeypatch)
    assert stand.seen == [*range(8), *range(11, 15)], "three had been begun; one step more is not timed"
