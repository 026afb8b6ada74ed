"""Batches on the device: the next one is copied while the step computes, and the time spent waiting is counted.

On a GPU a wait of this process costs nothing while the step before computes. What does cost is counted there: from the
end of a step's kernels until the next batch is decoded and copied, between marks in the queues of both. What is done in
between, such as an evaluation, changes neither.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hires_gan.data.loader import Loaded
from hires_gan.data.waiting import Stopped
from hires_gan.inference.images import from_uint8
from hires_gan.recipes.protocol import Batch


class Feed:
    """Takes decoded batches to the device.

    Args:
        batches: What the loader gives.
        device: Where the batches are wanted.
        dtype: float32 or float64.

    Attributes:
        waited: Seconds that this process has waited for batches so far, copies into pinned memory included.
    """

    def __init__(self, batches: Iterator[Loaded], device: torch.device, dtype: torch.dtype) -> None:
        self._batches, self._device, self._dtype = batches, device, dtype
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ahead: Loaded | None = None
        self._waits: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._lost = 0.0
        self.waited = 0.0

    def take(self) -> Batch:
        """The next batch, in [-1, 1].

        Raises:
            StopIteration: If the loader has no more.
            Stopped: If the loader's wait for it was given up.
        """
        if self._stream is None:
            loaded = self._fetch()
        else:
            loaded = self._ahead or self._copy(self._stream)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            # Made on the other stream: the allocator must not reuse the memory before this one is done with it.
            for tensor in (loaded.images, loaded.labels):
                if tensor is not None:
                    tensor.record_stream(torch.cuda.current_stream(self._device))
            self._ahead = None
        return Batch(from_uint8(loaded.images, self._dtype), loaded.labels, loaded.domains)

    def empty(self, domains: tuple[str, ...], resolution: int) -> Batch:
        """A batch of no samples, for a process that has none in a step."""
        images = torch.empty(0, 3, resolution, resolution, dtype=self._dtype, device=self._device)
        return Batch(images, None, domains)

    def copy_ahead(self) -> None:
        """Start to copy the next batch to a GPU; called once the step is launched, so that both go on together."""
        if self._stream is not None and self._ahead is None:
            try:
                self._ahead = self._copy(self._stream)
            except (StopIteration, Stopped):  # the step that is under way is finished all the same
                self._ahead = None

    def lost(self) -> float:
        """Seconds that steps have lost to data so far: `waited`, and of a GPU those in which it stood still for it.

        Of a GPU as far as it has got: what is in its queues is counted later.
        """
        if self._stream is None:
            return self.waited
        while self._waits and all(mark.query() for mark in self._waits[0]):  # type: ignore[no-untyped-call]
            stepped, there = self._waits.popleft()
            self._lost += max(stepped.elapsed_time(there), 0.0) / 1000  # below 0: the batch was there first
        return self._lost

    def _fetch(self) -> Loaded:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waited += time.perf_counter() - start

    def _copy(self, stream: torch.cuda.Stream) -> Loaded:
        """Copy through pinned memory, so that the loader's own memory is free again at once."""
        stepped = _mark(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            loaded = self._fetch()  # in here, so that it is this stream that waits for what a GPU decodes
            start = time.perf_counter()
            labels = None if loaded.labels is None else self._moved(loaded.labels)
            images = self._moved(loaded.images)
            self.waited += time.perf_counter() - start
        self._waits.append((stepped, _mark(stream)))
        self.lost()  # so that marks do not pile up where nobody asks
        return replace(loaded, images=images, labels=labels)

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; one that was decoded there is ready for the current stream, see `Loaded`."""
        return tensor if tensor.is_cuda else tensor.pin_memory().to(self._device, non_blocking=True)


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
