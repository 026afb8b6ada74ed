"""MUNIT's generator (Huang et al. 2018, "Multimodal Unsupervised Image-to-Image Translation", appendix B).

An image is taken apart into its content, a map of features, and its style, a short vector; a decoder puts a content
and a style together. Each domain has a generator of its own, and nothing is shared: an image is translated by the other
domain's decoder, from the image's content and a style of that domain, encoded or drawn from N(0, 1).

With the defaults these are the published networks. At 1024x1024 they see a quarter of what they see at 256x256; with a
`content_downs` of 3 or 4 and as many channels as before, they see more and compute less. With `levels`, they can be
trained coarse to fine: at each level the layers within are those of the whole network, and only what lies between them
and the images is the level's own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hires_gan.networks.blending import blended
from hires_gan.networks.munit_layers import (
    Conv2d,
    ConvBlock,
    Dense,
    Level,
    ResidualBlock,
    Statistics,
    check_level,
    doubled,
    halved,
)
from hires_gan.ops import epilogue

__all__ = ["ContentEncoder", "Decoder", "Generator", "Level", "StyleEncoder"]


class Generator(nn.Module):
    """Images of one domain to content and style, and back.

    Args:
        style_size: Dimensions of a style.
        base: Channels at full resolution; each halving of the resolution doubles them.
        most: Channels are no more than this in the content encoder; the decoder halves what it gets at each doubling.
        content_downs: How often the content encoder halves the resolution, at least 1.
        style_downs: How often the style encoder does, at least 1; its channels are no more than four times `base`.
        blocks: Residual blocks in the content encoder, and as many in the decoder.
        features: Of the dense layers between a style and the decoder's normalisations.
        dtype: In which convolutions compute; None for that of what they are given. Statistics, dense layers and images
            are in float32 (float64 for float64). Where an image is constant, each instance normalisation multiplies
            the gradient by up to 316, which bf16 has the range for and fp16 has not.
        recompute: Compute what lies at the images' resolution again in the backward pass, instead of keeping it.
        levels: How many levels below full resolution the network can work at, each one at half the resolution of the
            one above; less than `content_downs` and `style_downs`. 0 for a network that does not grow.

    Attributes:
        level: The level that the methods work at when none is given; at first full resolution. Whoever loads weights
            that have not grown to the end sets it.

    Raises:
        ValueError: If there are too few halvings, or the content's channels cannot be halved as often, or there are
            more levels than halvings.
    """

    def __init__(
        self,
        style_size: int = 8,
        base: int = 64,
        most: int = 256,
        content_downs: int = 2,
        style_downs: int = 4,
        blocks: int = 4,
        features: int = 256,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        levels: int = 0,
    ) -> None:
        super().__init__()
        widths = [min(base << level, most) for level in range(content_downs + 1)]
        _check_widths(content_downs, style_downs, widths[-1])
        _check_levels(levels, content_downs, style_downs)
        style_widths = [base << min(level, 2) for level in range(style_downs + 1)]
        self.style_size, self.content_channels, self.content_downs = style_size, widths[-1], content_downs
        self.levels, self.level = levels, Level()
        self.content_encoder = ContentEncoder(widths, blocks, dtype, recompute, levels)
        self.style_encoder = StyleEncoder(style_widths, style_size, dtype, recompute, levels)
        self.decoder = Decoder(style_size, widths[-1], content_downs, blocks, features, dtype, recompute, levels)

    def encode(
        self, images: Tensor, statistics: Statistics | None = None, level: Level | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take images apart.

        Args:
            images: `[n, 3, h, w]` in [-1, 1], float32 or float64; sides are multiples of `stride`, and at least
                `least_side`, both of the level.
            statistics: The content encoder's, to record or to use; None for the images' own.
            level: At which the images are; None for `self.level`.

        Returns:
            Content `[n, content_channels, h / stride, w / stride]` and style `[n, style_size]`, in the dtype of the
            images.

        Raises:
            ValueError: If the images have another shape, or `statistics` lack what is asked for, or the network does
                not have the level.
        """
        return self.encode_content(images, statistics, level), self.encode_style(images, level)

    def encode_content(
        self, images: Tensor, statistics: Statistics | None = None, level: Level | None = None
    ) -> Tensor:
        """The content alone; as `encode`."""
        level = self._at(level)
        check_images(images, self.stride(level), 2 * self.stride(level), level)
        content: Tensor = self.content_encoder(images, statistics, level)
        return content

    def encode_style(self, images: Tensor, level: Level | None = None) -> Tensor:
        """The style alone; sides may be any from 2^style_downs on, halved by each level; in a fade they are even."""
        level = self._at(level)
        check_images(images, len(level.numbers), 1 << self.style_encoder.halvings - level.number, level)
        style: Tensor = self.style_encoder(images, level)
        return style

    def decode(
        self, content: Tensor, style: Tensor, statistics: Statistics | None = None, level: Level | None = None
    ) -> Tensor:
        """Put images together.

        Args:
            content: `[n, content_channels, h, w]`, float32 or float64; h and w at least 2.
            style: `[n, style_size]`, encoded, or from N(0, 1); in the same dtype.
            statistics: The decoder's, to record or to use; None for the content's own.
            level: At which the images are to be; None for `self.level`.

        Returns:
            `[n, 3, h * stride, w * stride]` in [-1, 1], in the dtype of the content; `stride` is the level's.

        Raises:
            ValueError: If content or style have another shape, or `statistics` lack what is asked for, or the network
                does not have the level.
        """
        level = self._at(level)
        check_content(content, style, self.content_channels, self.style_size)
        images: Tensor = self.decoder(content, style, statistics, level)
        return images

    def stride(self, level: Level | None = None) -> int:
        """Pixels of an image by pixels of its content, along each side."""
        return 1 << self.content_downs - self._at(level).number

    def least_side(self, level: Level | None = None) -> int:
        """The least height and width that `encode` takes: reflection needs two pixels everywhere."""
        level = self._at(level)
        return max(_least(level), 2 * self.stride(level), 1 << self.style_encoder.halvings - level.number)

    def live_parameters(self, level: Level | None = None) -> list[str]:
        """The names of the parameters of the layers that what is made at a level goes through.

        Among them are the biases before instance normalisations, which cancel out and get no gradient.
        """
        level = self._at(level)
        parts = (self.content_encoder, self.style_encoder, self.decoder)
        dead = {id(parameter) for part in parts for layer in part.dead(level) for parameter in layer.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) not in dead]

    def _at(self, level: Level | None) -> Level:
        level = level or self.level
        check_level(level, self.levels)
        return level


