"""The schedule of a network that grows: each resolution fades in, then trains at full strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hires_gan.networks.growth import Growth
from hires_gan.recipes.optimizer_settings import GrowingScheduleSettings
from hires_gan.recipes.optimizers import optimizer_plan
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.protocol import OptimizerPlan, Stage, stage_at, steps_until
from hires_gan.recipes.stylegan_settings import StyleGANSettings
from hires_gan.settings import IntByResolution, at_resolution


def growing_stages(
    schedule: GrowingScheduleSettings,
    resolution: int,
    batch: IntByResolution,
    group: Callable[[int], int],
    optimizers: Callable[[Growth], Mapping[str, OptimizerPlan]],
) -> list[Stage]:
    """Every stage from the schedule's first resolution to the full one, which is trained without end.

    Args:
        schedule: When which resolution is trained.
        resolution: The full resolution.
        batch: The global batch, by resolution.
        group: How many samples of a batch must go through the networks together.
        optimizers: One plan per player, at a growth; its `alpha` is 0 where the stage is a fade.
    """
    stages: list[Stage] = []
    nominal, start, side = 0.0, 0, schedule.start_resolution
    while True:
        last = side == resolution
        for fade in (True, False):
            kimg = schedule.fade_kimg if fade else schedule.stable_kimg
            first_fade = fade and side == schedule.start_resolution
            if first_fade or (kimg == 0 and (fade or not last)):
                continue
            size = at_resolution(batch, side)
            nominal += kimg * 1000
            end = None if last and not fade else steps_until(start, nominal, size)
            plans = optimizers(Growth(side, 0.0 if fade else 1.0))
            stages.append(Stage(start, end, side, size, group(size), fade, plans))
            start = end if end is not None else start
        if last:
            return stages
        side *= 2


class GrowingPlayer(Protocol):
    """A network that grows."""

    def live_parameters(self, growth: Growth) -> list[str]:
        """The names of the parameters that the output at a growth depends on."""


def live_optimizers(
    settings: ProgressiveSettings | StyleGANSettings,
    generator: GrowingPlayer,
    discriminator: GrowingPlayer,
    growth: Growth,
) -> dict[str, OptimizerPlan]:
    """Both players' optimizers at a growth, over the parameters that live there."""
    plans = {
        "generator": (settings.generator_optimizer, generator),
        "discriminator": (settings.discriminator_optimizer, discriminator),
    }
    return {
        name: optimizer_plan(optimizer, growth.resolution, tuple(player.live_parameters(growth)))
        for name, (optimizer, player) in plans.items()
    }


def growth_at(stages: Sequence[Stage], nimg: int) -> Growth:
    """How far the networks have grown at `nimg`."""
    alpha = fade_at(stages, nimg)
    return Growth(stages[stage_at(stages, nimg)].resolution, 1.0 if alpha is None else alpha)


def fade_at(stages: Sequence[Stage], nimg: int) -> float | None:
    """How far the new resolution is blended in at `nimg`, in [0, 1); None outside of a fade."""
    stage = stages[stage_at(stages, nimg)]
    if not stage.fade:
        return None
    assert stage.end is not None
    return (nimg - stage.start) / (stage.end - stage.start)


def describe_growth(growth: Growth) -> str:
    """The resolution and, during a fade, how much of it is blended in."""
    fade = f" fade {growth.alpha:.0%}" if growth.fades else ""
    return f"{growth.resolution}x{growth.resolution}{fade}"
