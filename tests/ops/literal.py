"""The ops written from their definitions, in float64 and numpy: slow, with nothing clever in it.

Arguments are those of `hires_gan.ops.reference`: normalised, `up` and `down` as (x, y), `padding` as (x0, x1, y0, y1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DEFAULTS = {  # alpha, gain
    "linear": (0.0, 1.0),
    "relu": (0.0, np.sqrt(2.0)),
    "lrelu": (0.2, np.sqrt(2.0)),
    "tanh": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "elu": (0.0, 1.0),
    "selu": (0.0, 1.0),
    "softplus": (0.0, 1.0),
    "swish": (0.0, np.sqrt(2.0)),
}


def stuffed(x: Array, up: tuple[int, int]) -> Array:
    """`u[j] = x[j / U]` where U divides j, else 0; the trailing zeros are part of it."""
    n, c, h, w = x.shape
    u = np.zeros((n, c, h * up[1], w * up[0]))
    u[:, :, :: up[1], :: up[0]] = x
    return u


def shifted(u: Array, axis: int, positions: NDArray[np.int64]) -> Array:
    """The samples at these positions of one axis, 0 outside of the signal."""
    inside = (positions >= 0) & (positions < u.shape[axis])
    taken = np.take(u, np.where(inside, positions, 0), axis)
    shape = [1] * u.ndim
    shape[axis] = -1
    return np.where(inside.reshape(shape), taken, 0.0)


def upfirdn2d(
    x: ArrayLike,
    f: ArrayLike | None,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> tuple[Array, Array]:
    """`y[m, l] = gain * sum_{a, b} g[a, b] * u[m * Dy + a - y0, l * Dx + b - x0]`, and the same sum of magnitudes.

    The second array, `|gain| * sum |g| |u|`, is the scale against which a rounding error is judged.
    """
    x = np.asarray(x, dtype=np.float64)
    f = np.ones(1) if f is None else np.asarray(f, dtype=np.float64)
    f = np.outer(f, f) if f.ndim == 1 else f
    g = f if flip_filter else f[::-1, ::-1]
    fh, fw = g.shape
    u = stuffed(x, up)
    height = (u.shape[2] + padding[2] + padding[3] - fh) // down[1] + 1
    width = (u.shape[3] + padding[0] + padding[1] - fw) // down[0] + 1
    assert height >= 1
    assert width >= 1
    rows, columns = np.arange(height) * down[1], np.arange(width) * down[0]
    y = np.zeros((*x.shape[:2], height, width))
    magnitude = np.zeros_like(y)
    for a in range(fh):
        line = shifted(u, 2, rows + a - padding[2])
        for b in range(fw):
            term = g[a, b] * shifted(line, 3, columns + b - padding[0])
            y += term
            magnitude += np.abs(term)
    return gain * y, abs(gain) * magnitude


def activation(v: ArrayLike, act: str, alpha: float) -> tuple[Array, Array, Array]:
    """The activation, its first and its second derivative; at exactly 0 those of the negative side."""
    v = np.asarray(v, dtype=np.float64)
    zero, one = np.zeros_like(v), np.ones_like(v)
    with np.errstate(over="ignore"):
        sigma = 1 / (1 + np.exp(-v))
        slope = sigma * (1 / (1 + np.exp(v)))
    positive = v > 0
    rise = np.exp(np.where(positive, 0, v))
    if act == "linear":
        return v, one, zero
    if act == "relu":
        return np.maximum(v, 0), np.where(positive, one, zero), zero
    if act == "lrelu":
        return np.where(positive, v, alpha * v), np.where(positive, one, alpha), zero
    if act == "tanh":
        t = np.tanh(v)
        return t, 1 - t * t, -2 * t * (1 - t * t)
    if act == "sigmoid":
        return sigma, slope, slope * (1 - 2 * sigma)
    if act == "elu":
        return np.where(positive, v, rise - 1), np.where(positive, one, rise), np.where(positive, zero, rise)
    if act == "selu":
        scale, outer = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
        low = outer * rise
        values = np.where(positive, v, low - outer), np.where(positive, one, low), np.where(positive, zero, low)
        return scale * values[0], scale * values[1], scale * values[2]
    if act == "softplus":
        return np.logaddexp(0, v), sigma, slope
    assert act == "swish", act
    return v * sigma, sigma + v * slope, 2 * slope + v * slope * (1 - 2 * sigma)


def limited(y: Array, clamp: float | None) -> Array:
    """Within plus and minus `clamp`; NaN stays NaN."""
    return y if clamp is None else np.where(np.abs(y) >= clamp, np.copysign(clamp, y), y)


def bias_act(
    x: ArrayLike,
    b: ArrayLike | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float = 0.0,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Array:
    """`clamp(gain * act(x + b))`, with `b` along `dim`."""
    x = np.asarray(x, dtype=np.float64)
    if b is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        x = x + np.asarray(b, dtype=np.float64).reshape(shape)
    return limited(gain * activation(x, act, alpha)[0], clamp)


def epilogue(
    x: ArrayLike,
    demodulation: ArrayLike | None = None,
    noise: ArrayLike | None = None,
    noise_strength: float | None = None,
    b: ArrayLike | None = None,
    act: str = "linear",
    alpha: float = 0.0,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Array:
    """`clamp(gain * act(x[n,c,h,w] * demodulation[n,c] + noise_strength * noise[n or 0,0,h,w] + b[c]))`."""
    v = np.array(x, dtype=np.float64)
    for n in range(v.shape[0]):
        for c in range(v.shape[1]):
            if demodulation is not None:
                v[n, c] *= np.asarray(demodulation, dtype=np.float64)[n, c]
            if noise is not None:
                plane = np.asarray(noise, dtype=np.float64)
                v[n, c] += (1 if noise_strength is None else noise_strength) * plane[n if len(plane) > 1 else 0, 0]
            if b is not None:
                v[n, c] += np.asarray(b, dtype=np.float64)[c]
    return limited(gain * activation(v, act, alpha)[0], clamp)
