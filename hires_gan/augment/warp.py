"""Affine warping of periodic images by bilinear sampling, differentiable to any order.

torch's gradient of grid sampling has no derivative of its own, and on CUDA adds in no fixed order. Here the gradient
of the warp is an operation, its gradient is the warp again, and under `torch.use_deterministic_algorithms` it adds in
a fixed order. The grid is computed anew where it is needed: what a warp keeps for its gradient is one matrix an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Frame(NamedTuple):
    """The squares that a warp reads and writes, in pixels.

    Attributes:
        side: Of the input; at least period + 1.
        centre: Where the origin of the matrices lies in the input, along both axes, from the first pixel's centre.
        period: The input goes on beyond its border by repeating itself after so many pixels.
        out: Side of the output.
        out_centre: Where the origin lies in the output, likewise.
    """

    side: int
    centre: float
    period: int
    out: int
    out_centre: float


def warp(x: Tensor, inverse: Tensor, frame: Frame) -> Tensor:
    """Sample images at the positions to which a matrix takes the pixels of the output.

    Args:
        x: `[n, c, side, side]`, float32 or float64.
        inverse: float64 `[n, 2, 3]`: (x, y, 1) in the output -> (x, y) in the input, from their origins.
        frame: The squares.

    Returns:
        `[n, c, out, out]`.
    """
    warped: Tensor = _Warp.apply(x, inverse, frame)  # type: ignore[no-untyped-call]
    return warped


def positions(inverse: Tensor, frame: Frame, dtype: torch.dtype) -> Tensor:
    """Where the input is sampled: `[n, out, out, 2]`, x and y in its pixels, in [0, period]."""
    along = torch.arange(frame.out, dtype=torch.float64, device=inverse.device) - frame.out_centre
    grid = torch.empty((inverse.shape[0], frame.out, frame.out, 2), dtype=dtype, device=inverse.device)
    for row in (0, 1):
        of_x = (inverse[:, row, 0, None] * along + (inverse[:, row, 2, None] + frame.centre)).remainder(frame.period)
        of_y = (inverse[:, row, 1, None] * along).remainder(frame.period)  # both small before they are rounded
        torch.add(of_x.to(dtype)[:, None, :], of_y.to(dtype)[:, :, None], out=grid[..., row])
    return grid.remainder_(frame.period)


def _normalised(grid: Tensor, side: int) -> Tensor:
    """Pixels -> the [-1, 1] between the centres of the outermost pixels that torch's sampling wants; in place."""
    return grid.mul_(2 / (side - 1)).sub_(1)


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor, frame: Frame) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.frame = frame
        grid = _normalised(positions(inverse, frame, x.dtype), frame.side)
        sampled: Tensor = torch.ops.aten.grid_sampler_2d(x, grid, 0, 0, True)  # bilinear; nothing lies outside
        return sampled

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None, None]:
        return _WarpAdjoint.apply(dy[0], *ctx.saved_tensors, ctx.frame), None, None  # type: ignore[no-untyped-call]


class _WarpAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, inverse: Tensor, frame: Frame) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.frame = frame
        grid = positions(inverse, frame, dy.dtype)
        deterministic = torch.are_deterministic_algorithms_enabled()
        return adjoint_in_order(dy, grid, frame.side) if deterministic else adjoint(dy, grid, frame.side)

    @staticmethod
    def backward(ctx: Any, *ddx: Tensor) -> tuple[Tensor, None, None]:
        return _Warp.apply(ddx[0], *ctx.saved_tensors, ctx.frame), None, None  # type: ignore[no-untyped-call]


def adjoint(dy: Tensor, grid: Tensor, side: int) -> Tensor:
    """`[n, c, out, out]` -> `[n, c, side, side]` by torch's kernel; `grid`, in pixels, is overwritten."""
    shape = (*dy.shape[:2], side, side)
    unread = dy.new_zeros(()).expand(shape)  # of the input, this gradient needs the shape alone
    dx: Tensor = torch.ops.aten.grid_sampler_2d_backward(
        dy.contiguous(), unread, _normalised(grid, side), 0, 0, True, [True, False]
    )[0]
    return dx


def adjoint_in_order(dy: Tensor, grid: Tensor, side: int) -> Tensor:
    """The same, adding in a fixed order: torch's `index_put` sorts by pixel before it adds.

    One image and one of the four neighbours at a time, which bounds the memory of the sorting.
    """
    n, c = dy.shape[:2]
    dx = dy.new_zeros((n, side * side, c))
    for image, at, values in zip(dx, grid, dy, strict=True):
        values = values.permute(1, 2, 0)
        corner = at.floor()
        behind = at - corner
        first = (corner[..., 1] * side + corner[..., 0]).to(torch.int64)
        for right in (0, 1):
            for below in (0, 1):
                index = (first + (below * side + right)).flatten()
                share = values * _share(behind, right, below)
                image.index_put_((index,), share.reshape(-1, c), accumulate=True)
    return dx.reshape(n, side, side, c).permute(0, 3, 1, 2)


def _share(behind: Tensor, right: int, below: int) -> Tensor:
    """The bilinear weight of one neighbour, `[out, out, 1]`."""
    x = behind[..., 0:1] if right else 1 - behind[..., 0:1]
    y = behind[..., 1:2] if below else 1 - behind[..., 1:2]
    return x * y
