"""Curves of many points, reduced to what a plot of some width can show, without losing a peak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hires_gan.tracking.comparison.histories import Curve

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Thinned:
    """What is drawn of a curve: float64 `[n]` each, at most one entry for a column.

    Attributes:
        kimg: The mean place of the column's points.
        mean: Their mean.
        low: The smallest of them.
        high: The largest.
    """

    kimg: Floats
    mean: Floats
    low: Floats
    high: Floats


def thin(curve: Curve, last: int, columns: int) -> Thinned:
    """Mean and extremes of a curve in each column of a plot; values that are not finite are left out.

    Args:
        curve: The curve.
        last: The nimg at the right border of the plot; the left one is 0.
        columns: How many columns it has.
    """
    known = np.isfinite(curve.values)
    steps, values = curve.steps[known], curve.values[known]
    if not len(steps):
        none = np.empty(0)
        return Thinned(none, none, none, none)
    column = np.clip(steps * columns // max(last, 1), 0, columns - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    counts = np.diff(starts, append=len(steps))
    return Thinned(
        np.add.reduceat(steps / 1000, starts) / counts,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def vertical_limits(curves: list[Thinned]) -> tuple[float, float, bool]:
    """The lower and the upper border of a plot, and whether extreme values lie outside.

    Everything is inside, unless a few extremes would flatten all the rest.
    """
    means = np.concatenate([curve.mean for curve in curves])
    lows, highs = np.concatenate([c.low for c in curves]), np.concatenate([c.high for c in curves])
    low, high = float(lows.min()), float(highs.max())
    first, last = (float(border) for border in np.quantile(means, (0.01, 0.99)))
    cut = len(means) > 20 and high - low > 6 * max(last - first, 1e-12)  # with few points each one counts
    if cut:
        low, high = max(low, first - (last - first)), min(high, last + (last - first))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin, cut
