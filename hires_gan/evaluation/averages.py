"""The mean of one value per sample, the same however the samples were shared out."""

from __future__ import annotations

import math

from torch import Tensor

from hires_gan.errors import Failure


def checked(values: Tensor, name: str) -> list[float]:
    """Values in float64.

    Args:
        values: `[n]`, of any floating dtype.
        name: Of the metric, for errors.

    Raises:
        Failure: If there are none, or one is not finite.
    """
    if not values.numel():
        raise Failure(f"{name} is a mean over samples, but there are none; give at least one")
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise Failure(
            f"{name} is not finite for {wrong} of {values.numel()} samples: the network gives images that are not "
            "finite; evaluate an earlier checkpoint"
        )
    found: list[float] = values.double().tolist()
    return found


def exact_mean(values: Tensor, name: str) -> float:
    """The mean, of a sum that is rounded once: it does not depend on the order of the values.

    Args:
        values: `[n]`, of any floating dtype.
        name: Of the metric, for errors.

    Raises:
        Failure: If there are none, or one is not finite.
    """
    return math.fsum(checked(values, name)) / values.numel()
