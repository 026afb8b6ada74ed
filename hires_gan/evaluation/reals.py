"""The real images of a domain that metrics and grids show: always the same ones, whatever the run's own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from hires_gan.data.domains import Domains, in_one_set
from hires_gan.data.loader import Loader, Request
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet

CHUNK = 64
"""Images that are decoded at a time."""
_ORDER_SEED = 0
"""They are the first ones of the order of this seed, so that runs can be compared."""


class Reals:
    """The images of one domain.

    Args:
        images: The domain alone.
        data: The `data` block; its workers decode.
        resolution: Side of the images, at most that of the shards.
        corrupt: Where corrupt ones are counted; by default for itself.

    Attributes:
        data: May be replaced, once what is auto in it was decided.
    """

    def __init__(
        self, images: Domains | ShardSet, data: DataSettings, resolution: int, corrupt: CorruptRows | None = None
    ) -> None:
        self._images = in_one_set(images) if isinstance(images, ShardSet) else images
        self.data, self.resolution = data, resolution
        self._corrupt = CorruptRows(data.max_corrupt) if corrupt is None else corrupt

    def __len__(self) -> int:
        """How many there are."""
        return len(self._images.sources[0].shards)

    def first(self, count: int, stopped: Callable[[], bool]) -> Iterator[Tensor]:
        """The first `count` images, in parts of `CHUNK`: uint8 `[n, 3, r, r]`, valid until the next part is asked for.

        Args:
            count: At most all.
            stopped: Asked while they are waited for.

        Raises:
            Failure: If an image cannot be read, or too many are corrupt.
            Stopped: If `stopped` became true.
        """
        chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        # Whatever decodes for the training: a GPU's decoder differs by a grey level, and runs are to be compared.
        plain = self.data.model_copy(update={"mirror": False, "decoder": "torchvision"})
        largest = Request(chunks[0], self.resolution).size
        with Loader(self._images, plain, _ORDER_SEED, largest, corrupt=self._corrupt, stopped=stopped) as loader:
            for loaded in loader.batches(Request(samples, self.resolution) for samples in chunks):
                yield loaded.images
