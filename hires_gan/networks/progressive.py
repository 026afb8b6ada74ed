"""Progressive GAN's generator and discriminator (Karras et al. 2018, "Progressive Growing of GANs", table 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hires_gan.networks.blending import blended
from hires_gan.networks.growth import Growth, Width, live_at, resolutions_to
from hires_gan.networks.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    biased_lrelu,
    double_nearest,
    halve_box,
    minibatch_deviation,
    pixel_norm,
)

__all__ = ["Discriminator", "Generator", "Growth", "Width"]


class Generator(nn.Module):
    """Latents to images, at any resolution up to the full one.

    Args:
        resolution: The full resolution.
        latent_size: Dimensions of a latent vector.
        classes: Number of classes; 0 for an unconditional generator.
        width: Feature maps per resolution.
        dtypes: In which dtype each resolution computes; the parameters' own where it has no entry.

    Attributes:
        growth: The growth that `forward` uses when none is given; at first the full resolution.
    """

    def __init__(
        self,
        resolution: int,
        latent_size: int = 512,
        classes: int = 0,
        width: Width | None = None,
        dtypes: Mapping[int, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        width = width or Width()
        self.latent_size, self.classes = latent_size, classes
        self.dtypes = dict(dtypes or {})
        self.growth = Growth(resolution)
        # He's gain divided by 4 matches the variance of the dense layer seen as a 4x4 transposed convolution.
        self.dense = EqualizedLinear(latent_size + classes, width.at(4) * 16, gain=math.sqrt(2) / 4, bias=False)
        self.dense_bias = nn.Parameter(torch.zeros(width.at(4)))
        self.blocks = nn.ModuleDict({str(r): _GeneratorBlock(width, r) for r in resolutions_to(resolution)})
        self.to_rgb = nn.ModuleDict(
            {str(r): EqualizedConv2d(width.at(r), 3, 1, 1.0) for r in resolutions_to(resolution)}
        )

    def forward(self, latents: Tensor, labels: Tensor | None = None, growth: Growth | None = None) -> Tensor:
        """Generate images.

        Args:
            latents: `[n, latent_size]`, N(0, 1), float32 or float64.
            labels: int64 `[n]` in [0, classes), if the generator is conditional.
            growth: How far the network has grown; by default `self.growth`.

        Returns:
            `[n, 3, r, r]` in about [-1, 1], in the dtype of the latents.

        Raises:
            ValueError: If labels are missing for a conditional generator, or given to an unconditional one.
        """
        growth = growth or self.growth
        x = self._first(latents, labels)
        for r in growth.resolutions[:-1]:
            x = self.blocks[str(r)](x.to(self.dtypes.get(r, latents.dtype)))
        before = x
        newest = str(growth.resolution)
        x = self.blocks[newest](x.to(self.dtypes.get(growth.resolution, latents.dtype)))
        image: Tensor = self.to_rgb[newest](x).to(latents.dtype)
        if growth.fades:
            old = self.to_rgb[str(growth.resolution // 2)](before).to(latents.dtype)
            image = blended(double_nearest(old), image, growth.alpha)
        return image

    def _first(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        if (labels is not None) != (self.classes > 0):
            raise ValueError(f"labels {'given' if labels is not None else 'missing'}; classes is {self.classes}")
        if labels is not None:
            latents = torch.cat((latents, _one_hot(labels, self.classes, latents)), 1)
        x = self.dense(pixel_norm(latents)).reshape(len(latents), -1, 4, 4)
        return pixel_norm(biased_lrelu(x, self.dense_bias))

    def live_parameters(self, growth: Growth) -> list[str]:
        """The names of the parameters that an image at this growth depends on."""
        return live_at(self, growth, "to_rgb", ("dense.weight", "dense_bias"))


class _GeneratorBlock(nn.Module):
    """At 4x4 one convolution, above it a doubling convolution and another one, each with pixel normalisation."""

    def __init__(self, width: Width, resolution: int) -> None:
        super().__init__()
        maps = width.at(resolution)
        layers = [EqualizedConv2d(maps, maps, 3, act="lrelu")]
        if resolution > 4:
            layers.insert(0, EqualizedConv2d(width.at(resolution // 2), maps, 3, resample="up", act="lrelu"))
        self.convolutions = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = pixel_norm(convolution(x))
        return x


class Discriminator(nn.Module):
    """Images, at any resolution up to the full one, to a score and, with classes, to their logits (AC-GAN).

    Args:
        resolution: The full resolution.
        classes: Number of classes; 0 for none.
        width: Feature maps per resolution.
        group: Samples that share one minibatch standard deviation.
        dtypes: In which dtype each resolution computes; the image's own where it has no entry.

    Attributes:
        growth: The growth that `forward` uses when none is given; at first the full resolution.
    """

    def __init__(
        self,
        resolution: int,
        classes: int = 0,
        width: Width | None = None,
        group: int = 4,
        dtypes: Mapping[int, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        width = width or Width()
        self.classes, self.group = classes, group
        self.dtypes = dict(dtypes or {})
        self.growth = Growth(resolution)
        self.from_rgb = nn.ModuleDict(
            {str(r): EqualizedConv2d(3, width.at(r), 1, act="lrelu") for r in resolutions_to(resolution)}
        )
        self.blocks = nn.ModuleDict({str(r): _DiscriminatorBlock(width, r) for r in resolutions_to(resolution)[1:]})
        self.convolution = EqualizedConv2d(width.at(4) + 1, width.at(4), 3, act="lrelu")
        self.dense = EqualizedLinear(width.at(4) * 16, width.at(2), act="lrelu")
        self.output = EqualizedLinear(width.at(2), 1 + classes, gain=1.0)

    def forward(self, images: Tensor, growth: Growth | None = None) -> tuple[Tensor, Tensor | None]:
        """Judge images.

        Args:
            images: `[n, 3, r, r]` in about [-1, 1], float32 or float64; n a whole number of groups.
            growth: How far the network has grown; by default `self.growth`.

        Returns:
            The scores `[n]`, and the class logits `[n, classes]` or None, in the dtype of the images.
        """
        growth = growth or self.growth
        newest = str(growth.resolution)
        x = self._entry(images, growth.resolution)
        if growth.resolution > 4:
            x = self.blocks[newest](x)
        if growth.fades:
            old = self._entry(halve_box(images), growth.resolution // 2)
            x = blended(old, x.to(old.dtype), growth.alpha)
        for r in reversed(growth.resolutions[1:-1]):
            x = self.blocks[str(r)](x.to(self.dtypes.get(r, images.dtype)))
        x = x.to(images.dtype)
        x = self.convolution(minibatch_deviation(x, self.group))
        x = self.output(self.dense(x.flatten(1)))
        return x[:, 0], x[:, 1:] if self.classes else None

    def _entry(self, images: Tensor, resolution: int) -> Tensor:
        entry: Tensor = self.from_rgb[str(resolution)](images.to(self.dtypes.get(resolution, images.dtype)))
        return entry

    def live_parameters(self, growth: Growth) -> list[str]:
        """The names of the parameters that a score at this growth depends on."""
        return live_at(self, growth, "from_rgb", ("convolution.", "dense.", "output."))


class _DiscriminatorBlock(nn.Module):
    """A convolution, and another one that halves the resolution."""

    def __init__(self, width: Width, resolution: int) -> None:
        super().__init__()
        maps = width.at(resolution)
        self.convolutions = nn.ModuleList(
            (
                EqualizedConv2d(maps, maps, 3, act="lrelu"),
                EqualizedConv2d(maps, width.at(resolution // 2), 3, resample="down", act="lrelu"),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = convolution(x)
        return x


def _one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, classes).to(like.dtype)