class ContentEncoder(nn.Module):
    """A 7x7 convolution, strided ones, and residual blocks, all with instance normalisation.

    Args:
        widths: Channels at full resolution and behind each halving.
        blocks: Residual blocks.
        dtype: As for `Generator`.
        recompute: As for `Generator`.
        levels: As for `Generator`; each has a 7x7 convolution of its own.
    """

    def __init__(
        self, widths: list[int], blocks: int, dtype: torch.dtype | None, recompute: bool, levels: int = 0
    ) -> None:
        super().__init__()
        self.dtype, self.recompute = dtype, recompute
        self.stems = nn.ModuleList(ConvBlock(3, width, 7, norm="instance") for width in widths[: levels + 1])
        self.downs = nn.ModuleList(ConvBlock(a, b, 4, 2, norm="instance") for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(widths[-1], "instance") for _ in range(blocks))

    def forward(self, images: Tensor, statistics: Statistics | None, level: Level) -> Tensor:
        """`[n, 3, h, w]` -> the content, in the dtype of the images."""

        def entered(images: Tensor) -> Tensor:
            return _entered(images, self.stems, self.downs, self.dtype, level, statistics)

        x = _passed(entered, images, recompute=self.recompute)
        for layer in (*self.downs[level.number + 1 :], *self.blocks):
            x = layer(x, statistics)
        return x.to(images.dtype)

    def dead(self, level: Level) -> list[nn.Module]:
        """The layers through which nothing goes at a level."""
        return [*self.downs[: level.number], *_others(self.stems, level)]


