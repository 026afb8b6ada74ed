"""A convolution fused with a change of resolution.

By definition, `conv2d_resample` is `upfirdn2d` with `up`, all of the padding and a gain of up^2; then the convolution,
without padding; then `upfirdn2d` with `down`, without padding. The filter belongs to the changes of resolution: where
both factors are 1, none is applied. What is computed is equal to that, and cheaper:

(a) a 1x1 kernel and a reduction: filter and reduce, then convolve the few pixels that are left;
(b) a 1x1 kernel and an enlargement: convolve the few pixels, then enlarge and filter;
(c) another kernel and a reduction: filter, then one strided convolution, which computes only the pixels that are kept;
(d) another kernel and an enlargement: one transposed strided convolution, which never meets a stuffed zero, then
    filter; where a reduction follows, whatever the kernel, it filters and decimates behind that;
(e) no change of resolution: the plain convolution with its own padding; where that is uneven or negative, `upfirdn2d`
    pads or crops first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hires_gan.ops.checks import checked_images, name_of
from hires_gan.ops.conv2d import conv2d, conv_transpose2d
from hires_gan.ops.filters import enlarging, reducing, taps_of
from hires_gan.ops.fir import checked_padding, upfirdn2d

Around = tuple[int, int, int, int]


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
    carries: bool = False,
) -> Tensor:
    """Enlarge, convolve, reduce: each step only where it is asked for, and fused as the module says.

    Args:
        x: `[n, cin, h, w]`; float64, float32, float16 or bfloat16.
        w: `[cout, cin / groups, kh, kw]`, in the dtype of `x`.
        f: Filter of the changes of resolution, `[taps]` (separable), `[high, wide]` or None; see `setup_filter`.
        up: Factor of the enlargement, at least 1.
        down: Factor of the reduction, at least 1.
        padding: On the enlarged image, beside what the filter needs: an integer, [x, y], or [x0, x1, y0, y1]; negative
            values crop. (k - 1) / 2 keeps the size with an odd kernel.
        groups: Channels are convolved in so many separate groups.
        flip_weight: Correlate, as torch's convolutions do; False for a convolution in the sense of mathematics.
        flip_filter: Correlate with the filter instead of convolving.
        carries: Whether `w` depends on something whose gradient is asked for; see `conv2d.conv2d`.

    Returns:
        `[n, cout, h', w']` in the dtype of `x`; h' = h * up / down with a padding that keeps the size.

    Raises:
        TypeError: If `w` is no tensor or has another dtype than `x`, or as `upfirdn2d`.
        ValueError: If a shape, a factor, the padding or the groups do not fit, or no pixel would be left.
    """
    _check_tensors(x, w, groups)
    _check_factor("up", up)
    _check_factor("down", down)
    around = _around(taps_of(f), up, down, checked_padding(padding))
    _check_size(x, w, taps_of(f), up, down, around)
    return _fused(x, w if flip_weight else w.flip((2, 3)), f, up, down, around, groups, flip_filter, carries)


def _fused(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    around: Around,
    groups: int,
    flip_filter: bool,
    carries: bool,
) -> Tensor:
    """One of the ways (a) to (e); `around` has the filters' share of the padding."""
    single = w.shape[2:] == (1, 1)
    if up > 1 and single and down == 1:  # (b)
        x = conv2d(x, w, groups=groups, carries=carries)
        return upfirdn2d(x, f, up=up, padding=around, gain=up * up, flip_filter=flip_filter)
    if up > 1:  # (d)
        x = _enlarged(x, w, f, up, around, groups, flip_filter, carries)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    if down > 1 and single:  # (a)
        x = upfirdn2d(x, f, down=down, padding=around, flip_filter=flip_filter)
        return conv2d(x, w, groups=groups, carries=carries)
    if down > 1:  # (c)
        x = upfirdn2d(x, f, padding=around, flip_filter=flip_filter)
        return conv2d(x, w, stride=down, groups=groups, carries=carries)
    x0, x1, y0, y1 = around  # (e)
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return conv2d(x, w, padding=(y0, x0), groups=groups, carries=carries)
    return conv2d(upfirdn2d(x, None, padding=around), w, groups=groups, carries=carries)


