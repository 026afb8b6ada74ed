"""Whether the curves of two dials lie as close to each other as those of two seeds do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hires_gan.tracking.names import EVALUATION

Curve = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Images shown, ascending, and the values there."""
WINDOWS = 8
"""Means of losses over so many stretches of training are compared: a single batch's loss tells little."""
MINIMISED = "loss/"
LEVEL = 0.05
"""How often all metrics together may call two dials different that are one, at most."""
_HALVINGS = 60


@dataclass(frozen=True)
class Apart:
    """How far the runs of two dials are apart in one metric.

    Attributes:
        points: At how many places along the curves.
        dials: Root mean square, over these, of the distance of the dials' means.
        seeds: Likewise of the distance of two seeds of the same dial; None with one seed.
        equal: Whether every pair of runs of the same seed has the same values, bit by bit.
    """

    points: int
    dials: float
    seeds: float | None
    equal: bool

    @property
    def ratio(self) -> float | None:
        """Of the dials' distance to that of the seeds; None with one seed, or where seeds are not apart."""
        return self.dials / self.seeds if self.seeds else None

    def differs(self, limit: float | None) -> bool | None:
        """Whether the dials are farther apart than chance would have it; None where one seed cannot tell.

        Args:
            limit: What `limit` says.
        """
        if self.equal:
            return False
        if self.seeds is None or limit is None:
            return None
        return self.dials > limit * self.seeds


def limit(seeds: int, metrics: int) -> float | None:
    """The ratio of distances that is exceeded by chance alone in `LEVEL` of all comparisons, at most.

    Points of a curve are not independent draws: a run that lies above another one stays there. In the worst case a
    curve has one value, and the ratio is Student's t with 2 (seeds - 1) degrees of freedom, divided by the root of
    the number of seeds; where points are freer, their mean square lies closer to what is expected. Metrics share
    `LEVEL` equally (Bonferroni).

    Args:
        seeds: Runs of each dial.
        metrics: How many are compared.

    Returns:
        None with one seed, which does not tell how far apart two are.
    """
    if seeds < 2:
        return None
    return _quantile(1 - LEVEL / metrics, 2 * (seeds - 1)) / math.sqrt(seeds)


def _quantile(inside: float, degrees: int) -> float:
    """The t below which Student's |t| lies with that probability; the number of degrees of freedom is even."""
    low, high = 0.0, 1.0  # the sine of the angle whose tangent is t / sqrt(degrees)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < inside else (low, middle)
    return math.sqrt(degrees) * low / math.sqrt(1 - low * low)


def _inside(sine: float, degrees: int) -> float:
    """The probability of a smaller |t|: a finite series, as the number of degrees of freedom is even."""
    term = total = 1.0
    for k in range(1, degrees // 2):
        term *= (2 * k - 1) / (2 * k) * (1 - sine * sine)
        total += term
    return sine * total


def compared(metrics: Sequence[str]) -> list[str]:
    """Those that are compared: what judges images, and what is minimised."""
    return [name for name in metrics if name.startswith((EVALUATION, MINIMISED))]


def apart(name: str, runs: Mapping[tuple[str, int], Curve]) -> Apart | None:
    """Compare one metric.

    Args:
        name: The metric's.
        runs: By dial and seed; the same seeds of each of two dials.

    Returns:
        None if there is no place at which all of them have a finite value.
    """
    common = _common(list(runs.values()))
    if not len(common):
        return None
    values = {key: _values(name, curve, common) for key, curve in runs.items()}
    dials = list(dict.fromkeys(dial for dial, _ in runs))
    by_dial = {dial: np.stack([row for (own, _), row in values.items() if own == dial]) for dial in dials}
    one, other = by_dial.values()
    pairs = [row[i] - row[j] for row in (one, other) for i, j in itertools.combinations(range(len(row)), 2)]
    equal = bool(np.array_equal(one, other))
    return Apart(one.shape[1], _rms(one.mean(0) - other.mean(0)), _rms(np.stack(pairs)) if pairs else None, equal)


def _common(curves: Sequence[Curve]) -> npt.NDArray[np.int64]:
    """Where all of them have a finite value."""
    common = curves[0][0]
    for steps, values in curves:
        common = np.intersect1d(common, steps[np.isfinite(values)])
    return common


def _values(name: str, curve: Curve, common: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """At the common places; of losses, their means over stretches of these."""
    values = curve[1][np.searchsorted(curve[0], common)]
    if not name.startswith(MINIMISED):
        return values
    return np.array([stretch.mean() for stretch in np.array_split(values, min(WINDOWS, len(values)))])


def _rms(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean()))
