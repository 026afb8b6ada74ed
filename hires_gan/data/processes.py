"""torchvision as the decoder of batches, in worker processes that share a ring, or in this one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from hires_gan.data.batches import Decoded, Request
from hires_gan.data.heartbeat import HEART
from hires_gan.data.reader import SampleReader
from hires_gan.data.replacement import Report
from hires_gan.data.ring import Ring
from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.data.workers import WorkerPool


class ProcessDecoder:
    """Each worker decodes its share of every batch into a slot of a shared ring.

    Args:
        reader: What decodes.
        slots: How many batches there are in the ring.
        largest: Bytes of the largest batch that will be asked for, in one domain.
        count: Worker processes; 0 decodes in this one, when a batch is finished.
        timeout: Seconds without an answer from any worker after which one is said to hang.
        stopped: Asked again and again while this waits; the wait is given up once it is true.
    """

    def __init__(
        self,
        reader: SampleReader,
        slots: int,
        largest: int,
        count: int,
        timeout: float,
        stopped: Asked = never,
    ) -> None:
        self.reader, self.slots, self._stopped = reader, slots, stopped
        self.ring = Ring(slots, largest, len(reader.domains))
        self.workers = WorkerPool(reader, self.ring, count, timeout, stopped) if count else None
        self._turns = itertools.count()
        self._begun: dict[int, tuple[Request, Tensor]] = {}

    @property
    def pids(self) -> Sequence[int]:
        """The workers' process ids."""
        return () if self.workers is None else self.workers.pids

    def begin(self, request: Request) -> int:
        """Order a batch from the workers."""
        turn = next(self._turns)
        slot = turn % self.slots
        images = self.ring.images(slot, len(request.samples), request.resolution)
        if self.workers is not None:
            # Where an earlier iteration was left half-way, its batches may still be on their way into this slot.
            self.workers.wait(turn - self.slots)
            self.workers.submit(turn, slot, request.samples, request.resolution)
        self._begun.pop(turn - self.slots, None)
        self._begun[turn] = request, images
        return turn

    def finish(self, turn: int) -> Decoded:
        """Wait for the workers, or decode now.

        Raises:
            Failure: If a sample cannot be read, or a worker died or hangs.
            Stopped: If somebody wants it to.
        """
        request, images = self._begun.pop(turn)
        report = self._fill(images, request.samples) if self.workers is None else self.workers.wait(turn)
        return Decoded(images.permute(0, 3, 1, 2), report)

    def close(self) -> None:
        """End the workers."""
        if self.workers is not None:
            self.workers.close()

    def _fill(self, images: Tensor, samples: range) -> Report:
        with _at_every_beat(self._look):
            return self.reader.fill(images, samples, 0, 1, lambda place: self._look())

    def _look(self) -> None:
        if self._stopped():
            raise Stopped


@contextmanager
def _at_every_beat(look: Callable[[], None]) -> Iterator[None]:
    """Look up also while this process itself waits for a shard that is on its way."""
    HEART.tell(look)
    try:
        yield
    finally:
        HEART.tell(lambda: None)
