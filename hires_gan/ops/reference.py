"""The definitions in plain torch: what the native kernels are held against, and the implementation where they are not.

Everything here is ordinary torch code, differentiable to any order by torch's own autograd and traceable in one graph.
The arguments come normalised and checked from the public functions. Half and bfloat16 are computed in float32 and
rounded once, at the end.

upfirdn2d is written in two ways. On the CPU a depthwise convolution, or the transposed one for zero stuffing, is
several times faster than a sum of shifted slices, backward pass included. Elsewhere it is that sum, phase by phase: a
compiler fuses it into one kernel, and no convolution library's reduced precision gets in. Neither multiplies a tap
with a stuffed zero, so that a NaN reaches only what it touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hires_gan.ops.checks import accumulation_dtype, kept_format

_JOINT_TAPS_CONVOLVED = 12
_JOINT_TAPS_SUMMED = 6
"""Up to this many taps, one pass with the outer product of a separable filter is faster than a pass per axis."""

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


def _dense(x: Tensor) -> Tensor:
    """The tensor itself where it is contiguous or channels_last, else a contiguous copy."""
    return x.contiguous(memory_format=kept_format(x))


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Stuff with zeros, pad or crop, filter, decimate.

    Per axis, with u the zero-stuffed signal and g the filter (reversed unless `flip_filter`):
    `y[m] = sum_t g[t] * u[m * down + t - p0]`.

    Args:
        x: `[n, c, h, w]`, floating; n may be 0.
        f: `[n]` for both axes, `[fh, fw]`, or None for a single tap of 1; on the device of `x`.
        up: Factors (x, y), at least 1.
        down: Factors (x, y), at least 1.
        padding: (x0, x1, y0, y1) on the zero-stuffed grid; negative values crop.
        flip_filter: Correlate instead of convolve.
        gain: Factor of the result.

    Returns:
        `[n, c, h', w']` in the dtype and memory format of `x`.
    """
    channels_last = kept_format(x) == torch.channels_last
    y = _dense(x).to(accumulation_dtype(x.dtype))
    run, joint = (_convolved, _JOINT_TAPS_CONVOLVED) if y.device.type == "cpu" else (_summed, _JOINT_TAPS_SUMMED)
    with torch.autocast(y.device.type, enabled=False):  # it would convolve in bfloat16
        for kernel, (on_x, on_y) in _passes(f, y, flip_filter, gain, joint):
            y = run(
                y,
                kernel,
                (up[0] if on_x else 1, up[1] if on_y else 1),
                (down[0] if on_x else 1, down[1] if on_y else 1),
                (*(padding[:2] if on_x else (0, 0)), *(padding[2:] if on_y else (0, 0))),
            )
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _passes(
    f: Tensor | None, x: Tensor, flip_filter: bool, gain: float, joint: int
) -> list[tuple[Tensor, tuple[bool, bool]]]:
    """The kernels `[kh, kw]` to correlate with, and the axes (x, y) that each pass resamples; one has the gain."""
    if f is None:
        return [(x.new_full((1, 1), gain), (True, True))]
    f = f.to(x.dtype)
    if not flip_filter:
        f = f.flip(tuple(range(f.ndim)))
    if f.ndim == 2:
        return [(f * gain, (True, True))]
    if f.shape[0] <= joint:
        return [(torch.outer(f, f * gain), (True, True))]
    return [((f * gain)[None, :], (True, False)), (f[:, None], (False, True))]


