"""Batches of uint8 images in the order of the run, decoded ahead by worker processes.

The loader has no state: it is asked for ranges of sample numbers and gives them back in that order. Each worker decodes
its share of every batch into a slot of a shared ring and hands over the slot's number, not the pixels.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from hires_gan.data.decoders import decode_into
from hires_gan.data.order import Order
from hires_gan.data.ring import Ring
from hires_gan.data.settings import DataSettings, automatic_workers
from hires_gan.data.shards import IMAGE, ShardSet
from hires_gan.data.workers import WorkerPool
from hires_gan.errors import Failure
from hires_gan.randomness import Purpose, RandomSource


@dataclass(frozen=True)
class Request:
    """The samples that one process shows in one step.

    Attributes:
        samples: Consecutive sample numbers of the run; may be empty.
        resolution: The side at which they are wanted.
    """

    samples: range
    resolution: int

    @property
    def size(self) -> int:
        """Bytes of the decoded images."""
        return len(self.samples) * self.resolution * self.resolution * 3


@dataclass(frozen=True)
class Loaded:
    """A decoded batch. On the CPU its memory is the loader's: it is overwritten once the next batch is asked for.

    Attributes:
        samples: The sample numbers.
        images: uint8 `[n, 3, r, r]` in channels_last memory.
        labels: int64 `[n]`, or None for data without labels.
    """

    samples: range
    images: Tensor
    labels: Tensor | None


class SampleReader:
    """Sample numbers to pixels: the order, the shards and the decoder in one place, handed to every worker.

    Args:
        shards: The images.
        seed: The run's seed.
        mirror: Whether every other image is flipped.
    """

    def __init__(self, shards: ShardSet, seed: int, mirror: bool) -> None:
        self.shards, self.mirror = shards, mirror
        self.order = Order(seed, len(shards))
        self.random = RandomSource(seed)

    def fill(self, images: Tensor, samples: range, start: int, step: int) -> None:
        """Decode samples number start, start + step, ... of the range into their places.

        Args:
            images: uint8 `[len(samples), r, r, 3]`, written in place.
            samples: Sample numbers of the run.
            start: Position of the first one in the range.
            step: Distance to the next one.

        Raises:
            Failure: Naming the sample that cannot be read or decoded.
        """
        mine = samples[start::step]
        if not mine:
            return
        flips, column = self._flips(mine), self.column(images.shape[1])
        for place, (sample, flip) in enumerate(zip(mine, flips, strict=True)):
            row = self.order.row(sample)
            try:
                decode_into(self.shards.read(row, column), images[start + place * step], flip)
            except (Failure, OSError) as error:
                path = self.shards.locate(row).path
                raise Failure(f"sample {sample} of the run (row {row}, in {path}): {error}") from error

    def column(self, resolution: int) -> str:
        """The column of the smallest stored copy of the images that is large enough for a resolution."""
        prefix = f"{IMAGE}."
        columns = self.shards.manifest.columns
        levels = [int(column.removeprefix(prefix)) for column in columns if column.startswith(prefix)]
        smallest = min((level for level in levels if level >= resolution), default=None)
        return IMAGE if smallest is None else f"{prefix}{smallest}"

    def labels(self, samples: range) -> Tensor | None:
        """The class labels, int64 `[n]`, or None for data without labels."""
        if self.shards.label_counts is None:
            return None
        return torch.tensor([self.shards.label(self.order.row(sample)) for sample in samples], dtype=torch.int64)

    def _flips(self, samples: range) -> list[bool]:
        if not self.mirror:
            return [False] * len(samples)
        numbers = torch.arange(samples.start, samples.stop, samples.step)
        flips: list[bool] = (self.random.bits(Purpose.MIRROR, numbers, 1)[:, 0] >= 2**31).tolist()
        return flips


class Loader:
    """Decodes ahead, in as many processes as the settings say.

    Use it as a context manager: leaving it ends the workers.

    Args:
        shards: The images.
        settings: The `data` block.
        seed: The run's seed.
        largest: Bytes of the largest batch that will be asked for.
        share: How many training processes this machine runs; `workers: auto` divides the cores among them.
    """

    def __init__(self, shards: ShardSet, settings: DataSettings, seed: int, largest: int, share: int = 1) -> None:
        self.reader = SampleReader(shards, seed, settings.mirror)
        self.ring = Ring(settings.prefetch + 1, largest)
        count = automatic_workers(share) if settings.workers == "auto" else settings.workers
        self.workers = WorkerPool(self.reader, self.ring, count) if count else None
        self._turns = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self.workers is not None:
            self.workers.close()

    def batches(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        """Give the requested batches in order, while the next ones are being decoded.

        Args:
            requests: What is wanted, in order; read ahead by the number of prefetched batches.

        Yields:
            One batch per request, valid until the next one is asked for.

        Raises:
            Failure: If a sample cannot be read, or a worker died or hangs.
        """
        pending: deque[tuple[int, Request, Tensor]] = deque()
        for request in requests:
            pending.append(self._begin(request))
            # One slot is the caller's; the batches in all the others are decoded meanwhile.
            if len(pending) == self.ring.slots:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def _begin(self, request: Request) -> tuple[int, Request, Tensor]:
        turn = next(self._turns)
        slot = turn % self.ring.slots
        images = self.ring.images(slot, len(request.samples), request.resolution)
        if self.workers is not None:
            # Where an earlier iteration was left half-way, its batches may still be on their way into this slot.
            self.workers.wait(turn - self.ring.slots)
            self.workers.submit(turn, slot, request.samples, request.resolution)
        return turn, request, images

    def _finish(self, turn: int, request: Request, images: Tensor) -> Loaded:
        if self.workers is None:
            self.reader.fill(images, request.samples, 0, 1)
        else:
            self.workers.wait(turn)
        return Loaded(request.samples, images.permute(0, 3, 1, 2), self.reader.labels(request.samples))
