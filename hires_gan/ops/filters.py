"""Filters, and the three ways in which images are filtered: at the same size, larger, smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hires_gan.ops.checks import checked_number, name_of
from hires_gan.ops.fir import MAX_TAPS, checked_factors, checked_padding, upfirdn2d

_SEPARABLE_FROM = 8
"""From this many taps on, a filter given as a list is kept separable unless it is said otherwise."""


def setup_filter(
    f: Any,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Make a filter for `upfirdn2d` of numbers.

    Args:
        f: A number, a list, a list of rows, an array or a tensor of real numbers: 0-D, `[taps]` or `[high, wide]` with
            1 to 64 taps per axis. None is a single tap of 1. A tensor's gradient is not followed.
        device: Where the filter is put; by default where `f` is.
        normalize: Divide by the sum, so that a constant image keeps its value.
        flip_filter: Reverse the taps.
        gain: Factor of the filter as it acts on both axes: a separable one is multiplied by the square root of it.
        separable: Keep one dimension (`[taps]`, on both axes) instead of the outer product; by default from 8
            taps on. Only for an `f` of at most one dimension.

    Returns:
        float32, `[taps]` or `[high, wide]`.

    Raises:
        TypeError: If `f` is not made of real numbers.
        ValueError: If `f` has more than two dimensions, no or too many taps, a value that is not finite, or a sum of 0
            with `normalize`; if it is to be separable and has two dimensions, or a gain without a square root.
    """
    target = device if device is not None else f.device if isinstance(f, Tensor) else "cpu"
    taps = _taps(1.0 if f is None else f)
    separable = _kept_separable(taps, separable)
    if normalize:
        taps = taps / _sum(taps)
    if taps.ndim < 2:
        taps = taps.reshape(-1)
        taps = taps if separable else torch.outer(taps, taps)
    taps = taps.flip(tuple(range(taps.ndim))) if flip_filter else taps
    return (taps * _share(gain, taps.ndim)).to(torch.float32).to(target)


def _taps(f: Any) -> Tensor:
    """`f` as a checked float64 tensor on the CPU, with 0 to 2 dimensions."""
    try:
        taps = torch.as_tensor(f)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"f is {f!r:.80}; real numbers are allowed, in rows of one length ({error})") from error
    if taps.is_complex():
        raise TypeError(f"f has the dtype {name_of(taps.dtype)}; real numbers are allowed")
    if taps.ndim > 2:
        raise ValueError(f"f has the shape {list(taps.shape)}; a number, [taps] and [high, wide] are allowed")
    if not all(1 <= size <= MAX_TAPS for size in taps.shape):
        raise ValueError(f"f has the shape {list(taps.shape)}; 1 to {MAX_TAPS} taps along an axis are allowed")
    taps = taps.detach().to("cpu", torch.float64)
    if not taps.isfinite().all():
        raise ValueError(f"f is {taps.tolist()!s:.80}; finite taps are allowed")
    return taps


def _kept_separable(taps: Tensor, asked: bool | None) -> bool:
    if asked and taps.ndim == 2:
        raise ValueError(
            f"separable is True and f has the shape {list(taps.shape)}; the [taps] of one axis are allowed: give "
            "those, or leave separable out"
        )
    return bool(asked) if asked is not None else taps.ndim < 2 and taps.numel() >= _SEPARABLE_FROM


def _sum(taps: Tensor) -> Tensor:
    total = taps.sum()
    if total.abs() <= 1e-6 * taps.abs().sum():  # what rounding leaves of taps that cancel out
        raise ValueError(
            f"f has taps that add up to {total.item():g}; with normalize=True, a sum other than 0 is allowed: use "
            "normalize=False"
        )
    return total


def _share(gain: float, ndim: int) -> float:
    """The part of the gain that multiplies the taps of a filter with so many dimensions."""
    gain = checked_number("gain", gain)
    if ndim == 1 and gain < 0:
        raise ValueError(
            f"gain is {gain:g}; a separable filter acts twice, and 0 or more is allowed for it: use separable=False"
        )
    return gain if ndim == 2 else math.sqrt(gain)


