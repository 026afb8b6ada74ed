"""What the recipes make of their settings alike: Adam's plan at a resolution, and where half precision is used."""

from __future__ import annotations

from typing import Protocol

import torch

from hires_gan.recipes.optimizer_settings import OptimizerSettings
from hires_gan.recipes.protocol import OptimizerPlan
from hires_gan.settings import at_resolution


def optimizer_plan(
    settings: OptimizerSettings, resolution: int, live: tuple[str, ...], interval: int | None = None
) -> OptimizerPlan:
    """What a player's optimizer is told in one stage.

    A player that takes one more step for its regularisation in every k-th iteration takes k + 1 where k were meant:
    learning rate and betas are those for k / (k + 1) of a step (Karras et al. 2020, "Analyzing and Improving the
    Image Quality of StyleGAN", appendix B, "Lazy regularization").

    Args:
        settings: The player's Adam.
        resolution: Of the stage.
        live: The names of the parameters that learn.
        interval: k; None for a player without lazy regularisation.
    """
    ratio = 1.0 if interval is None else interval / (interval + 1)
    first, second = settings.betas
    rate = at_resolution(settings.learning_rate, resolution)
    return OptimizerPlan(rate * ratio, (first**ratio, second**ratio), settings.eps, live)


class LowPrecision(Protocol):
    """The settings of a family whose highest resolutions may compute in half precision."""

    @property
    def resolution(self) -> int: ...  # noqa: D102
    @property
    def low_precision_resolutions(self) -> int: ...  # noqa: D102


def low_precision(settings: LowPrecision, dtype: torch.dtype) -> dict[int, torch.dtype]:
    """The highest resolutions compute in `dtype`, the rest in that of the parameters."""
    return {settings.resolution >> i: dtype for i in range(settings.low_precision_resolutions)}
