"""Batches of uint8 images in the order of the run, decoded ahead.

The loader has no state: it is asked for ranges of sample numbers and gives them back in that order, whatever decodes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import torch

from hires_gan.data.advice import Advice, advise, suggest, this_machine, wish_of
from hires_gan.data.batches import BatchDecoder, Loaded, Request
from hires_gan.data.dali import DaliDecoder, check_dali
from hires_gan.data.domains import Domains
from hires_gan.data.fetcher import ShardFetcher
from hires_gan.data.lanes import LaneOrder
from hires_gan.data.opening import resolve_lanes
from hires_gan.data.processes import ProcessDecoder
from hires_gan.data.reader import SampleReader
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.waiting import Asked, never
from hires_gan.progress import say

__all__ = ["Loaded", "Loader", "Request", "SampleReader", "check_decoder"]

_CPU = torch.device("cpu")


class Loader:
    """Decodes ahead, by what the settings say.

    Use it as a context manager: leaving it ends whatever decodes.

    Args:
        data: The images; a shard set is one of plain images or of pairs.
        settings: The `data` block.
        seed: The run's seed.
        largest: Bytes of the largest batch that will be asked for, in one domain.
        share: How many training processes this machine runs; what is `auto` divides the cores among them.
        device: Where the run trains; DALI decodes there.
        corrupt: Where corrupt samples are counted; by default the loader's own.
        lanes: Into how many lanes the order of a streamed set is cut; by default what the settings say, where auto
            knows of no batch.
        typical: A batch like those that will be asked for, at the highest resolution: what is auto is decided by a
            measurement of what it costs, and said. By default the number of cores decides, by the same rule.
        stopped: Asked again and again while this waits for data; the wait is given up once it is true.

    Attributes:
        settings: Those that were given, with the number of workers in place of auto.
        reader: The order of the samples, and what reads them.
        decoder: What decodes.
        corrupt: The corrupt samples that were found so far.
    """

    def __init__(
        self,
        data: Domains | ShardSet,
        settings: DataSettings,
        seed: int,
        largest: int,
        share: int = 1,
        device: torch.device = _CPU,
        corrupt: CorruptRows | None = None,
        lanes: int | None = None,
        typical: Request | None = None,
        stopped: Asked = never,
    ) -> None:
        lanes = resolve_lanes(settings.stream.lanes, 1) if lanes is None else lanes
        self.reader = SampleReader(data, seed, settings.mirror, settings.max_corrupt, lanes)
        self.corrupt = CorruptRows(settings.max_corrupt) if corrupt is None else corrupt
        advice = _decide(self.reader, settings, share, device, typical, largest)
        self.settings = settings.model_copy(update={"workers": advice.workers})
        self.decoder = _start(self.reader, settings, advice, largest, device, stopped)
        self._fetchers = [
            (stream.order, ShardFetcher(stream.shards, settings.stream.downloads))
            for stream in self.reader.streams
            if isinstance(stream.order, LaneOrder)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End whatever decodes and fetches."""
        self.decoder.close()
        for _, fetcher in self._fetchers:
            fetcher.close()

    def batches(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        """Give the requested batches in order, while the next ones are being decoded.

        Args:
            requests: What is wanted, in order; read ahead by the number of prefetched batches.

        Yields:
            One batch per request, valid until the next one is asked for.

        Raises:
            Failure: If a sample cannot be read, too many are corrupt, or what decodes died or hangs.
            Stopped: If `stopped` became true while this waited.
        """
        pending: deque[tuple[Request, int]] = deque()
        for request in requests:
            self._want([*(begun.samples for begun, _ in pending), request.samples])
            pending.append((request, self.decoder.begin(request)))
            # One slot is the caller's; the batches in all the others are decoded meanwhile.
            if len(pending) == self.decoder.slots:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def _want(self, batches: Sequence[range]) -> None:
        """Let the shards of streamed sets be fetched that these batches need, and those behind them."""
        for order, fetcher in self._fetchers:
            fetcher.want(order.shards_ahead(*batches))

    def _finish(self, request: Request, turn: int) -> Loaded:
        decoded = self.decoder.finish(turn)
        self.corrupt.add(decoded.report)
        labels = self.reader.labels(request.samples, decoded.report)
        return Loaded(request.samples, self.reader.domains, decoded.images, labels)


def check_decoder(settings: DataSettings, data: Domains | ShardSet, device: torch.device) -> None:
    """Make sure that what the settings ask for can decode here, and say what decodes if it is not the default.

    Args:
        settings: The `data` block.
        data: The images.
        device: Where the run trains.

    Raises:
        UsageError: If DALI is asked for and not installed, or on a GPU where there is none.
        Failure: If DALI is asked for on a GPU whose driver is too old for it.
    """
    if settings.decoder != "torchvision":
        check_dali(settings, data, device)


def _decide(
    reader: SampleReader,
    settings: DataSettings,
    share: int,
    device: torch.device,
    typical: Request | None,
    largest: int,
) -> Advice:
    """How many workers, threads and batches ahead, where the settings leave it open."""
    if typical is not None:
        advice = advise(reader, settings, share, typical.resolution, len(typical.samples), device)
        if advice.sentence:
            say(advice.sentence)
        return advice
    side = max(source.shards.resolution for source in reader.data.sources)
    wish = wish_of(settings, side, math.ceil(largest / (side * side * 3)) * len(reader.domains))
    return suggest(None, this_machine(share, device.type != "cpu"), wish)


def _start(
    reader: SampleReader,
    settings: DataSettings,
    advice: Advice,
    largest: int,
    device: torch.device,
    stopped: Asked,
) -> BatchDecoder:
    """The one place that knows which decoders there are."""
    if settings.decoder == "torchvision":
        return ProcessDecoder(reader, advice.prefetch + 1, largest, advice.workers, settings.timeout, stopped)
    return DaliDecoder(reader, settings, advice, largest, device, stopped)
