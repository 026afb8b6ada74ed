"""Pixel blitting (appendix B): flips, right-angled rotations and whole translations copy pixels, and blend none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hires_gan.augment.draws import Choice


def turned(x: Tensor, choice: Choice) -> Tensor:
    """Flip and rotate: `[n, c, s, s]` -> the same.

    The eight outcomes are a transposition, then a flip along y, then one along x, each done or not.
    """
    if not choice.settings.any_of("xflip", "rotate90"):
        return x
    flip = choice.happens("xflip") & (choice.uniform("xflip", 1) < 0.5)
    quarters = torch.where(choice.happens("rotate90"), (choice.uniform("rotate90", 1) * 4).floor(), 0)
    odd = quarters % 2 == 1
    along_y = ((quarters == 1) | (quarters == 2)) ^ (flip & odd)
    along_x = (quarters >= 2) ^ (flip & ~odd)
    x = torch.where(_per_image(odd), x.transpose(2, 3), x)
    x = torch.where(_per_image(along_y), x.flip(2), x)
    return torch.where(_per_image(along_x), x.flip(3), x)


def translation(choice: Choice, side: int) -> tuple[Tensor, Tensor]:
    """Whole pixels along x and y, float64 `[n]` each; 0 where the transformation is not applied."""
    happens = choice.happens("xint")
    most = choice.settings.xint_max * side
    x, y = (torch.where(happens, (choice.centred("xint", place) * most).round(), 0) for place in (1, 2))
    return x, y


def translated(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Translate by whole pixels, reflecting at the borders: `[n, c, s, s]` -> the same.

    Args:
        x: The images.
        by: Pixels along x and y, `[n]` each, below the side in magnitude.
    """
    for dim, offset in ((3, by[0]), (2, by[1])):
        x = _Shift.apply(x, offset.to(torch.int64), dim)  # type: ignore[no-untyped-call]
    return x


def _per_image(flag: Tensor) -> Tensor:
    return flag[:, None, None, None]


def _gathered(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """`x` at the positions `index` `[n, s]` of one dimension."""
    shape = [1] * 4
    shape[0], shape[dim] = index.shape
    return torch.gather(x, dim, index.reshape(shape).expand(x.shape))


class _Shift(torch.autograd.Function):
    """y[i] = x[mirrored(i - t)] along one dimension, and its gradient without scattered additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(offset)
        ctx.dim = dim
        last = x.shape[dim] - 1
        place = torch.arange(last + 1, device=x.device) - offset[:, None]
        return _gathered(x, last - (last - place.abs()).abs(), dim)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None, None]:
        return _ShiftAdjoint.apply(dy[0], *ctx.saved_tensors, ctx.dim), None, None  # type: ignore[no-untyped-call]


class _ShiftAdjoint(torch.autograd.Function):
    """The adjoint: pixel j is seen directly at j + t, in the lower mirror at t - j, in the upper at 2 last - j + t."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, offset: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(offset)
        ctx.dim = dim
        last = dy.shape[dim] - 1
        place, offset = torch.arange(last + 1, device=dy.device), offset[:, None]
        dx = _where_inside(dy, place + offset, dim, place >= 0)
        dx += _where_inside(dy, offset - place, dim, place > 0)
        dx += _where_inside(dy, 2 * last - place + offset, dim, place < last)
        return dx

    @staticmethod
    def backward(ctx: Any, *ddx: Tensor) -> tuple[Tensor, None, None]:
        return _Shift.apply(ddx[0], *ctx.saved_tensors, ctx.dim), None, None  # type: ignore[no-untyped-call]


def _where_inside(dy: Tensor, index: Tensor, dim: int, seen: Tensor) -> Tensor:
    """`dy` at `index` `[n, s]` where that lies in the image and `seen` `[s]`, else 0."""
    last = dy.shape[dim] - 1
    inside = (index >= 0) & (index <= last) & seen
    shape = [1] * 4
    shape[0], shape[dim] = index.shape
    return torch.where(inside.reshape(shape), _gathered(dy, index.clamp(0, last), dim), 0)
