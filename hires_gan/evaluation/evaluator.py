"""The metrics of a generator against the data, during training: the reals are described once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor

from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.reals import Reals
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.evaluation.swd import LOWEST_RESOLUTION, Descriptors, level_distance, mean_distance, memory_needed
from hires_gan.progress import ProgressBar

Images = Callable[[int], Iterator[Tensor]]
"""From a count to that many generated images, in parts: uint8 `[n, 3, r, r]`."""


class Evaluator:
    """Measures generated images against a fixed set of reals.

    Args:
        settings: The `evaluation` block.
        reals: With what is compared, and at which resolution.
        device: Where the metrics are computed.
        most: So many images can be generated; None for any number.

    Attributes:
        count: How many reals and fakes are compared.

    Raises:
        UsageError: If a metric cannot be taken at the resolution.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        reals: Reals,
        device: torch.device,
        most: int | None = None,
    ) -> None:
        resolution = reals.resolution
        if "swd" in settings.metrics and resolution < LOWEST_RESOLUTION:
            raise UsageError(
                f"evaluation.metrics has swd, which needs images of at least {LOWEST_RESOLUTION} pixels, but "
                f"recipe.resolution is {resolution}; raise it, or set evaluation.metrics to [] and evaluation.best to "
                f"null"
            )
        self.settings, self.reals, self.device = settings, reals, device
        self.resolution = resolution
        self.count = min(settings.count, len(reals), len(reals) if most is None else most)
        self._real: Descriptors | None = None

    def measure(self, fakes: Images, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """All metrics of the settings.

        Args:
            fakes: Gives generated images at the full resolution.
            stopped: Asked between batches of images and while they are compared, and while the reals are waited
                for; the measurement is given up once it is true.

        Returns:
            Values by metric, with `swd/<resolution>` for the levels of the distance; None if it was given up.

        Raises:
            Failure: If the host has too little memory for so many images.
        """
        if "swd" not in self.settings.metrics:
            return {}
        self._check_memory()
        if self._real is None:
            self._real = self._describe("describing reals", self.reals.first(self.count, stopped), stopped)
        if self._real is None:
            return None
        fake = self._describe("generating and describing fakes", fakes(self.count), stopped)
        return None if fake is None else self._compare(self._real, fake, stopped)

    def _check_memory(self) -> None:
        needed = memory_needed(self.resolution, self.count, sets=1 if self._real else 2)
        available = psutil.virtual_memory().available
        if needed > available:
            raise Failure(
                f"evaluation.count {self.count} at {self.resolution}x{self.resolution} needs {needed / 2**30:.1f} GiB "
                f"of memory, but only {available / 2**30:.1f} GiB are available; lower it, or free memory"
            )

    def _describe(self, title: str, images: Iterator[Tensor], stopped: Callable[[], bool]) -> Descriptors | None:
        descriptors = Descriptors(self.resolution, self.count, self.device)
        with contextlib.suppress(Stopped), ProgressBar(title, self.count, lasting=False) as bar:
            for part in images:
                if stopped():
                    return None
                descriptors.add(part.to(self.device))
                bar.advance(len(part))
            return descriptors
        return None

    def _compare(self, real: Descriptors, fake: Descriptors, stopped: Callable[[], bool]) -> dict[str, float] | None:
        levels: dict[int, float] = {}
        with (
            contextlib.suppress(Stopped),
            ProgressBar("comparing", len(real.resolutions), "levels", lasting=False) as bar,
        ):
            for resolution in real.resolutions:
                levels[resolution] = level_distance(real, fake, resolution, stopped)
                bar.advance()
            return {"swd": mean_distance(levels)} | {f"swd/{level}": value for level, value in levels.items()}
        return None
