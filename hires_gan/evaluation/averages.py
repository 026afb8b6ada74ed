"""The mean of one value per sample, the same however the samples were shared out; and what is to be said of none."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from hires_gan.errors import Failure


class NotFinite(Failure):
    """A metric comes out as no finite number: it is left out, and the others are taken."""


def unless_not_finite(compute: Callable[[], float]) -> float | NotFinite:
    """A number, or why there is none."""
    try:
        return compute()
    except NotFinite as error:
        return error


def checked(values: Tensor, name: str) -> list[float]:
    """Values in float64.

    Args:
        values: `[n]`, of any floating dtype.
        name: Of the metric, for errors.

    Raises:
        Failure: If there are none.
        NotFinite: If one is not finite.
    """
    if not values.numel():
        raise Failure(f"{name} is a mean over samples, but there are none; give at least one")
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise NotFinite(
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
        Failure: If there are none.
        NotFinite: If one is not finite.
    """
    return math.fsum(checked(values, name)) / values.numel()
