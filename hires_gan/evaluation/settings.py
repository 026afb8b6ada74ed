"""The `evaluation` block of the configuration."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from hires_gan.evaluation.catalogue import MetricName
from hires_gan.settings import Cadence, HomePath, PositiveInt, Settings


class EvaluationSettings(Settings):
    """Which numbers judge the averaged generator, and when; docs/evaluation.md says what each of them needs."""

    every_kimg: Cadence = 200.0
    """Also at the start and at the end of the run."""

    metrics: tuple[MetricName, ...] = ("swd",)
    """swd: the sliced Wasserstein distance (Karras et al. 2018, section 5), which needs no weights, as ms_ssim; for all
    others those of a feature network. What has none is left out, which is said at the start."""

    best: MetricName | None = "swd"
    """The metric by which the best checkpoint is kept; null keeps none."""

    count: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """How many fakes; swd takes as many as there are reals, and 8192, at the most. Papers give FID of 50,000."""

    reals: PositiveInt | None = None
    """How many reals, the first ones of a fixed order; null: all. swd takes as many as fakes."""

    features: Annotated[str, Field(min_length=1)] = "inception"
    """The feature network of FID and its like: inception; vgg16, with which precision and recall are published; or
    package.module:factory of an installed package."""

    weights: HomePath | None = None
    """The file of its weights; null: torch hub's cache (for vgg16, `vgg`), or those that the factory brings."""

    vgg: HomePath | None = None
    """The file of torchvision's VGG16 weights, for ppl_*, content_preservation and features: vgg16; null: torch hub's
    cache."""

    alexnet: HomePath | None = None
    """The file of torchvision's AlexNet weights, for lpips_diversity_*; null: torch hub's cache."""

    download: bool = False
    """Whether published weights that are not in torch hub's cache may be fetched."""

    diverged: Annotated[float, Field(gt=1)] = 3.0
    """A value of `best` that is so many times worse than the best one so far is said to show that the run diverges."""

    stop_diverged: PositiveInt | None = None
    """After so many such evaluations in a row, or ones where `best` is no finite number, the run fails; null: never."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        twice = next((name for name in self.metrics if self.metrics.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"metrics has {twice} {self.metrics.count(twice)} times; name it once")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.best is not None and self.best not in self.metrics:
            raise ValueError(f"best is {self.best}, which is not among metrics; add it there, or set best to null")
        return self
