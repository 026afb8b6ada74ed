"""Batches on the device: the next one is copied while the step computes, and the time spent waiting is counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hires_gan.data.loader import Loaded
from hires_gan.recipes.protocol import Batch


class Feed:
    """Takes decoded batches to the device.

    Args:
        batches: What the loader gives.
        device: Where the batches are wanted.
        dtype: float32 or float64.

    Attributes:
        waited: Seconds that `take` has waited for decoded batches so far.
    """

    def __init__(self, batches: Iterator[Loaded], device: torch.device, dtype: torch.dtype) -> None:
        self._batches, self._device, self._dtype = batches, device, dtype
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ahead: Loaded | None = None
        self.waited = 0.0

    def take(self) -> Batch:
        """The next batch, in [-1, 1].

        Raises:
            StopIteration: If the loader has no more.
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
        return Batch(loaded.images.to(self._dtype).div_(127.5).sub_(1.0), loaded.labels, loaded.domains)

    def copy_ahead(self) -> None:
        """Start to copy the next batch to a GPU; called once the step is launched, so that both go on together."""
        if self._stream is not None and self._ahead is None:
            try:
                self._ahead = self._copy(self._stream)
            except StopIteration:
                self._ahead = None

    def _fetch(self) -> Loaded:
        start = time.perf_counter()
        loaded = next(self._batches)
        self.waited += time.perf_counter() - start
        return loaded

    def _copy(self, stream: torch.cuda.Stream) -> Loaded:
        """Copy through pinned memory, so that the loader's own memory is free again at once."""
        loaded = self._fetch()
        with torch.cuda.stream(stream):
            labels = None if loaded.labels is None else self._moved(loaded.labels)
            return replace(loaded, images=self._moved(loaded.images), labels=labels)

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; one that was decoded there is ready for the current stream, see `Loaded`."""
        return tensor if tensor.is_cuda else tensor.pin_memory().to(self._device, non_blocking=True)
