"""MUNIT's layers (Huang et al. 2018, "Multimodal Unsupervised Image-to-Image Translation", section 5.1, appendix B).

Every convolution is padded by reflection, and followed by a normalisation and a rectifier. Whichever the normalisation
is, it is a factor and a shift for each sample and channel, which follow from the mean and the variance of each channel:
these are taken in float32, and applied together with the rectifier in one pass. Parameters stay in their own dtype, and
a convolution computes in that of its input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.networks.blending import Alpha, fades
from hires_gan.networks.layers import FP16_CLAMP, double_nearest, halve_box
from hires_gan.ops import conv2d, epilogue

EPS = 1e-5
"""Added to variances, and to layer normalisation's standard deviation."""

_LEAST = 1e-20
"""No variance of which a root is taken is less: the root's slope at 0 is infinite."""

Norm = Literal["none", "instance", "adaptive", "layer"]


@dataclass(frozen=True)
class Level:
    """How far networks have grown that start at a lower resolution.

    Attributes:
        number: How many halvings the images lie below full resolution; 0 when all is grown.
        alpha: The share of the newest level, in [0, 1]; below 1 the level before, a halving below, is blended in. In a
            step of a fade it may be a tensor, as `Step.alpha` is: such a level is neither compared nor printed.

    Raises:
        ValueError: If one of them is out of range; what a tensor holds is not looked at.
    """

    number: int = 0
    alpha: Alpha = 1.0

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number is {self.number}; 0, which is full resolution, or more is allowed")
        if not (isinstance(self.alpha, Tensor) or 0.0 <= self.alpha <= 1.0):
            raise ValueError(f"alpha is {self.alpha}; 0 to 1 is allowed")

    @property
    def fades(self) -> bool:
        """Whether the level before is blended in."""
        return fades(self.alpha)

    def blending(self, alpha: Tensor | None) -> Level:
        """The same, with the alpha of a step if it has one."""
        return self if alpha is None else replace(self, alpha=alpha)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the levels that images enter or leave at: the newest, and in a fade the one before."""
        return (self.number, self.number + 1) if self.fades else (self.number,)


def check_level(level: Level, levels: int) -> None:
    """Refuse a level that a network does not have.

    Args:
        level: What is asked for.
        levels: How many levels below full resolution the network has.

    Raises:
        ValueError: If it, or what is to be blended in, lies below the coarsest.
    """
    if level.numbers[-1] > levels:
        needed = " and the one before" if level.fades else ""
        raise ValueError(
            f"level is {level}, which needs level {level.number}{needed}; the network has 0 to {levels}: ask for one "
            "of these, with an alpha of 1 at the coarsest, or build the network with more levels"
        )


class Moments(NamedTuple):
    """Of each sample's channels over their pixels.

    Attributes:
        mean: `[n, c]`, float32 or float64.
        variance: `[n, c]`, the mean square of the deviations, in the same dtype.
        pixels: Over how many pixels they were taken.
    """

    mean: Tensor
    variance: Tensor
    pixels: int


class Statistics:
    """What one pass through a network measured in its normalisations, for other passes to use.

    Over tiles of a large image, instance normalisation computes each tile's own statistics, and the seams show. With
    the statistics of the whole image, or of a smaller copy of it, each pixel becomes what it would be in the whole:

        whole = Statistics()
        content, style = generator.encode(images, whole)
        content, _ = generator.encode(tile, whole.fixed())

    A layer that is passed twice keeps the later values, but where windows are merged. Nothing that is recorded has a
    gradient.
    """

    def __init__(self) -> None:
        self._recorded: dict[nn.Module, Moments] = {}
        self._fixed = False
        self._merged: tuple[nn.Module, slice, slice] | None = None

    def fixed(self) -> Statistics:
        """The same values, given to the layers in place of their own; what is recorded later is seen as well."""
        given = Statistics()
        given._recorded, given._fixed = self._recorded, True
        return given

    def merging(self, layer: nn.Module, rows: slice, columns: slice) -> Statistics:
        """The same values, where `layer` adds a window of what it normalises; the others use them, as of `fixed`.

        The windows of many passes, if they are parts of a map, together give what one pass over the map would. They are
        summed up in float64 on the CPU.

        Args:
            layer: Whose values grow; to start with it has none.
            rows: Of its map, in this pass.
            columns: Likewise.
        """
        given = self.fixed()
        given._merged = (layer, rows, columns)
        return given

    def at(self, layer: nn.Module, x: Tensor) -> Moments:
        """The moments that a layer has to use: those of `x`, then recorded, or those that were recorded before.

        Args:
            layer: Who asks.
            x: `[n, c, h, w]`, what the layer normalises.

        Raises:
            ValueError: If the values are fixed and there are none for this layer, or of another number of samples
                than 1 and n.
        """
        if self._merged is not None and self._merged[0] is layer:
            return self._merge(x, *self._merged)
        if not self._fixed:
            found = moments(x)
            self._recorded[layer] = Moments(found.mean.detach(), found.variance.detach(), found.pixels)
            return found
        if layer not in self._recorded:
            raise ValueError(
                "statistics hold no values for a layer that asks for them; record them in a pass through the same "
                "methods of the same network before"
            )
        given = self._recorded[layer]
        if given.mean.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"statistics are of {given.mean.shape[0]} samples, and the batch has {x.shape[0]}; 1, for all of them, "
                "or as many are allowed"
            )
        mean, variance = (one.to(x.device, _wide(x.dtype)).expand(x.shape[:2]) for one in given[:2])
        return Moments(mean, variance, given.pixels)

    def _merge(self, x: Tensor, layer: nn.Module, rows: slice, columns: slice) -> Moments:
        found = moments(x[:, :, rows, columns])
        mean, variance = (one.detach().cpu().double() for one in found[:2])
        one = Moments(mean, variance, found.pixels)
        before = self._recorded.get(layer)
        self._recorded[layer] = one if before is None else merged(before, one)
        return found


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of pixels together (Chan, Golub and LeVeque 1983)."""
    pixels = a.pixels + b.pixels
    share, between = b.pixels / pixels, b.mean - a.mean
    variance = torch.lerp(a.variance, b.variance, share) + between.square() * (share * (1 - share))
    return Moments(a.mean + between * share, variance, pixels)


