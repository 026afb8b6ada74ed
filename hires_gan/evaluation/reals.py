"""The real images of a domain that metrics and grids show: always the same ones, whatever the run's own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version

from torch import Tensor

from hires_gan.data.domains import Domains, in_one_set
from hires_gan.data.loader import Loader, Request
from hires_gan.data.opening import resolve_lanes
from hires_gan.data.replacement import CorruptRows, Report
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.waiting import Asked
from hires_gan.evaluation.crew import Crew, chunks
from hires_gan.evaluation.protocol import DataRecord

CHUNK = 64
"""Images that are decoded, described and shared out at a time; a multiple of what a feature network takes at once."""
ORDER_SEED = 0
"""They are the first ones of the order of this seed, so that runs can be compared."""


class _Noted(CorruptRows):
    """Counts corrupt rows elsewhere, and notes in place of which images others were shown."""

    def __init__(self, counted: CorruptRows) -> None:
        self.counted = counted
        self.replaced: set[int] = set()

    def add(self, report: Report) -> None:
        """Note, and count."""
        self.replaced.update(number for _, number in report.shown)
        self.counted.add(report)


class Reals:
    """The images of one domain.

    Args:
        images: The domain alone.
        data: The `data` block; its workers decode.
        resolution: Side of the images, at most that of the shards.
        corrupt: Where corrupt ones are counted; by default for itself.
        share: How many processes of this machine decode at the same time.

    Attributes:
        data: May be replaced, once what is auto in it was decided.
    """

    def __init__(
        self,
        images: Domains | ShardSet,
        data: DataSettings,
        resolution: int,
        corrupt: CorruptRows | None = None,
        share: int = 1,
    ) -> None:
        self._images = in_one_set(images) if isinstance(images, ShardSet) else images
        self.data, self.resolution = data, resolution
        self._corrupt = _Noted(CorruptRows(data.max_corrupt) if corrupt is None else corrupt)
        self._share = share

    def __len__(self) -> int:
        """How many there are."""
        return len(self._images.sources[0].shards)

    def replaced(self, count: int, crew: Crew) -> list[int]:
        """In place of which of the first images others were given, since they are corrupt.

        Args:
            count: How many.
            crew: The processes; all have to come here. Several may have been given the same image.

        Returns:
            The numbers of those that any process came across so far, in ascending order.
        """
        own = [number for number in self._corrupt.replaced if number < count]
        return sorted({number for numbers in crew.gathered(own) for number in numbers})

    def first(self, count: int, stopped: Asked) -> Iterator[Tensor]:
        """The first `count` images, in parts of `CHUNK`: uint8 `[n, 3, r, r]`, valid until the next part is asked for.

        Args:
            count: At most all.
            stopped: Asked while they are waited for.

        Raises:
            Failure: If an image cannot be read, or too many are corrupt.
            Stopped: If `stopped` became true.
        """
        yield from self.chunks(chunks(count, CHUNK), stopped)

    def chunks(self, wanted: Sequence[range], stopped: Asked) -> Iterator[Tensor]:
        """The images of some numbers: uint8 `[n, 3, r, r]` for each range, valid until the next one is asked for.

        Args:
            wanted: Numbers below that of the images there are; the longest range first.
            stopped: Asked while they are waited for.

        Raises:
            Failure: If an image cannot be read, or too many are corrupt.
            Stopped: If `stopped` became true.
        """
        if not wanted:
            return
        # Whatever decodes for the training: a GPU's decoder differs by a grey level, and runs are to be compared.
        plain = self.data.model_copy(update={"mirror": False, "decoder": "torchvision"})
        largest = Request(wanted[0], self.resolution).size
        corrupt, share = self._corrupt, self._share
        with Loader(self._images, plain, ORDER_SEED, largest, share, corrupt=corrupt, stopped=stopped) as loader:
            for loaded in loader.batches(Request(samples, self.resolution) for samples in wanted):
                yield loaded.images

    def record(self) -> DataRecord:
        """What is recorded of them."""
        (source,) = self._images.sources
        (column,), _ = source.stored(self.resolution)
        manifest, digest = source.shards.manifest, source.shards.manifest.digest()
        if source.shards.streamed:  # in another order, and so the first ones are others
            digest += f" in {resolve_lanes(self.data.stream.lanes, 1)} lanes"
        return DataRecord(
            digest=digest,
            name=source.location,
            domain=source.domains[0],
            column=column,
            filter=manifest.filter,
            order_seed=ORDER_SEED,
            decoder=f"torchvision {version('torchvision')}",
        )