class StyleEncoder(nn.Module):
    """A 7x7 convolution, strided ones, the mean over all pixels, and a dense layer; nothing is normalised.

    Instance normalisation would take away the means and variances of features, in which the style lies.

    Args:
        widths: Channels at full resolution and behind each halving.
        style_size: Dimensions of a style.
        dtype: As for `Generator`.
        recompute: As for `Generator`.
        levels: As for `Generator`; each has a 7x7 convolution of its own.
    """

    def __init__(
        self, widths: list[int], style_size: int, dtype: torch.dtype | None, recompute: bool, levels: int = 0
    ) -> None:
        super().__init__()
        self.dtype, self.recompute, self.halvings = dtype, recompute, len(widths) - 1
        self.stems = nn.ModuleList(ConvBlock(3, width, 7) for width in widths[: levels + 1])
        self.downs = nn.ModuleList(ConvBlock(a, b, 4, 2) for a, b in pairwise(widths))
        self.output = Dense(widths[-1], style_size)

    def forward(self, images: Tensor, level: Level) -> Tensor:
        """`[n, 3, h, w]` -> `[n, style_size]`, in the dtype of the images."""

        def entered(images: Tensor) -> Tensor:
            return _entered(images, self.stems, self.downs, self.dtype, level, None)

        x = _passed(entered, images, recompute=self.recompute)
        for layer in self.downs[level.number + 1 :]:
            x = layer(x)
        style: Tensor = self.output(x.mean((2, 3), dtype=images.dtype))
        return style

    def dead(self, level: Level) -> list[nn.Module]:
        """The layers through which nothing goes at a level."""
        return [*self.downs[: level.number], *_others(self.stems, level)]


class Decoder(nn.Module):
    """Residual blocks whose normalisations take their factors and shifts from the style, then doublings of the size.

    Args:
        style_size: Dimensions of a style.
        channels: Of the content.
        ups: How often the resolution is doubled, and the channels are halved.
        blocks: Residual blocks.
        features: Of the dense layers.
        dtype: As for `Generator`.
        recompute: As for `Generator`.
        levels: As for `Generator`; each has a 7x7 convolution to colours of its own.
    """

    def __init__(
        self,
        style_size: int,
        channels: int,
        ups: int,
        blocks: int,
        features: int,
        dtype: torch.dtype | None,
        recompute: bool,
        levels: int = 0,
    ) -> None:
        super().__init__()
        self.dtype, self.recompute, self.channels = dtype, recompute, channels
        layers = (Dense(style_size, features, True), Dense(features, features, True))
        self.mapping = nn.Sequential(*layers, Dense(features, blocks * 4 * channels))
        self.blocks = nn.ModuleList(ResidualBlock(channels, "adaptive") for _ in range(blocks))
        widths = [channels >> level for level in range(ups + 1)]
        self.ups = nn.ModuleList(ConvBlock(a, b, 5, norm="layer") for a, b in pairwise(widths))
        self.outputs = nn.ModuleList(Conv2d(width, 3, 7) for width in widths[ups - levels :][::-1])

    def forward(self, content: Tensor, style: Tensor, statistics: Statistics | None, level: Level) -> Tensor:
        """Content and `[n, style_size]` -> `[n, 3, h, w]` in [-1, 1], in the dtype of the content."""
        x = content.to(self.dtype or content.dtype)
        for block, own in zip(self.blocks, self.affines(style), strict=True):
            x = block(x, statistics, own)
        *inner, outermost = self.ups[: len(self.ups) - level.number]
        for layer in inner:
            x = layer(doubled(x), statistics)

        def left(x: Tensor) -> Tensor:
            colours = self.colours(outermost(doubled(x), statistics), level.number, content.dtype)
            if not level.fades:
                return colours
            return blended(doubled(self.colours(x, level.number + 1, content.dtype)), colours, level.alpha)

        return _passed(left, x, recompute=self.recompute)

    def affines(self, style: Tensor) -> tuple[Tensor, ...]:
        """For each block `[n, 2, 2, channels]`: of each of its layers the shifts of all channels, then the factors."""
        numbers: Tensor = self.mapping(style)
        return numbers.reshape(len(style), len(self.blocks), 2, 2, self.channels).unbind(1)

    def colours(self, x: Tensor, number: int, dtype: torch.dtype) -> Tensor:
        """Features at a level to `[n, 3, h, w]` in [-1, 1], in a dtype."""
        output = self.outputs[number]
        assert isinstance(output, Conv2d)
        y, factor = output(x)
        factor = None if factor is None else factor.to(dtype).expand(len(y), -1)
        return epilogue(y.to(dtype), factor, b=output.bias.to(dtype), act="linear").tanh()

    def dead(self, level: Level) -> list[nn.Module]:
        """The layers through which nothing goes at a level."""
        return [*self.ups[len(self.ups) - level.number :], *_others(self.outputs, level)]


