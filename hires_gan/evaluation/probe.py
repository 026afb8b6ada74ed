"""A network tried on a few fixed images: whether it gives the same for the same, and a few numbers that tell it apart.

The numbers stand for weights that cannot be seen. They are rounded to a part of about 1,000, so that they are mostly
equal where others have rounded otherwise (a GPU, another number of threads), and differ where weights differ by more.
Neither is certain: one network may have two checksums on two machines, and two that are nearly the same have one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_PROJECTIONS = 4
_STEP = 1e-3
_CLOSE = 1e-2
"""How far sketches of one network may be apart: far more than rounding does, far less than other weights do."""
_SAME = 1e-3
"""Of the largest feature: how far two passes over an image may be apart."""


def probe_images(side: int) -> Tensor:
    """Two batches of two images, the first of which is in both: uint8 `[2, 2, 3, side, side]`, the same everywhere.

    The other image of the second batch is darker: what depends on a batch's statistics gives itself away.
    """
    count = 3 * side**2
    noise = _bytes("images", 2 * count).reshape(2, 3, side, side)
    return torch.stack((noise, torch.stack((noise[0], noise[1] // 4))))


def differ(features: Tensor, again: Tensor) -> bool:
    """Whether an image has other features in two passes, by more than rounding: `[d]` each."""
    largest = max(float(features.abs().max()), float(again.abs().max()))
    return float((features - again).abs().max()) > _SAME * largest


def sketch(features: Tensor) -> list[float]:
    """A few numbers that stand for features.

    Args:
        features: `[n, d]`, finite.

    Returns:
        For each image the logarithm of its features' norm, and sums of them with fixed signs, divided by the norm.
    """
    rows = features.double()
    norms = rows.norm(dim=1).clamp_min(1e-300)
    found = [norms.log()]
    for number in range(_PROJECTIONS):
        signs = (_bytes(f"signs {number}", rows.shape[1]) > 127).double() * 2 - 1
        found.append(rows @ signs / norms)
    return [float(value) for value in torch.cat(found)]


def sketch_digest(numbers: Sequence[float]) -> str:
    """The sha256 of a sketch, rounded."""
    return hashlib.sha256(repr([round(value / _STEP) for value in numbers]).encode()).hexdigest()


def are_close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches are of one network, whatever rounds."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=0, abs_tol=_CLOSE) for a, b in zip(one, other, strict=True)
    )


def _bytes(name: str, count: int) -> Tensor:
    """uint8 `[count]`, like random ones, the same on every machine and in every version."""
    return torch.frombuffer(bytearray(hashlib.shake_256(name.encode()).digest(count)), dtype=torch.uint8)
