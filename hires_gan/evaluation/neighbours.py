"""How near features lie to each other: squared distances, some rows of their matrix at a time.

Beside the features on the device, this takes a few hundred megabytes whatever the size of the sets, and it can be
stopped between two blocks: on two CPU cores a block of 2,048 features takes a few seconds. Distances are float32, from
features without their common mean: else what is far from zero and close together would round to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped

_ENTRIES = 2**25  # of the matrix of distances at a time: 134 MB in float32
_ROWS = 1024  # converted to float64 at a time


def centred(reals: Tensor, fakes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both sets without the mean of the reals, on the device.

    The mean is rounded to the power of two below the reals' deviation: so what is not far from zero stays as it is,
    and of numbers on a grid, distances that are equal stay so.

    Args:
        reals: float32 `[n, d]`, n at least 1.
        fakes: float32 `[m, d]`.
        device: Where distances are to be computed.
    """
    centre = _rounded_mean(reals)

    def shifted(features: Tensor) -> Tensor:
        return torch.cat([(part.double() - centre).float() for part in torch.split(features, _ROWS)]).to(device)

    return shifted(reals), shifted(fakes)


def _rounded_mean(features: Tensor) -> Tensor:
    """float64 `[d]`."""
    parts = torch.split(features, _ROWS)
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(features)
    squares = torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0)
    step = (squares / len(features)).sqrt().log2().floor().exp2()
    return torch.where(step > 0, (mean / step).round() * step, mean)


def radii(features: Tensor, neighbours: int, stopped: Asked) -> Tensor:
    """Squared distance of each member of a set to its k-th neighbour among the others, `[n]`.

    Args:
        features: As `centred` gives them, `[n, d]`.
        neighbours: k, below n.
        stopped: Asked before each block.

    Raises:
        Stopped: If `stopped` became true.
    """
    found = []
    for rows, distances in distance_blocks(features, features, stopped):
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distances[own - rows.start, own] = torch.inf  # by its number: rounding could set another one before it
        found.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(found)


def distance_blocks(a: Tensor, b: Tensor, stopped: Asked) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of some rows of `a` to all of `b`, until all were there: `[rows, len(b)]`, at least 0.

    Args:
        a: `[n, d]`.
        b: `[m, d]`.
        stopped: Asked before each block.

    Raises:
        Stopped: If `stopped` became true.
    """
    squares = b.square().sum(1)
    step = max(1, _ENTRIES // len(b))
    for start in range(0, len(a), step):
        if stopped():
            raise Stopped
        part = a[start : start + step]
        products = torch.addmm(squares[None, :], part, b.T, alpha=-2)
        products += part.square().sum(1)[:, None]
        yield slice(start, start + len(part)), products.clamp_(min=0)