def moments(x: Tensor) -> Moments:
    """Mean and variance of `[n, c, h, w]` over the pixels, in float32 (float64 for float64).

    Differentiable to any order; autograd keeps `x` as it is, and no copy of it in float32.
    """
    mean, variance = _Moments.apply(x)  # type: ignore[no-untyped-call]
    return Moments(mean, variance, x.shape[2] * x.shape[3])


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x.to(_wide(x.dtype)), (2, 3), correction=0)
        return mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, *d: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        of_mean, of_variance = (one[:, :, None, None] / (x.shape[2] * x.shape[3]) for one in d)
        centred = x.to(mean.dtype) - mean[:, :, None, None]
        return torch.addcmul(of_mean, centred, 2 * of_variance).to(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In which dtype statistics are taken."""
    return torch.promote_types(dtype, torch.float32)


def reflect_pad(x: Tensor, padding: int) -> Tensor:
    """`[n, c, h, w]` -> `[n, c, h + 2 padding, w + 2 padding]`, mirrored at the outer pixels; needs larger h and w.

    Deterministic on every device, both ways, which torch's own is not, and in the memory format of `x`.
    """
    for dim in (3, 2) if padding else ():
        before = x.narrow(dim, 1, padding).flip(dim)
        behind = x.narrow(dim, x.shape[dim] - 1 - padding, padding).flip(dim)
        x = torch.cat((before, x, behind), dim)
    return x


def doubled(x: Tensor) -> Tensor:
    """`[n, c, h, w]` -> `[n, c, 2h, 2w]`, each pixel repeated; in the memory format of `x`."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return double_nearest(x)
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    return pixels.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def halved(x: Tensor) -> Tensor:
    """`[n, c, h, w]` -> `[n, c, h/2, w/2]`, the mean of each 2x2 block; in the memory format of `x`."""
    y = halve_box(x)
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (Miyato et al. 2018, "Spectral Normalization for GANs").

    The value is that along a pair of stored vectors, which only `iterate` moves: a pass changes nothing, however often
    it is repeated. Whoever changes the weight iterates behind it; vectors of another weight mean nothing to this one.

    Args:
        weight: `[o, ...]`, a matrix of o rows.
        iterations: How many iterations the vectors start with.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, iterations: int = 15) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.register_buffer("left", F.normalize(torch.randn(rows.shape[0]), dim=0))
        self.register_buffer("right", torch.zeros(rows.shape[1]))
        for _ in range(iterations):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One power iteration, in place."""
        rows = weight.flatten(1)
        self.right.copy_(F.normalize(rows.T @ self.left, dim=0))
        self.left.copy_(F.normalize(rows @ self.right, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, divided. For autograd the vectors are constants, and the divisor depends on the weight."""
        return weight / (self.left @ weight.flatten(1) @ self.right).clamp_min(_LEAST)


