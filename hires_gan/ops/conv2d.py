"""Plain convolutions whose derivatives, of any order, are the convolutions that the library computes fast.

torch's own double backward of a convolution computes the gradient of the weights as a forward convolution with a
kernel as large as the image: at 1024x1024 on an H200, R1's step took 0.9 s and the path length's 0.6 s, most of it in
kernels that no tensor core helps. There are only three operations, though, each linear in both of its arguments, and
each one's gradients are the two others (Goodfellow, Bengio and Courville 2016, section 9.5):

    y  = convolve(x, w)            dx = input_gradient(g, w)      dw = weight_gradient(x, g)
    d/dx, d/dw of y:               of dx, with a cotangent v:     of dw, with a cotangent u:
      input_gradient(g, w)           d/dg = convolve(v, w)          d/dx = input_gradient(g, u)
      weight_gradient(x, g)          d/dw = weight_gradient(v, g)   d/dg = convolve(x, u)

On a GPU everything is computed in channels_last, in which tensor cores work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hires_gan.ops.leaving_out import left_out

_inputs_only = 0
"""How many `inputs_only` are entered; a global of all threads, since a backward pass runs in threads of its own."""


@contextmanager
def inputs_only() -> Iterator[None]:
    """Within it, backward passes leave out the gradients of weights that are parameters.

    For `torch.autograd.grad` with respect to images or styles: torch tells a function which of its inputs can have
    gradients, but not which are asked for. Not for weights that themselves depend on what is asked for, which say so:
    `carries` in `conv2d`.
    """
    global _inputs_only
    _inputs_only += 1
    try:
        yield
    finally:
        _inputs_only -= 1


def conv2d(
    x: Tensor, w: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1, *, carries: bool = False
) -> Tensor:
    """Correlate: what `torch.nn.functional.conv2d` computes, with fast derivatives of any order.

    Args:
        x: `[n, cin, h, w]`; float64, float32, float16 or bfloat16.
        w: `[cout, cin / groups, kh, kw]`, in the dtype of `x`.
        stride: Along both axes.
        padding: Zeros on either side, along y and x.
        groups: Channels are convolved in so many separate groups.
        carries: Whether `w` depends on something whose gradient is asked for within `inputs_only`, whoever enters it;
            weights that are modulated by styles do.

    Returns:
        `[n, cout, h', w']` in the dtype of `x`.
    """
    return _convolved(x, w, _Geometry(stride, padding, groups, False, carries))


def conv_transpose2d(
    x: Tensor, w: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1, *, carries: bool = False
) -> Tensor:
    """The transpose of a correlation, as `torch.nn.functional.conv_transpose2d`; likewise.

    Args:
        x: `[n, cin, h, w]`.
        w: `[cin, cout / groups, kh, kw]`.
        stride: As in `conv2d`.
        padding: As in `conv2d`: so many pixels are cut off on either side of the result.
        groups: As in `conv2d`.
        carries: As in `conv2d`.
    """
    return _convolved(x, w, _Geometry(stride, padding, groups, True, carries))


class _Geometry(NamedTuple):
    stride: int
    padding: tuple[int, int]
    groups: int
    transposed: bool
    carries: bool


def _convolved(x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    x, w = _arranged(x), _arranged(w)
    if left_out("derivatives") or not torch.is_grad_enabled() or not (x.requires_grad or w.requires_grad):
        return _convolve(x, w, geometry)
    y: Tensor = _Convolve.apply(x, w, geometry)  # type: ignore[no-untyped-call]
    return y


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
        return _convolve(x, w, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, ctx.geometry = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        g = _arranged(dy[0])
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _InputGradient.apply(g, w, ctx.geometry, x.shape)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1] and _weights_wanted(ctx.geometry):
            dw = _WeightGradient.apply(x, g, ctx.geometry, w.shape)  # type: ignore[no-untyped-call]
        return dx, dw, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(dy: Tensor, w: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
        return _input_gradient(dy, w, geometry, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, w, ctx.geometry, _ = inputs
        ctx.save_for_backward(dy, w)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        x = _arranged(v[0])
        d_dy = dw = None
        if ctx.needs_input_grad[0]:
            d_dy = _Convolve.apply(x, w, ctx.geometry)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1] and _weights_wanted(ctx.geometry):
            dw = _WeightGradient.apply(x, dy, ctx.geometry, w.shape)  # type: ignore[no-untyped-call]
        return d_dy, dw, None, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, dy: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
        return _weight_gradient(x, dy, geometry, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, dy, ctx.geometry, _ = inputs
        ctx.save_for_backward(x, dy)

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        w = _arranged(u[0])
        dx = d_dy = None
        if ctx.needs_input_grad[0]:
            dx = _InputGradient.apply(dy, w, ctx.geometry, x.shape)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            d_dy = _Convolve.apply(x, w, ctx.geometry)  # type: ignore[no-untyped-call]
        return dx, d_dy, None, None


def _weights_wanted(geometry: _Geometry) -> bool:
    return geometry.carries or not _inputs_only


def layout(device_type: str) -> torch.memory_format | None:
    """How convolutions compute on a device; None: in whatever layout comes."""
    if device_type != "cuda":
        return None
    return torch.contiguous_format if left_out("channels-last") else torch.channels_last


def _arranged(tensor: Tensor) -> Tensor:
    """In channels_last on a GPU; as it is elsewhere."""
    wanted = layout(tensor.device.type)
    return tensor if wanted is None else tensor.contiguous(memory_format=wanted)


def _convolve(x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    stride, padding, groups, transposed, _ = geometry
    y: Tensor = torch.ops.aten.convolution(x, w, None, [stride] * 2, padding, [1, 1], transposed, [0, 0], groups)
    return y


def _input_gradient(dy: Tensor, w: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
    """The transpose in x: the transposed convolution with the same weights, and the other way round."""
    stride, padding, groups, transposed, _ = geometry
    rest = [0, 0]
    if not transposed:  # rows and columns at the end that no step of the stride reaches
        spans = [(dy.shape[2 + i] - 1) * stride - 2 * padding[i] + w.shape[2 + i] for i in (0, 1)]
        rest = [shape[2 + i] - spans[i] for i in (0, 1)]
    dx: Tensor = torch.ops.aten.convolution(dy, w, None, [stride] * 2, padding, [1, 1], not transposed, rest, groups)
    return dx


def _weight_gradient(x: Tensor, dy: Tensor, geometry: _Geometry, shape: torch.Size) -> Tensor:
    stride, padding, groups, transposed, _ = geometry
    # Of the weights, this gradient needs the shape and the format alone.
    unread = torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=layout(x.device.type) or torch.contiguous_format
    )
    wanted = [False, True, False]
    dw: Tensor = torch.ops.aten.convolution_backward(
        dy, x, unread, None, [stride] * 2, padding, [1, 1], transposed, [0, 0], groups, wanted
    )[1]
    return dw
