"""The metrics of a generator against the data, during training: the reals are described once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.evaluation.swd import Descriptors, mean_distance, sliced_wasserstein

Images = Callable[[int], Iterator[Tensor]]
"""From a count to that many generated images, in parts: uint8 `[n, 3, r, r]`."""

_CHUNK = 64
_ORDER_SEED = 0
"""The reals are the first ones of the order of this seed, whatever the run's, so that runs can be compared."""


class Evaluator:
    """Measures generated images against a fixed set of reals.

    Args:
        settings: The `evaluation` block.
        shards: The reals.
        data: The `data` block; its workers decode the reals.
        resolution: Side at which both are compared, at most that of the shards.
        device: Where the metrics are computed.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        shards: ShardSet,
        data: DataSettings,
        resolution: int,
        device: torch.device,
    ) -> None:
        self.settings, self.shards, self.data = settings, shards, data
        self.resolution, self.device = resolution, device
        self.count = min(settings.count, len(shards))
        self._real: Descriptors | None = None

    def measure(self, fakes: Images, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """All metrics of the settings.

        Args:
            fakes: Gives generated images at the full resolution.
            stopped: Asked now and then; the measurement is given up once it is true.

        Returns:
            Values by metric, with `swd/<resolution>` for the levels of the distance; None if it was given up.
        """
        if "swd" not in self.settings.metrics:
            return {}
        real = self._real or self._describe(self._reals(), stopped)
        self._real = real
        fake = None if real is None else self._describe(fakes(self.count), stopped)
        if real is None or fake is None:
            return None
        levels = sliced_wasserstein(real, fake)
        return {"swd": mean_distance(levels)} | {f"swd/{level}": value for level, value in levels.items()}

    def _describe(self, images: Iterator[Tensor], stopped: Callable[[], bool]) -> Descriptors | None:
        descriptors = Descriptors(self.resolution, self.count, self.device)
        for part in images:
            if stopped():
                return None
            descriptors.add(part.to(self.device))
        return descriptors

    def _reals(self) -> Iterator[Tensor]:
        chunks = [range(i, min(i + _CHUNK, self.count)) for i in range(0, self.count, _CHUNK)]
        plain = self.data.model_copy(update={"mirror": False})
        largest = Request(chunks[0], self.resolution).size
        with Loader(self.shards, plain, _ORDER_SEED, largest) as loader:
            for loaded in loader.batches(Request(samples, self.resolution) for samples in chunks):
                yield loaded.images