class Conv2d(nn.Module):
    """A convolution that is padded by reflection. Its bias is left to what follows.

    In fp16, weights are divided by constants before they are rounded, such that no sum overflows where the input is
    within `FP16_CLAMP`; what follows multiplies by these constants in float32.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Side of the kernel.
        stride: Of the kernel.
        deviation: Standard deviation of the initial weights; None for He's, sqrt(2 / fan-in). Biases start at 0.
        spectral: Whether weights are divided by their largest singular value.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        deviation: float | None = None,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        deviation = he_deviation(inputs * kernel * kernel) if deviation is None else deviation
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * deviation)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.spectral = SpectralNorm(self.weight) if spectral else None
        self.stride, self.padding = stride, (kernel - 1) // 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolve.

        Args:
            x: `[n, inputs, h, w]`, h and w larger than half the kernel.

        Returns:
            `[n, outputs, h / stride, w / stride]` in the dtype of `x`, without the bias, and the factor for each output
            that is still to be applied, `[outputs]`; None for 1.
        """
        weight = self.weight if self.spectral is None else self.spectral(self.weight)
        factor = _divisor(weight) if x.dtype == torch.float16 else None
        if factor is not None:
            weight = weight / factor[:, None, None, None]
        return conv2d(reflect_pad(x, self.padding), weight.to(x.dtype), self.stride), factor

    def iterate_spectral_norm(self) -> None:
        """One power iteration, if there is a spectral normalisation."""
        if self.spectral is not None:
            self.spectral.iterate(self.weight)


def he_deviation(fan_in: int) -> float:
    """The standard deviation that keeps the power of what goes through a rectifier (He et al. 2015)."""
    return math.sqrt(2 / fan_in)


def _divisor(weight: Tensor) -> Tensor:
    """`[o]`, by which weights are at most 1 / sqrt(fan-in); a constant for autograd, since it cancels out."""
    most = weight.detach().abs().amax((1, 2, 3)) * math.sqrt(weight[0].numel())
    return most.clamp_min(_LEAST)


class ConvBlock(nn.Module):
    """A convolution, a normalisation and an activation.

    Normalisations, of each sample by itself:

    - "none": the bias alone.
    - "instance": each channel to mean 0 and variance 1. The bias, which would cancel out, takes no part.
    - "adaptive": the same, then a factor and a shift from outside (Huang and Belongie 2017, equation 8).
    - "layer": all channels together, then a learned factor and shift of each channel. It keeps the means and variances
      of the channels, in which the style lies, apart from one factor.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Side of the kernel.
        stride: Of the kernel.
        norm: Which normalisation.
        act: "relu", "lrelu" (of slope 0.2) or "linear".
        deviation: As for `Conv2d`.
        spectral: As for `Conv2d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        norm: Norm = "none",
        act: str = "relu",
        deviation: float | None = None,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.convolution = Conv2d(inputs, outputs, kernel, stride, deviation, spectral)
        self.norm: Norm = norm
        self.act = act
        if norm == "layer":
            self.gamma = nn.Parameter(torch.rand(outputs))
            self.beta = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, statistics: Statistics | None = None, affine: Tensor | None = None) -> Tensor:
        """Compute in the dtype of `x`.

        Args:
            x: `[n, inputs, h, w]`, h and w larger than half the kernel.
            statistics: To record or to use; None for the input's own.
            affine: `[n, 2, outputs]`, shifts and then factors, for "adaptive"; float32 or float64.

        Returns:
            `[n, outputs, h / stride, w / stride]` in the dtype of `x`.
        """
        y, factor = self.convolution(x)
        if self.norm == "none":
            factors = None if factor is None else factor.expand(y.shape[:2])
            return _applied(y, factors, self.convolution.bias, self.act)
        measured = moments(y) if statistics is None else statistics.at(self, y)
        if factor is not None:
            measured = Moments(measured.mean * factor, measured.variance * factor.square(), measured.pixels)
        scale, shift = self._coefficients(measured, affine)
        return _applied_to_each(y, scale if factor is None else scale * factor, shift, self.act)

    def _coefficients(self, measured: Moments, affine: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factor and shift `[n, c]` of a normalisation."""
        if self.norm == "layer":
            return layer_norm(measured, self.convolution.bias, self.gamma, self.beta)
        scale = torch.rsqrt(measured.variance + EPS)
        if self.norm == "instance":
            return scale, -measured.mean * scale
        assert affine is not None
        beta, gamma = affine.to(scale.dtype).unbind(1)
        scale = scale * gamma
        return scale, beta - measured.mean * scale


