"""FID, KID, Inception score, precision and recall, by torch-fidelity's default protocol.

Numbers are the ones that it gives for the same features in the same order, fakes as its first input and reals as its
second. FID, the Inception score and each subset of KID are its own functions'; precision and recall are computed here,
so that they can be stopped, and in bounded memory. torch-fidelity is imported on first use: it is an extra.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.errors import UsageError
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.beside import beside
from hires_gan.evaluation.catalogue import check_count
from hires_gan.evaluation.moments import Moments, check_alike, check_features
from hires_gan.evaluation.neighbours import centred, distance_blocks, radii
from hires_gan.evaluation.perceptual import exact_float32

SEED = 2020
"""Of the subsets of KID and of the order for the Inception score: torch-fidelity's default."""
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
"""Smaller sets are taken whole, in each subset in another order: then there is no deviation but that of rounding."""
KID_KERNEL = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
"""The kernel of Binkowski et al. 2018: (x y / d + 1)^3."""
SCORE_SPLITS = 10
NEIGHBOURHOOD = 3
"""Neighbours that decide how far a sample's surroundings reach, in precision and recall (Kynkäänniemi et al. 2019)."""


@dataclass(frozen=True)
class Estimate:
    """A number that is a mean over parts.

    Attributes:
        mean: Over the parts.
        deviation: Standard deviation over the parts (divided by their number); None where all parts are the same.
    """

    mean: float
    deviation: float | None


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


def fid(reals: Moments, fakes: Moments, stopped: Asked = never) -> float:
    """The Fréchet distance between the normal distributions with the moments of two sets (Heusel et al. 2017).

    It takes eigenvalues of a `[d, d]` matrix: some 3 s on two CPU cores for 2,048 features, a minute for 4,096.

    Args:
        reals: Of at least 2 images.
        fakes: Likewise.
        stopped: Asked every `SLICE` seconds meanwhile.

    Raises:
        Stopped: If `stopped` became true.
        UsageError: If a set is too small.
        Failure: If they have different dimensions.
        NotFinite: If it is too large.
    """
    check_count("fid", reals.count, "reals")
    check_count("fid", fakes.count, "fakes")
    check_alike(len(reals.mean), len(fakes.mean))
    statistics = [{"mu": one.mean, "sigma": one.covariance} for one in (fakes, reals)]
    compute = torch_fidelity("metric_fid").fid_statistics_to_metric
    found = beside(lambda: compute(*statistics, verbose=False), stopped)
    return _finite("fid", found["frechet_inception_distance"])


def kid_subset_size(reals: int, fakes: int) -> int:
    """How many of each set are in a subset of KID, for sets of these sizes."""
    return min(KID_SUBSET_SIZE, reals, fakes)


def kid(reals: Tensor, fakes: Tensor, stopped: Asked = never) -> Estimate:
    """The squared maximum mean discrepancy, unbiased, as mean over `KID_SUBSETS` subsets (Binkowski et al. 2018).

    In float32, as torch-fidelity computes it: about 1e-6 is rounding. Where both sets are taken whole, that is all by
    which subsets differ, and there is no deviation.

    Args:
        reals: float32 `[n, d]`, n at least 2.
        fakes: float32 `[m, d]`, m at least 2.
        stopped: Asked before each subset: for 2,048 features, all take half a minute on a CPU.

    Raises:
        Stopped: If `stopped` became true.
        UsageError: If a set is too small.
        Failure: If they are of different dimensions.
        NotFinite: If they are not finite, or it is too large.
    """
    _check_pair("kid", reals, fakes)
    random, size = np.random.RandomState(SEED), kid_subset_size(len(reals), len(fakes))
    sets = fakes.cpu().numpy(), reals.cpu().numpy()
    found = []
    for _ in range(KID_SUBSETS):
        if stopped():
            raise Stopped
        one, two = (features[random.choice(len(features), size, replace=False)] for features in sets)
        with np.errstate(over="ignore", invalid="ignore"):  # `_finite` says it
            found.append(torch_fidelity("metric_kid").kernel_mmd(one, two, kid_kernel="poly", **KID_KERNEL))
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = (_finite("kid", float(of(found))) for of in (np.mean, np.std))
    return Estimate(mean, None if size == len(reals) == len(fakes) else deviation)


def inception_score(logits: Tensor, stopped: Asked = never) -> Estimate:
    """The exponential of the mean divergence of p(class | image) from p(class), in 10 parts (Salimans et al. 2016).

    Args:
        logits: float32 `[n, k]` of fakes, n at least 10; in a shuffled order they are cut into the parts.
        stopped: Asked every `SLICE` seconds meanwhile: 50,000 of 1,008 take some 4 s on a CPU.

    Raises:
        Stopped: If `stopped` became true.
        UsageError: If there are too few.
        NotFinite: If they are not finite.
    """
    check_features(logits, "logits of the fakes")
    check_count("inception_score", len(logits), "fakes")
    compute = torch_fidelity("metric_isc").isc_features_to_metric
    found = beside(lambda: compute(logits, SCORE_SPLITS, True, SEED), stopped)
    return Estimate(*(_finite("inception_score", found[f"inception_score_{part}"]) for part in ("mean", "std")))


def precision_recall(
    reals: Tensor, fakes: Tensor, device: torch.device | str = "cpu", stopped: Asked = never
) -> tuple[float, float]:
    """How many fakes lie among the reals, and how many reals among the fakes (Kynkäänniemi et al. 2019).

    A sample lies among a set if it is as near to one of its members as that member's third neighbour. torch-fidelity's
    numbers, but for distances that differ by no more than rounding; its own function cannot be stopped, and computes
    the distances between the sets twice.

    Args:
        reals: float32 `[n, d]`, n at least 4.
        fakes: float32 `[m, d]`, m at least 4.
        device: Where distances are computed.
        stopped: Asked before each block of distances: for 50,000 images, all take minutes on a CPU.

    Returns:
        Precision and recall, 0 to 1.

    Raises:
        Stopped: If `stopped` became true.
        UsageError: If a set is too small.
        Failure: If they are of different dimensions.
        NotFinite: If they are not finite.
    """
    _check_pair("precision", reals, fakes)
    reals, fakes = centred(reals, fakes, torch.device(device))
    with exact_float32():
        among_reals, among_fakes = _counts_among(reals, fakes, stopped)
    return among_reals / len(fakes), among_fakes / len(reals)


def _counts_among(reals: Tensor, fakes: Tensor, stopped: Asked) -> tuple[int, int]:
    """How many fakes lie among the reals, and how many reals among the fakes."""
    reach_of_reals, reach_of_fakes = (radii(features, NEIGHBOURHOOD, stopped) for features in (reals, fakes))
    fake_is_among = torch.zeros(len(fakes), dtype=torch.bool, device=fakes.device)
    reals_among = 0
    for rows, distances in distance_blocks(reals, fakes, stopped):
        fake_is_among |= (distances <= reach_of_reals[rows, None]).any(dim=0)
        reals_among += int((distances <= reach_of_fakes).any(dim=1).sum())
    return int(fake_is_among.sum()), reals_among


def _check_pair(name: str, reals: Tensor, fakes: Tensor) -> None:
    check_features(reals, "features of the reals")
    check_features(fakes, "features of the fakes")
    check_alike(reals.shape[1], fakes.shape[1])
    check_count(name, len(reals), "reals")
    check_count(name, len(fakes), "fakes")


def _finite(name: str, value: float) -> float:
    if not abs(value) < float("inf"):
        raise NotFinite(f"{name} is {value}: the features are too large for float32; take another feature network")
    return value
