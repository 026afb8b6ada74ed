"""The blocks of a recipe's settings that several families share: Adam, and the schedule of growing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hires_gan.settings import FloatByResolution, NonNegative, Positive, Resolution, Settings, at_resolution


class OptimizerSettings(Settings):
    """Adam, for one player."""

    learning_rate: FloatByResolution = 0.001
    """A number, or a map by resolution; while a resolution fades in, its own entry holds."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.99)
    """Decay of Adam's first and second moment."""

    eps: Positive = 1e-8
    """Adam's epsilon."""


class GrowingScheduleSettings(Settings):
    """When which resolution is trained (Karras et al. 2018, section 3)."""

    start_resolution: Resolution = 4
    """The first resolution."""

    stable_kimg: NonNegative = 600.0
    """How long each resolution trains at full strength before the next one fades in."""

    fade_kimg: NonNegative = 600.0
    """How long a new resolution takes to fade in; 0 switches at once."""


def check_growth(
    schedule: GrowingScheduleSettings, resolution: int, generator: OptimizerSettings, discriminator: OptimizerSettings
) -> None:
    """Make sure that the growth begins below its end, at a resolution for which there are learning rates.

    Raises:
        ValueError: Naming the key, what was found and what to do.
    """
    start = schedule.start_resolution
    if start > resolution:
        raise ValueError(f"schedule.start_resolution is {start}; it must be at most resolution, {resolution}")
    for name, optimizer in (("generator_optimizer", generator), ("discriminator_optimizer", discriminator)):
        try:
            at_resolution(optimizer.learning_rate, start)
        except ValueError as error:
            raise ValueError(f"{name}.learning_rate has {error}; add an entry for {start}") from None
