"""The feed: what waiting for data is counted, and what becomes of a wait that is given up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hires_gan.data.loader import Loaded
from hires_gan.data.waiting import Stopped
from hires_gan.training.feed import Feed

CPU = torch.device("cpu")


def loaded(device: torch.device = CPU) -> Loaded:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device=device)
    return Loaded(range(2), ("image",), images, torch.zeros(2, dtype=torch.int64))


def test_waiting_for_a_batch_and_pinning_it_are_both_counted(monkeypatch):
    """A clock of our own; without a GPU the stream is none, and what is pinned stays where it is."""
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def batches() -> Iterator[Loaded]:
        pass_time(5.0)
        yield loaded()

    def pin(tensor: Tensor) -> Tensor:
        pass_time(1.0 if tensor.dtype == torch.int64 else 2.0)
        return tensor

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr("hires_gan.training.feed._mark", lambda queue: None)
    feed = Feed(batches(), CPU, torch.float32)
    feed._copy(None)
    assert feed.waited == 8.0


class Simulated:
    """A GPU with two queues, beside a process that launches, and a loader that decodes ahead; all of it in seconds.

    Args:
        loading: Between a batch and the next one.
        launching: In which Python launches a step.
        stepping: In which the GPU computes it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loading: float, launching: float, stepping: float) -> None:
        self.now, self.loading, self.launching, self.stepping = 0.0, loading, launching, stepping
        self.step, self.copies, self.idle = Queue(self), Queue(self), 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, queue: None)
        monkeypatch.setattr("hires_gan.training.feed._mark", Queue.mark)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.step)
        monkeypatch.setattr(torch.cuda, "stream", lambda queue: torch.no_grad())
        self.feed = Feed(self.batches(), CPU, torch.float32)
        self.feed._stream = self.copies

    def batches(self) -> Iterator[Loaded]:
        ready = 0.0
        while True:
            ready = max(ready, self.now - 3 * self.loading) + self.loading  # no more than three are decoded ahead
            self.now = max(self.now, ready)
            self.copies.until = self.now
            yield loaded()

    def run(self, steps: int) -> None:
        for number in range(steps):
            through = self.step.until
            self.feed.take()
            begin = max(self.step.until, self.now)
            self.idle += begin - through if number else 0.0
            self.now += self.launching
            self.step.until = begin + self.stepping
            self.feed.copy_ahead()


class Queue:
    """What a GPU has been told to do, and until when it will be busy with it."""

    def __init__(self, device: Simulated) -> None:
        self.device, self.until = device, 0.0

    def mark(self) -> Mark:
        return Mark(self.device, max(self.until, self.device.now))

    def wait_stream(self, other: Queue) -> None:
        self.until = max(self.until, other.until)


class Mark:
    def __init__(self, device: Simulated, at: float) -> None:
        self.device, self.at = device, at

    def query(self) -> bool:
        return self.at <= self.device.now

    def elapsed_time(self, other: Mark) -> float:
        return 1000 * (other.at - self.at)


def test_waiting_while_the_gpu_computes_costs_nothing(monkeypatch):
    """A loader that is faster than the steps: Python waits for it most of the time, the GPU never."""
    device = Simulated(monkeypatch, loading=0.025, launching=0.0025, stepping=0.0305)
    device.run(2)
    before, waited = device.feed.lost(), device.feed.waited
    device.run(32)
    assert device.feed.waited - waited > 0.5, "of a second"
    device.now += 1.0
    assert device.feed.lost() - before == pytest.approx(0.0, abs=1e-6)


def test_a_gpu_that_stands_still_for_its_batches_is_counted(monkeypatch):
    """A loader that is slower than the steps: what is counted is how long the GPU does nothing."""
    device = Simulated(monkeypatch, loading=0.08, launching=0.0025, stepping=0.0305)
    device.run(8)
    device.now += 1.0
    before, device.idle = device.feed.lost(), 0.0
    device.step.until = device.now
    device.run(33)
    device.now += 1.0
    lost = device.feed.lost() - before
    assert lost > 0.04 * 32
    assert lost == pytest.approx(device.idle, rel=0.1)


def test_an_evaluation_between_two_steps_is_not_lost_to_data(monkeypatch):
    device = Simulated(monkeypatch, loading=0.025, launching=0.0025, stepping=0.0305)
    device.run(4)
    device.now += 1.0
    before = device.feed.lost()
    device.step.until = device.now = device.now + 60.0
    device.run(1)
    device.now += 1.0
    assert device.feed.lost() - before < 0.04


def test_a_wait_that_is_given_up_ahead_leaves_the_step_alone(monkeypatch):
    def batches() -> Iterator[Loaded]:
        raise Stopped
        yield

    feed = Feed(batches(), CPU, torch.float32)
    feed._stream = object()
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr("hires_gan.training.feed._mark", lambda queue: None)
    feed.copy_ahead()
    assert feed._ahead is None
    with pytest.raises(Stopped):
        Feed(batches(), CPU, torch.float32).take()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_waits_for_what_it_decodes_is_counted():
    """The batch is handed over at once, and is there only after a long computation on another stream."""
    device = torch.device("cuda")
    decoding = torch.cuda.Stream(device)

    def batches(cycles: int) -> Iterator[Loaded]:
        for _ in range(3):
            batch = loaded(device)
            with torch.cuda.stream(decoding):
                torch.cuda._sleep(cycles)
            torch.cuda.current_stream(device).wait_event(decoding.record_event())
            yield batch

    stalled = []
    for cycles in (0, 500_000_000):
        feed = Feed(batches(cycles), device, torch.float32)
        for _ in range(3):
            feed.take()
            feed.copy_ahead()
        torch.cuda.synchronize()
        stalled.append(feed.lost())
    assert stalled[1] > 10 * stalled[0]
    assert stalled[1] > 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_that_is_fetched_while_the_gpu_computes_costs_nothing():
    """Python waits as long in both cases; the GPU computes meanwhile in one of them."""
    device, lost = torch.device("cuda"), []

    def batches() -> Iterator[Loaded]:
        while True:
            time.sleep(0.05)
            yield loaded()

    for cycles in (500_000_000, 0):  # a quarter of a second, or nothing
        feed = Feed(batches(), device, torch.float32)
        feed.take()
        torch.cuda.synchronize()
        before = feed.lost()
        for _ in range(4):
            torch.cuda._sleep(cycles)
            feed.copy_ahead()
            feed.take()
        torch.cuda.synchronize()
        lost.append(feed.lost() - before)
    assert lost[0] < 0.01 and lost[1] > 0.15
