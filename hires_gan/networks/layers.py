"""Layers that the families share: equalized learning rate, pixel normalisation, minibatch standard deviation.

Precision belongs to the networks: parameters stay in their own dtype, and every layer casts its weights to the dtype
of its input, so that whoever calls a layer decides in which dtype it computes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.networks.blending import Alpha, blended, fades
from hires_gan.ops import bias_act, conv2d, conv_transpose2d

FP16_CLAMP = 256.0
"""In fp16, activations are kept within plus and minus this instead of scaling the loss."""

LRELU_GAIN = math.sqrt(2.0)
"""He's gain for (leaky) rectifiers."""


class EqualizedLinear(nn.Module):
    """A dense layer whose weights are N(0, 1) and are scaled at run time (Karras et al. 2018, section 4.1).

    Args:
        inputs: Features of the input `[n, inputs]`.
        outputs: Features of the output `[n, outputs]`.
        gain: The weights are multiplied by `gain / sqrt(inputs)`.
        bias: Whether there is a bias.
        act: "linear", or "lrelu" behind the bias.
        act_gain: What is behind the rectifier is multiplied by this.
        lr_multiplier: The layer learns as much slower: weights start with a standard deviation of 1 / lr_multiplier,
            and weights and biases are multiplied by it at run time (Karras et al. 2019, appendix C).
        initial_bias: The bias at first, as it acts.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        gain: float = LRELU_GAIN,
        bias: bool = True,
        act: str = "linear",
        act_gain: float = 1.0,
        lr_multiplier: float = 1.0,
        initial_bias: float = 0.0,
    ) -> None:
        super().__init__()
        assert act == "linear" or (act == "lrelu" and bias)
        assert act == "lrelu" or act_gain == 1.0
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), initial_bias / lr_multiplier)) if bias else None
        self.scale = gain / math.sqrt(inputs) * lr_multiplier
        self.bias_scale = lr_multiplier
        self.act, self.act_gain = act, act_gain

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs]` -> `[n, outputs]`, in the dtype of `x`."""
        weight = (self.weight * self.scale).to(x.dtype)
        bias = self.bias if self.bias is None or self.bias_scale == 1.0 else self.bias * self.bias_scale
        if self.act == "lrelu":
            return biased_lrelu(F.linear(x, weight), bias, self.act_gain)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


class EqualizedConv2d(nn.Module):
    """A convolution with equalized learning rate; `resample` fuses it with a doubling or halving of the resolution.

    Doubling is nearest neighbour before the convolution, halving a 2x2 box average behind it. Both are one strided
    4x4 convolution: the 3x3 kernel summed over four shifts (less than half the multiplications).

    Args:
        inputs: Channels of the input `[n, inputs, h, w]`.
        outputs: Channels of the output.
        kernel: Side of the kernel, odd; 3 where `resample` is not None.
        gain: The weights are multiplied by `gain / sqrt(inputs * kernel^2)`.
        resample: None, "up" or "down".
        act: "linear", or "lrelu" behind the bias.
        bias: Whether there is a bias, initially 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        gain: float = LRELU_GAIN,
        resample: str | None = None,
        act: str = "linear",
        bias: bool = True,
    ) -> None:
        super().__init__()
        assert act == "linear" or (act == "lrelu" and bias)
        assert resample is None or (resample in ("up", "down") and kernel == 3)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = gain / math.sqrt(inputs * kernel * kernel)
        self.padding = kernel // 2
        self.resample = resample
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` -> `[n, outputs, h', w']`, in the dtype of `x`; h' is h, 2h or h/2."""
        y = self._convolve(x)
        if self.act == "lrelu":
            return biased_lrelu(y, self.bias)
        return y if self.bias is None else bias_act(y, self.bias.to(torch.promote_types(x.dtype, torch.float32)))

    def _convolve(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.resample == "up":
            weight = _summed_over_shifts(weight).flip(2, 3).transpose(0, 1).to(x.dtype)
            return conv_transpose2d(x, weight, stride=2, padding=(1, 1))
        if self.resample == "down":
            weight = (_summed_over_shifts(weight) * 0.25).to(x.dtype)
            return conv2d(x, weight, stride=2, padding=(1, 1))
        return conv2d(x, weight.to(x.dtype), padding=(self.padding, self.padding))


def _summed_over_shifts(weight: Tensor) -> Tensor:
    """`[o, i, 3, 3]` -> `[o, i, 4, 4]`: the kernel convolved with a 2x2 block of ones."""
    padded = F.pad(weight, (1, 1, 1, 1))
    return padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]


def biased_lrelu(x: Tensor, bias: Tensor | None, gain: float = 1.0) -> Tensor:
    """Add a bias along dimension 1, then a leaky rectifier of slope 0.2, clamped in fp16 (see `FP16_CLAMP`).

    Args:
        x: `[n, c, ...]`.
        bias: `[c]`, or None for none.
        gain: What is behind the rectifier is multiplied by this.
    """
    if bias is not None:
        bias = bias.to(torch.promote_types(x.dtype, torch.float32))
    return bias_act(x, bias, act="lrelu", gain=gain, clamp=FP16_CLAMP if x.dtype == torch.float16 else None)


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Divide each pixel's feature vector by its root mean square (Karras et al. 2018, section 4.2).

    Args:
        x: `[n, c, ...]`; the statistics are taken in float32 (float64 for float64).
        eps: Added to the mean square.

    Returns:
        The same shape and dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps).to(x.dtype)


def minibatch_deviation(x: Tensor, group: int, eps: float = 1e-8) -> Tensor:
    """Append one channel: the mean standard deviation over a group of samples (Karras et al. 2018, section 3).

    Groups are consecutive samples, so that they are the same in any split of a batch into whole groups.

    Args:
        x: `[n, c, h, w]`.
        group: Samples per group; n must be a multiple of min(group, n).
        eps: Added to the variance.

    Returns:
        `[n, c + 1, h, w]`, in the dtype of `x`.

    Raises:
        ValueError: If the batch is no whole number of groups.
    """
    n, c, h, w = x.shape
    group = min(group, n)
    if n % group:
        raise ValueError(f"a batch of {n} is no whole number of minibatch-deviation groups of {group}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(n // group, group, c, h, w)
    deviation = (wide.var(1, unbiased=False) + eps).sqrt().mean((1, 2, 3))
    channel = deviation.repeat_interleave(group)[:, None, None, None].expand(n, 1, h, w)
    return torch.cat((x, channel.to(x.dtype)), 1)


def double_nearest(x: Tensor) -> Tensor:
    """`[n, c, h, w]` -> `[n, c, 2h, 2w]`, each pixel repeated; deterministic on every device, both ways."""
    n, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


def halve_box(x: Tensor) -> Tensor:
    """`[n, c, h, w]` -> `[n, c, h/2, w/2]`, the mean of each 2x2 block; deterministic on every device, both ways."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def cross_fade(images: Tensor, alpha: Alpha) -> Tensor:
    """Blend images with their own half resolution, as networks that grow blend their newest block.

    Args:
        images: `[n, 3, h, w]`, h and w even where alpha is below 1, or a tensor.
        alpha: The share of the images themselves, in [0, 1].

    Returns:
        The same shape, without gradient.
    """
    if not fades(alpha):
        return images.detach()
    return blended(double_nearest(halve_box(images)), images, alpha).detach()
