"""`upfirdn2d`: upsample, pad or crop, filter and downsample images in one op, differentiable to any order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hires_gan.ops import reference
from hires_gan.ops.checks import (
    accumulation_dtype,
    checked_images,
    checked_number,
    kept_format,
    name_of,
    refuse_tangents,
)
from hires_gan.ops.selection import resolve

MAX_TAPS = 64
"""Taps of a filter along an axis."""
MAX_FACTOR = 2**16
MAX_PADDING = 2**31

Pair = int | Sequence[int]

torch.library.define(
    "hires_gan::upfirdn2d",
    "(Tensor x, Tensor f, SymInt[] up, SymInt[] down, SymInt[] padding, bool flip_filter, float gain) -> Tensor",
)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Insert zeros, pad or crop, filter, and keep every few pixels.

    Along each axis, with u[j] = x[j / up] where `up` divides j and 0 elsewhere and p0 the first padding,
    y[m] = gain * sum_t g[t] u[m * down + t - p0], where g is f reversed, or f itself with `flip_filter`. The output has
    (W * up + p0 + p1 - taps) // down + 1 pixels along an axis.

    Args:
        x: Images `[N, C, H, W]` in float64, float32, float16 or bfloat16; contiguous and channels_last are both read
            as they are.
        f: The filter on the device of x, in any floating dtype: `[taps]`, applied along both axes, or `[high, wide]`,
            with at most 64 taps an axis; None is one tap of 1. It is a constant: no gradient reaches it.
        up: The factor of upsampling, or `[x, y]`.
        down: The factor of downsampling, or `[x, y]`.
        padding: Zeros around the upsampled image: one number, `[x, y]` or `[x0, x1, y0, y1]`; negative ones crop.
        flip_filter: False convolves, True correlates.
        gain: The result is multiplied by it, once.

    Returns:
        `[N, C, H', W']` in the dtype and the memory format of x; half and bfloat16 are summed in float32.

    Raises:
        ValueError: A shape, factor or padding cannot be, or the result would have no pixels.
        TypeError: An argument is of the wrong type or dtype.
        Failure: The native implementation is chosen and missing.
    """
    checked_images(x)
    factors_up, factors_down = checked_factors("up", up), checked_factors("down", down)
    pads = checked_padding(padding)
    if not isinstance(flip_filter, bool):
        raise TypeError(f"flip_filter is a {type(flip_filter).__name__}; True or False is wanted")
    gain = checked_number("gain", gain)
    f = _checked_filter(f, x)
    _check_output(x, f, factors_up, factors_down, pads)
    if resolve(x.device) == "reference":
        return reference.upfirdn2d(x, f, factors_up, factors_down, pads, flip_filter, gain)
    refuse_tangents(x)
    taps = x.new_ones(1, dtype=accumulation_dtype(x.dtype)) if f is None else f
    native: Tensor = torch.ops.hires_gan.upfirdn2d(x, taps, factors_up, factors_down, pads, flip_filter, gain)
    return native