def taps_of(f: Tensor | None) -> tuple[int, int]:
    """Taps along (x, y).

    Raises:
        TypeError: If `f` is neither a tensor nor None.
        ValueError: If it has neither one nor two dimensions.
    """
    if f is None:
        return 1, 1
    if not isinstance(f, Tensor):
        raise TypeError(f"f is a {type(f).__name__}; a tensor or None is wanted: setup_filter makes one")
    if f.ndim not in (1, 2):
        raise ValueError(f"f has the shape {list(f.shape)}; [taps] or [high, wide] is allowed")
    return f.shape[-1], f.shape[0]


def filter2d(
    x: Tensor, f: Tensor | None, padding: int | Sequence[int] = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Filter, keeping the size: zeros are assumed around the image.

    Args:
        x: `[n, c, h, w]`; float64, float32, float16 or bfloat16.
        f: `[taps]` (separable), `[high, wide]` or None, on the device of `x`; see `setup_filter`.
        padding: In addition to what keeps the size; an integer, [x, y], or [x0, x1, y0, y1]; negative values crop.
        flip_filter: Correlate instead of convolve.
        gain: Factor of the result.

    Returns:
        `[n, c, h + y0 + y1, w + x0 + x1]`, in the dtype and memory format of `x`.

    Raises:
        TypeError: As `upfirdn2d`.
        ValueError: As `upfirdn2d`.
    """
    taps = taps_of(f)
    return upfirdn2d(x, f, padding=_added(padding, *(_same(n) for n in taps)), flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Enlarge by whole factors: stuff with zeros and filter, with the gain that keeps the brightness.

    A constant image stays constant (away from the border) if the filter's polyphase sums are equal, as those of
    [1, 3, 3, 1] are for a factor of 2.

    Args:
        x: `[n, c, h, w]`; float64, float32, float16 or bfloat16.
        f: `[taps]` (separable), `[high, wide]` or None, on the device of `x`; see `setup_filter`.
        up: Factor, or factors [x, y], at least 1.
        padding: In pixels of the result, in addition to what gives the full size; negative values crop.
        flip_filter: Correlate instead of convolve.
        gain: Factor of the result.

    Returns:
        `[n, c, h * up + y0 + y1, w * up + x0 + x1]`, in the dtype and memory format of `x`.

    Raises:
        TypeError: As `upfirdn2d`.
        ValueError: As `upfirdn2d`.
    """
    taps, factors = taps_of(f), checked_factors("up", up)
    around = _added(padding, *(enlarging(n, factor) for n, factor in zip(taps, factors, strict=True)))
    return upfirdn2d(x, f, up=factors, padding=around, flip_filter=flip_filter, gain=gain * factors[0] * factors[1])


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Reduce by whole factors: filter and keep every `down`-th pixel.

    Args:
        x: `[n, c, h, w]`; float64, float32, float16 or bfloat16.
        f: `[taps]` (separable), `[high, wide]` or None, on the device of `x`; see `setup_filter`.
        down: Factor, or factors [x, y], at least 1.
        padding: In pixels of `x`, in addition to what gives the full size; negative values crop.
        flip_filter: Correlate instead of convolve.
        gain: Factor of the result.

    Returns:
        `[n, c, (h + y0 + y1) // down, (w + x0 + x1) // down]`, in the dtype and memory format of `x`.

    Raises:
        TypeError: As `upfirdn2d`.
        ValueError: As `upfirdn2d`.
    """
    taps, factors = taps_of(f), checked_factors("down", down)
    around = _added(padding, *(reducing(n, factor) for n, factor in zip(taps, factors, strict=True)))
    return upfirdn2d(x, f, down=factors, padding=around, flip_filter=flip_filter, gain=gain)


def _same(taps: int) -> tuple[int, int]:
    return taps // 2, (taps - 1) // 2


def enlarging(taps: int, up: int) -> tuple[int, int]:
    """The padding before and behind that makes `size * up` of `size`."""
    return (taps + up - 1) // 2, (taps - up) // 2


def reducing(taps: int, down: int) -> tuple[int, int]:
    """The padding before and behind that makes `size / down` of `size`."""
    return (taps - down + 1) // 2, (taps - down) // 2


def _added(
    padding: int | Sequence[int], along_x: tuple[int, int], along_y: tuple[int, int]
) -> tuple[int, int, int, int]:
    x0, x1, y0, y1 = checked_padding(padding)
    return x0 + along_x[0], x1 + along_x[1], y0 + along_y[0], y1 + along_y[1]
