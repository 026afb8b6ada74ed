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
    feed = Feed(batches(), CPU, torch.float32)
    feed._copy(None)
    assert feed.waited == 8.0


def test_a_wait_that_is_given_up_ahead_leaves_the_step_alone(monkeypatch):
    def batches() -> Iterator[Loaded]:
        raise Stopped
        yield

    feed = Feed(batches(), CPU, torch.float32)
    feed._stream = object()
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
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
        stalled.append(feed.stalled())
    assert stalled[1] > 10 * stalled[0]
    assert stalled[1] > 0.1
