"""The metrics that compare features of two sets, by name, as one process computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped
from hires_gan.errors import UsageError
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need
from hires_gan.evaluation.coverage import density_and_coverage
from hires_gan.evaluation.fidelity import fid, inception_score, kid, precision_recall
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.real_features import RealFeatures

Number = tuple[float, float | None]
"""A value, and the deviation of one that is a mean over parts which differ."""
Found = dict[MetricName, Number | NotFinite]


@dataclass(frozen=True)
class Sets:
    """What is compared.

    Attributes:
        reals: None where no metric looks at them.
        features: Of fakes: float32 `[n, d]`.
        logits: Of fakes: float32 `[n, k]`; None for a network without, and where no metric looks at them.
        device: Where distances are computed.
    """

    reals: RealFeatures | None
    features: Tensor
    logits: Tensor | None
    device: torch.device

    @property
    def known(self) -> RealFeatures:
        """The reals of a metric that looks at them."""
        assert self.reals is not None, "reals are described for every metric of features"
        return self.reals


@dataclass(frozen=True)
class Comparison:
    """Metrics that share their work.

    Attributes:
        names: They.
        compute: Gives a number for each, and asks meanwhile whether to stop.
    """

    names: tuple[MetricName, ...]
    compute: Callable[[Sets, Asked], Sequence[Number]]

    def __call__(self, sets: Sets, stopped: Asked) -> Found:
        """Their numbers, or why there are none.

        Raises:
            Stopped: If `stopped` became true.
            UsageError: If the sets do not have what is compared.
        """
        if stopped():
            raise Stopped
        try:
            return dict(zip(self.names, self.compute(sets, stopped), strict=True))
        except NotFinite as error:
            return dict.fromkeys(self.names, error)


def comparisons(metrics: Sequence[MetricName]) -> list[Comparison]:
    """What is to be computed for the metrics of features among these."""
    return [one for one in _COMPARISONS if not set(metrics).isdisjoint(one.names)]


def of_features(metrics: Sequence[MetricName]) -> list[MetricName]:
    """Those that compare features of fakes with those of reals."""
    return [name for name in metrics if METRICS[name].need == Need.FEATURES]


def _fid(sets: Sets, stopped: Asked) -> list[Number]:
    return [(fid(sets.known.moments, moments(sets.features, stopped), stopped), None)]


def _kid(sets: Sets, stopped: Asked) -> list[Number]:
    found = kid(sets.known.features, sets.features, stopped)
    return [(found.mean, found.deviation)]


def _precision_recall(sets: Sets, stopped: Asked) -> list[Number]:
    found = precision_recall(sets.known.features, sets.features, sets.device, stopped)
    return [(value, None) for value in found]


def _density_coverage(sets: Sets, stopped: Asked) -> list[Number]:
    found = density_and_coverage(sets.known.features, sets.features, sets.device, stopped=stopped)
    return [(value, None) for value in found]


def _inception_score(sets: Sets, stopped: Asked) -> list[Number]:
    if sets.logits is None:
        raise UsageError(
            "inception_score needs a feature network that also returns logits, as a pair with the features, and this "
            "one returns features alone; take another one, or leave inception_score out"
        )
    found = inception_score(sets.logits, stopped)
    return [(found.mean, found.deviation)]


_COMPARISONS = (
    Comparison(("fid",), _fid),
    Comparison(("kid",), _kid),
    Comparison(("precision", "recall"), _precision_recall),
    Comparison(("density", "coverage"), _density_coverage),
    Comparison(("inception_score",), _inception_score),
)
