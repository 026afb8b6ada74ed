"""Modulated convolution (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 2.2).

Every sample has weights of its own: `w[n, o, i] = weight[o, i] * styles[n, i]`, divided, with demodulation, by their
norm for each output. Scaling the input's channels by the styles, convolving all samples with the same weights, and
scaling the output's channels by the inverse norms is the same. That is the form for training; the other one makes the
weights of each sample and convolves in groups.

In half precision, weights and styles are divided by constants before they are rounded, such that no sum overflows in a
layer whose input is within `HALF_CLAMP`, and the output's channels are multiplied by these constants in float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hires_gan.ops import conv2d_resample, epilogue

HALF = (torch.float16, torch.bfloat16)

HALF_CLAMP = 256.0
"""In half precision, what comes out of a convolutional layer is kept within plus and minus this."""

_EPS = 1e-8
_LEAST = 1e-8
"""Nothing is divided by less."""

Form = Literal["scaled", "grouped"]


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    up: int = 1,
    f: Tensor | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "lrelu",
    gain: float | None = None,
    clamp: float | None = None,
    form: Form = "scaled",
) -> Tensor:
    """Convolve each sample with modulated weights, add noise and bias, activate.

    Args:
        x: `[n, i, h, w]`; the layer computes in its dtype.
        weight: `[o, i, k, k]` to correlate with, k odd; float32 or float64.
        styles: `[n, i]`, one factor for each sample and channel of the input, in the dtype of the weight.
        demodulate: Give the weights of each sample and output a norm of 1.
        up: Factor of an enlargement before the convolution.
        f: The enlargement's filter.
        noise: `[n or 1, 1, h * up, w * up]`, in the dtype of the weight; None for none.
        noise_strength: The factor of the noise, of no dimensions.
        bias: `[o]`.
        act: "linear" or "lrelu".
        gain: Factor behind the activation, by default that of `epilogue`.
        clamp: The result is kept within plus and minus this; None for no limit.
        form: "scaled" or "grouped": equal results.

    Returns:
        `[n, o, h * up, w * up]`, in the dtype of `x`, differentiable to any order.
    """
    factor = demodulation(weight, styles) if demodulate else None
    if x.dtype in HALF:
        weight, styles, factor = _in_range(weight, styles, factor)
    convolve = _scaled if form == "scaled" else _grouped
    y = convolve(x, weight, styles, up, f)
    return epilogue(y, factor, noise, noise_strength, bias, act=act, gain=gain, clamp=clamp)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """The inverse norm of each sample's weights for each output, `[n, o]`, without making these weights."""
    squares = weight.square().sum((2, 3))  # [o, i]
    return torch.rsqrt(styles.square() @ squares.T + _EPS)


def _in_range(weight: Tensor, styles: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of at most 1 / sqrt(fan-in), styles of at most 1, and what gives the same result behind them.

    The divisors are constants for autograd: they cancel out, so that no gradient belongs to them.
    """
    fan_in = weight[0].numel()
    of_weight = (weight.detach().abs().amax((1, 2, 3)) * math.sqrt(fan_in)).clamp_min(_LEAST)  # [o]
    of_styles = styles.detach().abs().amax(1, keepdim=True).clamp_min(_LEAST)  # [n, 1]
    divided = of_styles * of_weight
    factor = divided if factor is None else factor * divided
    return weight / of_weight[:, None, None, None], styles / of_styles, factor


def _scaled(x: Tensor, weight: Tensor, styles: Tensor, up: int, f: Tensor | None) -> Tensor:
    # The epilogue's product is taken, and its derivative by the styles summed, in float32.
    x = epilogue(x, styles, act="linear")
    return conv2d_resample(x, weight.to(x.dtype), f, up=up, padding=weight.shape[2] // 2)


def _grouped(x: Tensor, weight: Tensor, styles: Tensor, up: int, f: Tensor | None) -> Tensor:
    n, _, h, w = x.shape
    outputs, inputs, k, _ = weight.shape
    each = (weight * styles[:, None, :, None, None]).reshape(n * outputs, inputs, k, k).to(x.dtype)
    x = x.reshape(1, n * inputs, h, w)
    y = conv2d_resample(x, each, f, up=up, padding=k // 2, groups=n, carries=True)
    return y.reshape(n, outputs, *y.shape[2:])
