"""Batches of uint8 images in the order of the run, decoded ahead.

The loader has no state: it is asked for ranges of sample numbers and gives them back in that order, whatever decodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch

from hires_gan.data.batches import BatchDecoder, Loaded, Request
from hires_gan.data.dali import DaliDecoder, check_dali
from hires_gan.data.processes import ProcessDecoder
from hires_gan.data.reader import SampleReader
from hires_gan.data.replacement import CorruptRows, allowed_rows
from hires_gan.data.settings import DataSettings, automatic_workers
from hires_gan.data.shards import ShardSet

__all__ = ["Loaded", "Loader", "Request", "SampleReader", "check_decoder"]

_CPU = torch.device("cpu")


class Loader:
    """Decodes ahead, by what the settings say.

    Use it as a context manager: leaving it ends whatever decodes.

    Args:
        shards: The images.
        settings: The `data` block.
        seed: The run's seed.
        largest: Bytes of the largest batch that will be asked for.
        share: How many training processes this machine runs; what is `auto` divides the cores among them.
        device: Where the run trains; DALI decodes there.
        corrupt: Where corrupt samples are counted; by default the loader's own.

    Attributes:
        reader: The order of the samples, and what reads them.
        decoder: What decodes.
        corrupt: The corrupt samples that were found so far.
    """

    def __init__(
        self,
        shards: ShardSet,
        settings: DataSettings,
        seed: int,
        largest: int,
        share: int = 1,
        device: torch.device = _CPU,
        corrupt: CorruptRows | None = None,
    ) -> None:
        self.reader = SampleReader(shards, seed, settings.mirror, allowed_rows(settings.max_corrupt, len(shards)))
        self.corrupt = CorruptRows(shards, settings.max_corrupt) if corrupt is None else corrupt
        self.decoder = _start(self.reader, settings, largest, share, device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End whatever decodes."""
        self.decoder.close()

    def batches(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        """Give the requested batches in order, while the next ones are being decoded.

        Args:
            requests: What is wanted, in order; read ahead by the number of prefetched batches.

        Yields:
            One batch per request, valid until the next one is asked for.

        Raises:
            Failure: If a sample cannot be read, too many are corrupt, or what decodes died or hangs.
        """
        pending: deque[tuple[Request, int]] = deque()
        for request in requests:
            pending.append((request, self.decoder.begin(request)))
            # One slot is the caller's; the batches in all the others are decoded meanwhile.
            if len(pending) == self.decoder.slots:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def _finish(self, request: Request, turn: int) -> Loaded:
        decoded = self.decoder.finish(turn)
        self.corrupt.add(decoded.report)
        return Loaded(request.samples, decoded.images, self.reader.labels(request.samples, decoded.report))


def check_decoder(settings: DataSettings, shards: ShardSet, device: torch.device) -> None:
    """Make sure that what the settings ask for can decode here, and say what decodes if it is not the default.

    Args:
        settings: The `data` block.
        shards: The images.
        device: Where the run trains.

    Raises:
        UsageError: If DALI is asked for and not installed.
        Failure: If DALI is asked for on a GPU whose driver is too old for it.
    """
    if settings.decoder != "torchvision":
        check_dali(settings, shards, device)


def _start(
    reader: SampleReader, settings: DataSettings, largest: int, share: int, device: torch.device
) -> BatchDecoder:
    """The one place that knows which decoders there are."""
    if settings.decoder == "torchvision":
        count = automatic_workers(share) if settings.workers == "auto" else settings.workers
        return ProcessDecoder(reader, settings.prefetch + 1, largest, count, settings.timeout)
    return DaliDecoder(reader, settings, largest, share, device)