def _whole_numbers(value: Any, lengths: tuple[int, ...]) -> list[int] | None:
    """One number, or a sequence of an allowed length, as a list; None where it is anything else."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    numbers = [_whole_number(number) for number in (value if several else [value])]
    allowed = not several or len(numbers) in lengths
    return [number for number in numbers if number is not None] if allowed and None not in numbers else None


def _whole_number(value: Any) -> int | None:
    if isinstance(value, torch.SymInt):
        return cast(int, value)
    if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        return None
    return operator.index(value)


def checked_factors(name: str, value: Pair) -> tuple[int, int]:
    """Factors along x and y."""
    numbers = _whole_numbers(value, (2,))
    if numbers is None:
        raise ValueError(f"{name} is {value!r}; a whole number or a pair [x, y] of them is allowed")
    if min(numbers) < 1 or max(numbers) > MAX_FACTOR:
        raise ValueError(f"{name} is {value!r}; factors of 1 to {MAX_FACTOR} are allowed")
    return numbers[0], numbers[-1]


def checked_padding(value: Pair) -> tuple[int, int, int, int]:
    """Padding x0, x1, y0, y1."""
    numbers = _whole_numbers(value, (2, 4))
    if numbers is None:
        raise ValueError(f"padding is {value!r}; a whole number, [x, y] or [x0, x1, y0, y1] is allowed")
    if max(numbers) > MAX_PADDING or min(numbers) < -MAX_PADDING:
        raise ValueError(f"padding is {value!r}; at most {MAX_PADDING} in either direction is allowed")
    if len(numbers) == 4:
        return numbers[0], numbers[1], numbers[2], numbers[3]
    return numbers[0], numbers[0], numbers[-1], numbers[-1]


def _checked_filter(f: Tensor | None, x: Tensor) -> Tensor | None:
    """The filter in the dtype in which x is computed."""
    if f is None:
        return None
    if not isinstance(f, Tensor):
        raise TypeError(f"f is a {type(f).__name__}; a tensor or None is wanted: setup_filter makes one")
    if not f.dtype.is_floating_point:
        raise TypeError(f"f has the dtype {name_of(f.dtype)}; floating dtypes are allowed: setup_filter makes one")
    if f.dim() not in (1, 2):
        raise ValueError(f"f has the shape {list(f.shape)}; [taps] or [high, wide] is allowed")
    if any(not 1 <= side <= MAX_TAPS for side in f.shape):
        raise ValueError(f"f has the shape {list(f.shape)}; 1 to {MAX_TAPS} taps along an axis are allowed")
    if f.device != x.device:
        raise ValueError(f"f is on {f.device} and x on {x.device}; both have to be on one device")
    if f.requires_grad:
        raise ValueError("f requires a gradient, and none reaches a filter; f.detach() is allowed")
    return f.to(accumulation_dtype(x.dtype))


def _check_output(x: Tensor, f: Tensor | None, up: tuple[int, int], down: tuple[int, int], pads: Sequence[int]) -> None:
    wide = output_side(x.shape[3], _taps(f, 1), up[0], down[0], pads[0], pads[1])
    high = output_side(x.shape[2], _taps(f, 0), up[1], down[1], pads[2], pads[3])
    if wide < 1 or high < 1:
        raise ValueError(
            f"padding is {list(pads)}: the result would be {high} pixels high and {wide} wide, from {x.shape[2]}x"
            f"{x.shape[3]}, up {list(up)}, down {list(down)}, {_taps(f, 0)}x{_taps(f, 1)} taps; at least 1 is allowed"
        )


def _taps(f: Tensor | None, axis: int) -> int:
    return 1 if f is None else f.shape[axis - 2 if f.dim() == 2 else 0]


def output_side(side: int, taps: int, up: int, down: int, before: int, behind: int) -> int:
    """How many pixels a side has behind `upfirdn2d`; less than 1 where there would be none."""
    return (side * up + before + behind - taps) // down + 1


def _sides(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], pads: Sequence[int]) -> tuple[int, int]:
    high = output_side(x.shape[2], _taps(f, 0), up[1], down[1], pads[2], pads[3])
    return high, output_side(x.shape[3], _taps(f, 1), up[0], down[0], pads[0], pads[1])


@torch.library.register_fake("hires_gan::upfirdn2d")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor, f: Tensor, up: list[int], down: list[int], padding: list[int], flip_filter: bool, gain: float
) -> Tensor:
    shape = (x.shape[0], x.shape[1], *_sides(x, f, up, down, padding))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=kept_format(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain = inputs
    ctx.sides, ctx.out_sides = x.shape[2:], output.shape[2:]
    ctx.save_for_backward(f)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The same op: factors exchanged, filter turned, padding such that the result has the sides of x."""
    (f,) = ctx.saved_tensors
    pads: list[int] = []
    for axis, first in ((1, 0), (0, 2)):  # x, y
        up, down, before = ctx.up[1 - axis], ctx.down[1 - axis], ctx.padding[first]
        behind = ctx.sides[axis] * up - ctx.out_sides[axis] * down + before - up + 1
        pads += [_taps(f, axis) - 1 - before, behind]
    dx = torch.ops.hires_gan.upfirdn2d(dy, f, ctx.down, ctx.up, pads, not ctx.flip_filter, ctx.gain)
    return dx, None, None, None, None, None, None


torch.library.register_autograd("hires_gan::upfirdn2d", _backward, setup_context=_save)