def _window(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Rows and columns [first, last) of the last two axes; what lies outside of `x` is zero."""
    pads: list[int] = []
    for axis, (first, last) in ((-1, columns), (-2, rows)):
        size = x.shape[axis]
        # Comparisons instead of min and max: a compiler with dynamic shapes takes them as guards and stays fast.
        start = (first if first < size else size) if first > 0 else 0
        stop = (last if last > start else start) if last < size else size
        missing = (last - first) - (stop - start)
        before = (start - first if last > start else missing) if first < start else 0
        pads += [before, missing - before]
        x = x.narrow(axis, start, stop - start)
    return F.pad(x, pads) if any(pads) else x


def _convolved(
    x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """One pass by torch's depthwise convolutions."""
    kh, kw = kernel.shape
    channels, h, w = x.shape[1:]
    x0, x1, y0, y1 = padding
    if up == (1, 1):
        py, px = max(0, min(y0, y1)), max(0, min(x0, x1))  # what both ends share goes to the convolution
        x = _window(x, (py - y0, h + y1 - py), (px - x0, w + x1 - px))
        weight = kernel.expand(channels, 1, kh, kw).contiguous()
        return F.conv2d(x, weight, stride=(down[1], down[0]), padding=(py, px), groups=channels)
    # The transposed convolution scatters each sample over the taps: position j of its full result is y[j - (k-1-p0)].
    top, left = kh - 1 - y0, kw - 1 - x0
    bottom, right = kh - up[1] - y1, kw - up[0] - x1
    cy, cx = max(0, min(top, bottom)), max(0, min(left, right))
    weight = kernel.flip((0, 1)).expand(channels, 1, kh, kw).contiguous()
    y = F.conv_transpose2d(x, weight, stride=(up[1], up[0]), padding=(cy, cx), groups=channels)
    height, width = h * up[1] + y0 + y1 - kh + 1, w * up[0] + x0 + x1 - kw + 1
    y = _window(y, (top - cy, top - cy + height), (left - cx, left - cx + width))
    return y[:, :, :: down[1], :: down[0]]


class _Axis:
    """Which samples meet which taps along one axis.

    The outputs m, m + P, m + 2P, ... with P = up / gcd(up, down) form a phase: they use the same taps, on samples that
    are down / gcd(up, down) apart.
    """

    def __init__(self, size: int, taps: int, up: int, down: int, p0: int, p1: int) -> None:
        common = math.gcd(up, down)
        phases = up // common
        self.outputs = (size * up + p0 + p1 - taps) // down + 1
        self.length = -(-self.outputs // phases)
        self.stride = down // common
        self.phases = [
            [(tap, (phase * down + tap - p0) // up) for tap in range((p0 - phase * down) % up, taps, up)]
            for phase in range(phases)
        ]
        first = [sample for phase in self.phases for _, sample in phase]
        reach = (self.length - 1) * self.stride + 1
        self.first = min(first, default=0)
        self.last = max(first, default=0) + reach

    def at(self, sample: int) -> slice:
        """Where a tap's samples lie in the window [first, last)."""
        start = sample - self.first
        return slice(start, start + (self.length - 1) * self.stride + 1, self.stride)


def _summed(
    x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """One pass as a sum of shifted slices, one sum per phase."""
    kh, kw = kernel.shape
    rows = _Axis(x.shape[2], kh, up[1], down[1], *padding[2:])
    columns = _Axis(x.shape[3], kw, up[0], down[0], *padding[:2])
    channels_last = kept_format(x) == torch.channels_last
    x = _window(x, (rows.first, rows.last), (columns.first, columns.last))
    x = x.permute(0, 2, 3, 1) if channels_last else x
    axis = 1 if channels_last else 2

    def phase(ys: list[tuple[int, int]], xs: list[tuple[int, int]]) -> Tensor:
        lead = (slice(None),) * axis
        total: Tensor | None = None
        for (ty, sy), (tx, sx) in ((a, b) for a in ys for b in xs):
            term = x[(*lead, rows.at(sy), columns.at(sx))] * kernel[ty, tx]
            total = term if total is None else total + term
        if total is not None:
            return total
        # More phases than taps: no sample touches these outputs, which still belong to the graph.
        empty = x.narrow(axis, 0, 0).narrow(axis + 1, 0, 0)
        return F.pad(empty, [0, 0] * (2 - axis) + [0, columns.length, 0, rows.length])

    y = _interleaved([_interleaved([phase(a, b) for b in columns.phases], axis + 1) for a in rows.phases], axis)
    y = y.narrow(axis, 0, rows.outputs).narrow(axis + 1, 0, columns.outputs)
    return y.permute(0, 3, 1, 2) if channels_last else y


def _interleaved(phases: list[Tensor], axis: int) -> Tensor:
    """Element q of phase r becomes element q * len(phases) + r."""
    return phases[0] if len(phases) == 1 else torch.stack(phases, axis + 1).flatten(axis, axis + 1)


def _elu(v: Tensor) -> Tensor:
    # The inner choice keeps exp away from large v, where infinity times zero would be the gradient.
    return torch.where(v > 0, v, torch.expm1(torch.where(v > 0, torch.zeros_like(v), v)))


def _selu(v: Tensor) -> Tensor:
    negative = torch.expm1(torch.where(v > 0, torch.zeros_like(v), v))
    return torch.where(v > 0, v * _SELU_SCALE, negative * (_SELU_SCALE * _SELU_ALPHA))


def _softplus(v: Tensor) -> Tensor:
    """Without the threshold of torch's own, and with derivatives that stay finite."""
    y = -F.logsigmoid(-v)
    return y.contiguous(memory_format=kept_format(v))


_SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": _elu,
    "selu": _selu,
    "softplus": _softplus,
    "swish": F.silu,
}


def _activated(v: Tensor, act: str, alpha: float, gain: float, clamp: float | None, dtype: torch.dtype) -> Tensor:
    """Activation, gain, one rounding to `dtype`, and the clamp of the rounded value."""
    if act == "relu":
        v = torch.relu(v)
    elif act == "lrelu":
        v = F.leaky_relu(v, alpha)
    elif act != "linear":
        v = _SMOOTH[act](v)
    y = (v if gain == 1 else v * gain).to(dtype)
    if clamp is None:
        return y
    wide = accumulation_dtype(dtype)
    limit = torch.full((), min(clamp, torch.finfo(wide).max), dtype=wide, device=y.device).to(dtype)
    # Not torch.clamp, whose gradient at the limit is 1. NaN is not beyond the limit: it passes, with its gradient.
    return torch.where(y.abs() >= limit, torch.copysign(limit, y.detach()), y)


def bias_act(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> Tensor:
    """`clamp(gain * act(x + b))`.

    Args:
        x: Floating, of any rank.
        b: `[x.shape[dim]]` or None; in the dtype of `x` or float32.
        dim: The axis of `b`; may be negative.
        act: One of linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish.
        alpha: Slope of lrelu for negative values.
        gain: Factor behind the activation.
        clamp: The result stays within plus and minus this; None for no limit.

    Returns:
        The shape, dtype and memory format of `x`; `x` itself where there is nothing to do.
    """
    v = _dense(x).to(accumulation_dtype(x.dtype))
    if b is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        v = v + b.to(v.dtype).reshape(shape)
    return _activated(v, act, alpha, gain, clamp, x.dtype)


def epilogue(
    x: Tensor,
    demodulation: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    b: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """`clamp(gain * act(x * demodulation + noise_strength * noise + b))`.

    Args:
        x: `[n, c, h, w]`, floating.
        demodulation: `[n, c]` or None.
        noise: `[n, 1, h, w]`, `[1, 1, h, w]` or None.
        noise_strength: 0-D; None is 1.
        b: `[c]` or None.
        act: linear, relu or lrelu.
        alpha: Slope of lrelu for negative values.
        gain: Factor behind the activation.
        clamp: The result stays within plus and minus this; None for no limit.

    Returns:
        The shape, dtype and memory format of `x`; `x` itself where there is nothing to do.
    """
    v = _dense(x).to(accumulation_dtype(x.dtype))
    if demodulation is not None:
        v = v * demodulation.to(v.dtype)[:, :, None, None]
    if noise is not None:
        noise = noise.to(v.dtype)
        v = v + (noise if noise_strength is None else noise * noise_strength.to(v.dtype))
    if b is not None:
        v = v + b.to(v.dtype)[:, None, None]
    return _activated(v, act, alpha, gain, clamp, x.dtype)
