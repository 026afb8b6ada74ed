"""Reflection at the borders: the pixel at the border is the mirror, and occurs once.

Written in slices and concatenation, whose gradient is deterministic on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reflected(x: Tensor, dim: int, before: int, behind: int) -> Tensor:
    """Extend `dim` by so many pixels at its ends, by as many reflections as that takes."""
    while before > 0 or behind > 0:
        size = x.shape[dim]
        first, last = min(before, size - 1), min(behind, size - 1)
        low = x.narrow(dim, 1, first).flip(dim)
        high = x.narrow(dim, size - 1 - last, last).flip(dim)
        x = torch.cat((low, x, high), dim)
        before, behind = before - first, behind - last
    return x