def layer_norm(measured: Moments, bias: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise a sample's channels together: gamma * (x + bias - mean) / (deviation + eps) + beta.

    Mean and deviation (of n - 1 degrees of freedom) follow from those of the channels.

    Args:
        measured: The moments of x.
        bias: `[c]`.
        gamma: `[c]`.
        beta: `[c]`.

    Returns:
        The factor of x and what is added behind it, `[n, c]` each.
    """
    numbers = measured.pixels * measured.mean.shape[1]
    means = measured.mean + bias
    deviations = means - means.mean(1, keepdim=True)
    variance = (measured.variance + deviations.square()).mean(1, keepdim=True) * (numbers / max(numbers - 1, 1))
    scale = gamma / (variance.clamp_min(_LEAST).sqrt() + EPS)
    return scale, beta + (deviations - measured.mean) * scale


def _applied_to_each(x: Tensor, scale: Tensor, shift: Tensor, act: str) -> Tensor:
    """`act(x * scale + shift)` with coefficients `[n, c]`, one sample after another: they have shifts of their own."""
    if len(x) == 1:
        return _applied(x, scale, shift[0], act)
    if not len(x):  # of a rank without samples
        return x * scale[:, :, None, None].to(x.dtype)
    rows = zip(torch.split(x, 1), torch.split(scale, 1), shift, strict=True)
    return torch.cat([_applied(one, factor, b, act) for one, factor, b in rows])


def _applied(x: Tensor, scale: Tensor | None, shift: Tensor, act: str) -> Tensor:
    wide = _wide(x.dtype)
    clamp = FP16_CLAMP if x.dtype == torch.float16 else None
    scale = None if scale is None else scale.to(wide)
    return epilogue(x, scale, b=shift.to(wide), act=act, gain=1.0, clamp=clamp)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first one with a rectifier, added to their input; nothing is behind the sum.

    Args:
        channels: Of input and output.
        norm: "instance" or "adaptive".
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, 3, norm=norm)
        self.second = ConvBlock(channels, channels, 3, norm=norm, act="linear")

    def forward(self, x: Tensor, statistics: Statistics | None = None, affine: Tensor | None = None) -> Tensor:
        """`[n, channels, h, w]`, and `affine` `[n, 2, 2, channels]`: layers, then shifts and factors, if adaptive."""
        of_first, of_second = (None, None) if affine is None else affine.unbind(1)
        y: Tensor = self.second(self.first(x, statistics, of_first), statistics, of_second)
        return x + y


class Dense(nn.Module):
    """A dense layer, with He's initial weights and a bias of 0.

    Args:
        inputs: Features of the input `[n, inputs]`.
        outputs: Features of the output `[n, outputs]`.
        rectify: Whether a rectifier is behind it.
    """

    def __init__(self, inputs: int, outputs: int, rectify: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * he_deviation(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs]` -> `[n, outputs]`, in the dtype of `x`."""
        y = F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
        return F.relu(y) if self.rectify else y
