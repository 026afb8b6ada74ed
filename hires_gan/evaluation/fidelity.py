"""FID, KID, Inception score, precision and recall, by torch-fidelity's own functions and default protocol.

torch-fidelity is imported on first use: it is an extra. Numbers are the ones that it gives for the same features in the
same order, fakes as its first input and reals as its second.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import check_count
from hires_gan.evaluation.moments import Moments, check_alike, check_features
from hires_gan.evaluation.perceptual import exact_float32

SEED = 2020
"""Of the subsets of KID and of the order for the Inception score: torch-fidelity's default."""
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
"""Smaller sets are taken whole, in each subset in another order: then there is no deviation to speak of."""
KID_KERNEL = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
"""The kernel of Binkowski et al. 2018: (x y / d + 1)^3."""
SCORE_SPLITS = 10
NEIGHBOURHOOD = 3
"""Neighbours that decide how far a sample's surroundings reach, in precision and recall (Kynkäänniemi et al. 2019)."""

_ROWS = 1024  # at a time, in precision and recall: bounds the matrix of distances


@dataclass(frozen=True)
class Estimate:
    """A number that is a mean over parts.

    Attributes:
        mean: Over the parts.
        deviation: Standard deviation over the parts (divided by their number).
    """

    mean: float
    deviation: float


def torch_fidelity(module: str) -> ModuleType:
    """A module of torch-fidelity.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"metrics from features need torch-fidelity, and {error.name} is not installed: pip install "
            f"'hires-gan[metrics]', or take swd alone, which needs nothing"
        ) from error


def fid(reals: Moments, fakes: Moments) -> float:
    """The Fréchet distance between the normal distributions with the moments of two sets (Heusel et al. 2017).

    It takes eigenvalues of a `[d, d]` matrix: seconds, for 2,048 features.

    Args:
        reals: Of at least 2 images.
        fakes: Likewise.

    Raises:
        UsageError: If a set is too small.
        Failure: If they have different dimensions.
    """
    check_count("fid", reals.count, "reals")
    check_count("fid", fakes.count, "fakes")
    check_alike(len(reals.mean), len(fakes.mean))
    statistics = [{"mu": one.mean, "sigma": one.covariance} for one in (fakes, reals)]
    found = torch_fidelity("metric_fid").fid_statistics_to_metric(*statistics, verbose=False)
    return _finite("fid", found["frechet_inception_distance"])


def kid_subset_size(reals: int, fakes: int) -> int:
    """How many of each set are in a subset of KID, for sets of these sizes."""
    return min(KID_SUBSET_SIZE, reals, fakes)


def kid(reals: Tensor, fakes: Tensor) -> Estimate:
    """The squared maximum mean discrepancy, unbiased, as mean over `KID_SUBSETS` subsets (Binkowski et al. 2018).

    In float32, as torch-fidelity computes it: about 1e-6 is rounding.

    Args:
        reals: float32 `[n, d]`, n at least 2.
        fakes: float32 `[m, d]`, m at least 2.

    Raises:
        UsageError: If a set is too small.
        Failure: If they are not finite, or of different dimensions.
    """
    _check_pair("kid", reals, fakes)
    with np.errstate(over="ignore", invalid="ignore"):  # `_estimate` says it
        found = torch_fidelity("metric_kid").kid_features_to_metric(
            fakes,
            reals,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=kid_subset_size(len(reals), len(fakes)),
            kid_kernel="poly",
            **KID_KERNEL,
            rng_seed=SEED,
            verbose=False,
        )
    return _estimate("kid", found, "kernel_inception_distance")


def inception_score(logits: Tensor) -> Estimate:
    """The exponential of the mean divergence of p(class | image) from p(class), in 10 parts (Salimans et al. 2016).

    Args:
        logits: float32 `[n, k]` of fakes, n at least 10; in a shuffled order they are cut into the parts.

    Raises:
        UsageError: If there are too few.
        Failure: If they are not finite.
    """
    check_features(logits, "logits of the fakes")
    check_count("inception_score", len(logits), "fakes")
    found = torch_fidelity("metric_isc").isc_features_to_metric(logits, SCORE_SPLITS, True, SEED)
    return _estimate("inception_score", found, "inception_score")


def precision_recall(reals: Tensor, fakes: Tensor, device: torch.device | str = "cpu") -> tuple[float, float]:
    """How many fakes lie among the reals, and how many reals among the fakes (Kynkäänniemi et al. 2019).

    A sample lies among a set if it is as near to one of its members as that member's third neighbour. Distances are
    computed in blocks: beside the features, about 20 kB of host memory for each image of the larger set (1 GB for
    50,000).

    Args:
        reals: float32 `[n, d]`, n at least 4.
        fakes: float32 `[m, d]`, m at least 4.
        device: Where distances are computed.

    Returns:
        Precision and recall, 0 to 1.

    Raises:
        UsageError: If a set is too small.
        Failure: If they are not finite, or of different dimensions.
    """
    _check_pair("precision", reals, fakes)
    with exact_float32():
        found = torch_fidelity("metric_prc").prc_features_to_metric(
            fakes.to(device),
            reals.to(device),
            prc_neighborhood=NEIGHBOURHOOD,
            prc_batch_size=_ROWS,
            save_cpu_ram=True,
            verbose=False,
        )
    return found["precision"], found["recall"]


def _check_pair(name: str, reals: Tensor, fakes: Tensor) -> None:
    check_features(reals, "features of the reals")
    check_features(fakes, "features of the fakes")
    check_alike(reals.shape[1], fakes.shape[1])
    check_count(name, len(reals), "reals")
    check_count(name, len(fakes), "fakes")


def _estimate(name: str, found: dict[str, float], key: str) -> Estimate:
    return Estimate(_finite(name, found[f"{key}_mean"]), _finite(name, found[f"{key}_std"]))


def _finite(name: str, value: float) -> float:
    if not abs(value) < float("inf"):
        raise Failure(f"{name} is {value}: the features are too large for float32; take another feature network")
    return value
