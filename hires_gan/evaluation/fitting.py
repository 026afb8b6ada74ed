"""Which metrics a family can be judged by."""

from __future__ import annotations

from collections.abc import Sequence

from hires_gan.errors import UsageError
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need

_FROM_LATENTS = (Need.IMAGES, Need.GENERATOR)


def check_fit(metrics: Sequence[MetricName], recipe: str, translates: bool, option: str) -> None:
    """Make sure that metrics say something of a family.

    Args:
        metrics: Their names.
        recipe: What the family is called.
        translates: Whether it translates images, instead of making them from latents.
        option: What the metrics were given to, for errors.

    Raises:
        UsageError: If one does not.
    """
    for name in metrics:
        need = METRICS[name].need
        if translates and need in _FROM_LATENTS:
            raise UsageError(
                f"{option} has {name}, which is of images from latents, and {recipe} translates images; leave it out, "
                "or take lpips_diversity_munit, which tells how different translations are"
            )
        if not translates and need == Need.TRANSLATOR:
            raise UsageError(
                f"{option} has {name}, which is of translations, and {recipe} makes images from latents; leave it out"
            )
        if recipe == "progressive" and name.startswith("ppl_w"):
            raise UsageError(
                f"{option} has {name}, a length in W, which Progressive GAN does not have; take "
                f"{name.replace('_w_', '_z_')}"
            )
