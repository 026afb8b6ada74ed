"""Sample numbers to batches of pixels: every source of a run in its own order, whatever decodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hires_gan.data.domains import Domains, in_one_set
from hires_gan.data.heartbeat import nobody
from hires_gan.data.opening import order_of
from hires_gan.data.replacement import Report, allowed_rows
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_reader import StreamReader
from hires_gan.randomness import RandomSource


class SampleReader:
    """Sample numbers to pixels: the orders, the shards and the decoder in one place, handed to every worker.

    Args:
        data: The images; a shard set is one of plain images or of pairs.
        seed: The run's seed.
        mirror: Whether every other sample is flipped.
        max_corrupt: The share of a set's rows that may be corrupt and are passed over before it gives up.
        lanes: Into how many lanes the order of a streamed set is cut.

    Raises:
        UsageError: The cache of a streamed set is too small for so many lanes.

    Attributes:
        domains: What the images of a batch show.
        streams: What reads each of the sets. Their rows are numbered one set behind the other: such a number is a place
            in the data.
    """

    def __init__(
        self, data: Domains | ShardSet, seed: int, mirror: bool, max_corrupt: float = 0.0, lanes: int = 32
    ) -> None:
        self.data = in_one_set(data) if isinstance(data, ShardSet) else data
        self.domains = self.data.names
        random = RandomSource(seed)
        self.streams = tuple(
            StreamReader(
                source,
                order_of(source.shards, seed, lanes, number),
                number,
                random,
                mirror,
                allowed_rows(max_corrupt, len(source.shards)),
            )
            for number, source in enumerate(self.data.sources)
        )

    def fill(
        self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None] = nobody
    ) -> Report:
        """Decode a share of a batch: of all samples of the first stream, then of the second, ..., every step-th.

        Args:
            images: uint8 `[domains * len(samples), r, r, 3]`, domain by domain, written in place.
            samples: Sample numbers of the run.
            start: Which of them is the first one of the share, less than `step`.
            step: Distance to the next one.
            reading: Told of every place in the data before it is read.

        Returns:
            What was replaced, and why.

        Raises:
            Failure: Naming the sample that cannot be read for another reason than being corrupt.
        """
        report, first = Report(), 0
        for stream, part in zip(self.streams, self.split(images), strict=True):
            told = _shifted(reading, first)
            report.add(stream.fill(part, samples, (start - stream.number * len(samples)) % step, step, told))
            first += len(stream.shards)
        return report

    def split(self, images: Tensor) -> list[Tensor]:
        """The images of each stream, `[domains, n, ...]`, in a batch of all domains, `[domains * n, ...]`."""
        count, parts, first = len(images) // len(self.domains), [], 0
        for stream in self.streams:
            domains = len(stream.source.domains)
            parts.append(images[first * count : (first + domains) * count].view(domains, count, *images.shape[1:]))
            first += domains
        return parts

    def labels(self, samples: range, report: Report) -> Tensor | None:
        """The class labels of what is shown, int64 `[n]`, or None for data without labels, and for domains."""
        stream = self.streams[0]
        if not self.data.is_plain or stream.shards.manifest.label_names is None:
            return None
        return torch.tensor([stream.label(sample, report) for sample in samples], dtype=torch.int64)

    def where(self, place: int) -> str:
        """A place in the data, for people."""
        for stream in self.streams:
            if place < len(stream.shards):
                return stream.where(place)
            place -= len(stream.shards)
        raise IndexError(f"the data end {place} rows before")


def _shifted(reading: Callable[[int], None], first: int) -> Callable[[int], None]:
    return lambda row: reading(first + row)
