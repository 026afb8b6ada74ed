"""Density and coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models").

Each real has surroundings that reach to its k-th neighbour among the reals. Density: in how many of them a fake lies on
average, divided by k. Coverage: the share of reals in whose surroundings there is a fake.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import check_count
from hires_gan.evaluation.moments import check_alike, check_features
from hires_gan.evaluation.perceptual import exact_float32

NEIGHBOURS = 5
"""k of the paper."""
_ENTRIES = 2**25  # of the matrix of distances at a time: 134 MB in float32


def density_and_coverage(
    reals: Tensor, fakes: Tensor, device: torch.device | str = "cpu", neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Density and coverage of fakes.

    Rows of the matrix of distances are computed some at a time: beside the features on the device, a few hundred
    megabytes, whatever the size of the sets. Distances are float32, from features whose common mean was taken off in
    float64: without that, what is far from zero and close together would round to nothing.

    Args:
        reals: float32 `[n, d]`, n above `neighbours`.
        fakes: float32 `[m, d]`, m at least 1.
        device: Where distances are computed.
        neighbours: k.

    Returns:
        Density, from 0, about 1 for equal distributions; coverage, 0 to 1.

    Raises:
        UsageError: If a set is too small.
        Failure: If they are not finite, or of different dimensions.
    """
    check_features(reals, "features of the reals")
    check_features(fakes, "features of the fakes")
    check_alike(reals.shape[1], fakes.shape[1])
    check_count("density", len(reals), "reals")
    if len(fakes) == 0:
        raise UsageError("density and coverage of no fakes cannot be computed; give at least one")
    if not 1 <= neighbours < len(reals):
        raise Failure(f"density with {neighbours} neighbours needs more reals than that, but there are {len(reals)}")
    reals, fakes = _centred(reals, fakes, torch.device(device))
    with exact_float32():
        inside, covered = _counts(reals, fakes, _radii(reals, neighbours))
    return inside / (neighbours * len(fakes)), covered / len(reals)


def _centred(reals: Tensor, fakes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.stack([part.double().sum(0) for part in torch.split(reals, 1024)]).sum(0) / len(reals)

    def shifted(features: Tensor) -> Tensor:
        return torch.cat([(part.double() - mean).float() for part in torch.split(features, 1024)]).to(device)

    return shifted(reals), shifted(fakes)


def _radii(reals: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each real to its k-th neighbour among the others, `[n]`."""
    radii = []
    for rows, distances in _distances(reals, reals):
        own = torch.arange(rows.start, rows.stop, device=reals.device)
        distances[own - rows.start, own] = torch.inf  # by its number: rounding could set another real before it
        radii.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _counts(reals: Tensor, fakes: Tensor, radii: Tensor) -> tuple[int, int]:
    """Pairs of a real and a fake in its surroundings, and reals that have one."""
    inside = covered = 0
    for rows, distances in _distances(reals, fakes):
        within = distances < radii[rows, None]
        inside += int(within.sum())
        covered += int(within.any(dim=1).sum())
    return inside, covered


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of some rows of `a` to all of `b`, until all were there: `[rows, len(b)]`, at least 0."""
    squares = b.square().sum(1)
    step = max(1, _ENTRIES // len(b))
    for start in range(0, len(a), step):
        part = a[start : start + step]
        products = torch.addmm(squares[None, :], part, b.T, alpha=-2)
        products += part.square().sum(1)[:, None]
        yield slice(start, start + len(part)), products.clamp_(min=0)
