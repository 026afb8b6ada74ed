"""The metrics that compare features of two sets, by name, as one process computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hires_gan.errors import UsageError
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need
from hires_gan.evaluation.coverage import density_and_coverage
from hires_gan.evaluation.fidelity import fid, inception_score, kid, precision_recall
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.real_features import RealFeatures

Found = dict[MetricName, tuple[float, float | None]]
"""Values, and deviations of those that are means over parts."""


Names = tuple[MetricName, MetricName]
Pair = Callable[[Tensor, Tensor, torch.device], tuple[float, float]]
_PAIRS: dict[Names, Pair] = {("precision", "recall"): precision_recall, ("density", "coverage"): density_and_coverage}


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


def comparisons(metrics: Sequence[MetricName]) -> Iterator[Callable[[Sets], Found]]:
    """What is to be computed for the metrics of features among these, those together that share their work."""
    if "fid" in metrics:
        yield _fid
    if "kid" in metrics:
        yield _kid
    for pair, compute in _PAIRS.items():
        wanted = [name for name in metrics if name in pair]
        if wanted:
            yield partial(_pair, pair, compute, wanted)
    if "inception_score" in metrics:
        yield _inception_score


def of_features(metrics: Sequence[MetricName]) -> list[MetricName]:
    """Those that compare features of fakes with those of reals."""
    return [name for name in metrics if METRICS[name].need == Need.FEATURES]


def _fid(sets: Sets) -> Found:
    return {"fid": (fid(sets.known.moments, moments(sets.features)), None)}


def _kid(sets: Sets) -> Found:
    found = kid(sets.known.features, sets.features)
    return {"kid": (found.mean, found.deviation)}


def _pair(names: Names, compute: Pair, wanted: Sequence[MetricName], sets: Sets) -> Found:
    found = compute(sets.known.features, sets.features, sets.device)
    return {name: (value, None) for name, value in zip(names, found, strict=True) if name in wanted}


def _inception_score(sets: Sets) -> Found:
    if sets.logits is None:
        raise UsageError(
            "inception_score needs a feature network that also returns logits, as a pair with the features, and this "
            "one returns features alone; take another one, or leave inception_score out"
        )
    found = inception_score(sets.logits)
    return {"inception_score": (found.mean, found.deviation)}