def _entered(
    images: Tensor,
    stems: nn.ModuleList,
    downs: nn.ModuleList,
    dtype: torch.dtype | None,
    level: Level,
    statistics: Statistics | None,
) -> Tensor:
    """The features behind the first halving of images at a level, in `dtype`."""
    dtype = dtype or images.dtype
    x: Tensor = downs[level.number](stems[level.number](images.to(dtype), statistics), statistics)
    if not level.fades:
        return x
    before: Tensor = stems[level.number + 1](halved(images).to(dtype), statistics)
    return blended(before, x, level.alpha)


def _others(layers: nn.ModuleList, level: Level) -> list[nn.Module]:
    return [layer for number, layer in enumerate(layers) if number not in level.numbers]


def _passed(function: Callable[[Tensor], Tensor], x: Tensor, recompute: bool) -> Tensor:
    """The function of `x`; with `recompute`, only `x` and the result are kept for the backward pass."""
    if not recompute or not torch.is_grad_enabled():
        return function(x)
    result: Any = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    y: Tensor = result
    return y


def _check_widths(content_downs: int, style_downs: int, channels: int) -> None:
    for name, value in (("content_downs", content_downs), ("style_downs", style_downs)):
        if value < 1:
            raise ValueError(f"{name} is {value}; 1 or more is allowed")
    if channels % (1 << content_downs):
        raise ValueError(
            f"the content has {channels} channels, which the decoder cannot halve {content_downs} times; choose base "
            f"and most such that min(base * 2^content_downs, most) is a multiple of {1 << content_downs}"
        )


def _check_levels(levels: int, content_downs: int, style_downs: int) -> None:
    for name, value in (("content_downs", content_downs), ("style_downs", style_downs)):
        if not 0 <= levels < value:
            raise ValueError(
                f"levels is {levels}, and {name} is {value}; 0 to {value - 1} is allowed: choose fewer levels or more "
                "halvings"
            )


def _least(level: Level) -> int:
    """The first kernel reaches three pixels across the edge, in a fade at half the resolution too."""
    return 4 * len(level.numbers)


def check_images(images: Tensor, multiple: int, least: int, level: Level) -> None:
    """Refuse images whose sides are no multiples, or less than what is needed.

    Raises:
        ValueError: If they are, or are no images.
    """
    least = max(least, _least(level))
    sides = images.shape[2:]
    if images.ndim != 4 or images.shape[1] != 3 or any(side % multiple or side < least for side in sides):
        raise ValueError(
            f"images are {list(images.shape)}; [n, 3, h, w] is allowed, with h and w of at least {least} and multiples "
            f"of {multiple}: crop or resize them"
        )


def check_content(content: Tensor, style: Tensor, channels: int, style_size: int) -> None:
    """Refuse a content and a style that a decoder cannot put together.

    Raises:
        ValueError: If one has another shape.
    """
    if content.ndim != 4 or content.shape[1] != channels or min(content.shape[2:]) < 2:
        raise ValueError(
            f"content is {list(content.shape)}; [n, {channels}, h, w] is allowed, with h and w of at least 2"
        )
    if tuple(style.shape) != (len(content), style_size):
        raise ValueError(f"style is {list(style.shape)}; [{len(content)}, {style_size}] is allowed")
