"""Small homogeneous matrices, one per sample: the geometry in two dimensions, the colours in three.

Products are sums of products, not calls of a matrix library: those round otherwise for other batches, and may refuse
to be deterministic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LUMA = 1 / math.sqrt(3.0)
"""Each coordinate of the unit vector along which R, G and B grow together."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product `[n, i, j] x [n, j, k] -> [n, i, k]`."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(2)


def _rows(rows: list[list[Tensor | int]], like: Tensor) -> Tensor:
    """`[n, i, k]` of rows of entries, each `[n]` or 0 or 1, in the dtype and on the device of `like` `[n]`."""
    constants = {0: torch.zeros_like(like), 1: torch.ones_like(like)}
    entries = [entry if isinstance(entry, Tensor) else constants[entry] for row in rows for entry in row]
    return torch.stack(entries, dim=1).reshape(like.shape[0], len(rows), len(rows[0]))


def scale2d(x: Tensor, y: Tensor) -> Tensor:
    """Scaling by `x` and `y` `[n]`: `[n, 3, 3]`."""
    return _rows([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def rotate2d(angle: Tensor) -> Tensor:
    """Rotation by `angle` `[n]`, from the x axis towards the y axis: `[n, 3, 3]`."""
    cos, sin = angle.cos(), angle.sin()
    return _rows([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], angle)


def translate2d(x: Tensor, y: Tensor) -> Tensor:
    """Translation by `x` and `y` `[n]`: `[n, 3, 3]`."""
    return _rows([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


def translate3d(by: Tensor) -> Tensor:
    """Translation by `by` `[n]` along each of three axes: `[n, 4, 4]`."""
    return _rows([[1, 0, 0, by], [0, 1, 0, by], [0, 0, 1, by], [0, 0, 0, 1]], by)


def scale3d(by: Tensor) -> Tensor:
    """Scaling by `by` `[n]`: `[n, 4, 4]`."""
    return _rows([[by, 0, 0, 0], [0, by, 0, 0], [0, 0, by, 0], [0, 0, 0, 1]], by)


def about_luma(along: Tensor, across: Tensor) -> Tensor:
    """Scaling by `along` `[n]` in the direction of the luma axis and by `across` `[n]` perpendicular to it."""
    same, other = (along + 2 * across) / 3, (along - across) / 3
    return _rows([[same, other, other, 0], [other, same, other, 0], [other, other, same, 0], [0, 0, 0, 1]], along)


def rotate_about_luma(angle: Tensor) -> Tensor:
    """Rotation by `angle` `[n]` about the luma axis, by Rodrigues' formula: `[n, 4, 4]`."""
    cos, sin = angle.cos(), angle.sin() * LUMA
    same, other = (1 + 2 * cos) / 3, (1 - cos) / 3
    behind, ahead = other - sin, other + sin
    return _rows(
        [[same, behind, ahead, 0], [ahead, same, behind, 0], [behind, ahead, same, 0], [0, 0, 0, 1]],
        angle,
    )