def _enlarged(
    x: Tensor, w: Tensor, f: Tensor | None, up: int, around: Around, groups: int, flip_filter: bool, carries: bool
) -> Tensor:
    """Case (d): the transposed convolution already has the margins of its kernel, and all but the last zeros."""
    kh, kw = w.shape[2:]
    x0, x1, y0, y1 = around
    x0, x1, y0, y1 = x0 - (kw - 1), x1 - (kw - up), y0 - (kh - 1), y1 - (kh - up)
    crop_x, crop_y = max(0, min(-x0, -x1)), max(0, min(-y0, -y1))
    w = _transposed(w, groups)
    x = conv_transpose2d(x, w, stride=up, padding=(crop_y, crop_x), groups=groups, carries=carries)
    rest = (x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y)
    return upfirdn2d(x, f, padding=rest, gain=up * up, flip_filter=flip_filter)


def _transposed(w: Tensor, groups: int) -> Tensor:
    """`[cout, cin / groups, kh, kw]` as a transposed convolution wants it: `[cin, cout / groups, kh, kw]`, flipped."""
    outputs, inputs, kh, kw = w.shape
    w = w.reshape(groups, outputs // groups, inputs, kh, kw).transpose(1, 2)
    return w.reshape(groups * inputs, outputs // groups, kh, kw).flip((2, 3))


def _around(taps: tuple[int, int], up: int, down: int, padding: Around) -> Around:
    """The padding, with what the filters of both changes of resolution need."""
    x0, x1, y0, y1 = padding
    for factor, needed in ((up, enlarging), (down, reducing)):
        if factor > 1:
            along_x, along_y = needed(taps[0], factor), needed(taps[1], factor)
            x0, x1, y0, y1 = x0 + along_x[0], x1 + along_x[1], y0 + along_y[0], y1 + along_y[1]
    return x0, x1, y0, y1


def _check_tensors(x: Tensor, w: Tensor, groups: int) -> None:
    checked_images(x)
    if not isinstance(w, Tensor):
        raise TypeError(f"w is a {type(w).__name__}; a tensor is wanted")
    if w.ndim != 4 or 0 in w.shape:
        raise ValueError(f"w has the shape {list(w.shape)}; [cout, cin / groups, kh, kw] is allowed, none of them 0")
    if w.dtype != x.dtype:
        raise TypeError(
            f"w has the dtype {name_of(w.dtype)}; for x of {name_of(x.dtype)}, the same is allowed: use w.to(x.dtype)"
        )
    if w.device != x.device:
        raise ValueError(f"w is on {w.device} and x on {x.device}; both have to be on one device")
    _check_factor("groups", groups)
    if w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        raise ValueError(
            f"w has the shape {list(w.shape)}, for {w.shape[1] * groups} channels in {groups} groups, and x has "
            f"{x.shape[1]}; [cout, cin / groups, kh, kw] is allowed, with cout a multiple of groups"
        )


def _check_factor(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; a whole number of 1 or more is allowed")


def _check_size(x: Tensor, w: Tensor, taps: tuple[int, int], up: int, down: int, around: Around) -> None:
    """What does not fit is refused by the same sentence whichever way it would have been computed."""
    for axis, n, before, behind in ((3, taps[0], *around[:2]), (2, taps[1], *around[2:])):
        side, kernel = x.shape[axis], w.shape[axis]
        left = side * up + before + behind - (n - 1 if up > 1 else 0) - (kernel - 1)
        if left < (n if down > 1 else 1):
            raise ValueError(
                f"padding leaves too little: a side of {side}, up {up}, then padded by {before} and {behind} (the "
                f"filter's share included), down {down}, is too short for a kernel of {kernel} and a filter of {n} "
                "taps; a result of at least 1 pixel is allowed"
            )
