"""The `evaluation` block of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hires_gan.settings import Cadence, Settings

Metric = Literal["swd"]


class EvaluationSettings(Settings):
    """Which numbers judge the averaged generator, and when."""

    every_kimg: Cadence = 200.0
    """Also at the start and at the end of the run."""

    metrics: tuple[Metric, ...] = ("swd",)
    """swd: the sliced Wasserstein distance (Karras et al. 2018, section 5); it needs no weights."""

    best: Metric | None = "swd"
    """The metric by which the best checkpoint is kept, the lower the better; null keeps none."""

    count: Annotated[int, Field(ge=1, le=8192)] = 8192
    """How many reals and fakes at the most: fewer if the data set is smaller."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.best is not None and self.best not in self.metrics:
            raise ValueError(f"best is {self.best}, which is not among metrics; add it there, or set best to null")
        return self
