"""Density and coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models").

Each real has surroundings that reach to its k-th neighbour among the reals. Density: in how many of them a fake lies on
average, divided by k. Coverage: the share of reals in whose surroundings there is a fake.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, never
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import check_count
from hires_gan.evaluation.moments import check_alike, check_features
from hires_gan.evaluation.neighbours import centred, distance_blocks, radii
from hires_gan.evaluation.perceptual import exact_float32

NEIGHBOURS = 5
"""k of the paper."""


def density_and_coverage(
    reals: Tensor,
    fakes: Tensor,
    device: torch.device | str = "cpu",
    neighbours: int = NEIGHBOURS,
    stopped: Asked = never,
) -> tuple[float, float]:
    """Density and coverage of fakes.

    Args:
        reals: float32 `[n, d]`, n above `neighbours`.
        fakes: float32 `[m, d]`, m at least 1.
        device: Where distances are computed.
        neighbours: k.
        stopped: Asked before each block of distances: for 50,000 images, all take minutes on a CPU.

    Returns:
        Density, from 0, about 1 for equal distributions; coverage, 0 to 1.

    Raises:
        Stopped: If `stopped` became true.
        UsageError: If a set is too small.
        Failure: If they are of different dimensions.
        NotFinite: If they are not finite.
    """
    check_features(reals, "features of the reals")
    check_features(fakes, "features of the fakes")
    check_alike(reals.shape[1], fakes.shape[1])
    check_count("density", len(reals), "reals")
    if len(fakes) == 0:
        raise UsageError("density and coverage of no fakes cannot be computed; give at least one")
    if not 1 <= neighbours < len(reals):
        raise Failure(f"density with {neighbours} neighbours needs more reals than that, but there are {len(reals)}")
    reals, fakes = centred(reals, fakes, torch.device(device))
    with exact_float32():
        inside, covered = _counts(reals, fakes, radii(reals, neighbours, stopped), stopped)
    return inside / (neighbours * len(fakes)), covered / len(reals)


def _counts(reals: Tensor, fakes: Tensor, reach: Tensor, stopped: Asked) -> tuple[int, int]:
    """Pairs of a real and a fake in its surroundings, and reals that have one."""
    inside = covered = 0
    for rows, distances in distance_blocks(reals, fakes, stopped):
        within = distances < reach[rows, None]
        inside += int(within.sum())
        covered += int(within.any(dim=1).sum())
    return inside, covered
