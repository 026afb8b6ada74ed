"""MUNIT's generator (Huang et al. 2018, "Multimodal Unsupervised Image-to-Image Translation", appendix B).

An image is taken apart into its content, a map of features, and its style, a short vector; a decoder puts a content
and a style together. Each domain has a generator of its own, and nothing is shared: an image is translated by the other
domain's decoder, from the image's content and a style of that domain, encoded or drawn from N(0, 1).

With the defaults these are the published networks. At 1024x1024 they see a quarter of what they see at 256x256; with a
`content_downs` of 3 or 4 and as many channels as before, they see more and compute less.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hires_gan.networks.munit_layers import Conv2d, ConvBlock, Dense, ResidualBlock, Statistics, doubled
from hires_gan.ops import epilogue


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
        recompute: Compute what lies at full resolution again in the backward pass, instead of keeping it.

    Raises:
        ValueError: If there are too few halvings, or the content's channels cannot be halved as often.
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
    ) -> None:
        super().__init__()
        widths = [min(base << level, most) for level in range(content_downs + 1)]
        _check_widths(content_downs, style_downs, widths[-1])
        style_widths = [base << min(level, 2) for level in range(style_downs + 1)]
        self.style_size, self.content_channels, self.content_downs = style_size, widths[-1], content_downs
        self.content_encoder = ContentEncoder(widths, blocks, dtype, recompute)
        self.style_encoder = StyleEncoder(style_widths, style_size, dtype, recompute)
        self.decoder = Decoder(style_size, widths[-1], content_downs, blocks, features, dtype, recompute)

    def encode(self, images: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Tensor]:
        """Take images apart.

        Args:
            images: `[n, 3, h, w]` in [-1, 1], float32 or float64; sides are multiples of 2^content_downs, and at least
                `least_side`.
            statistics: The content encoder's, to record or to use; None for the images' own.

        Returns:
            Content `[n, content_channels, h / 2^content_downs, w / 2^content_downs]` and style `[n, style_size]`, in
            the dtype of the images.

        Raises:
            ValueError: If the images have another shape, or `statistics` lack what is asked for.
        """
        return self.encode_content(images, statistics), self.encode_style(images)

    def encode_content(self, images: Tensor, statistics: Statistics | None = None) -> Tensor:
        """The content alone; as `encode`."""
        _check_images(images, 1 << self.content_downs, 2 << self.content_downs)
        content: Tensor = self.content_encoder(images, statistics)
        return content

    def encode_style(self, images: Tensor) -> Tensor:
        """The style alone; sides may be any from 2^style_downs on."""
        _check_images(images, 1, 1 << self.style_encoder.halvings)
        style: Tensor = self.style_encoder(images)
        return style

    def decode(self, content: Tensor, style: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Put images together.

        Args:
            content: `[n, content_channels, h, w]`, float32 or float64; h and w at least 2.
            style: `[n, style_size]`, encoded, or from N(0, 1); in the same dtype.
            statistics: The decoder's, to record or to use; None for the content's own.

        Returns:
            `[n, 3, h * 2^content_downs, w * 2^content_downs]` in [-1, 1], in the dtype of the content.

        Raises:
            ValueError: If content or style have another shape, or `statistics` lack what is asked for.
        """
        _check_content(content, style, self.content_channels, self.style_size)
        images: Tensor = self.decoder(content, style, statistics)
        return images

    @property
    def least_side(self) -> int:
        """The least height and width that `encode` takes: reflection needs two pixels everywhere."""
        return max(4, 2 << self.content_downs, 1 << self.style_encoder.halvings)


class ContentEncoder(nn.Module):
    """A 7x7 convolution, strided ones, and residual blocks, all with instance normalisation.

    Args:
        widths: Channels at full resolution and behind each halving.
        blocks: Residual blocks.
        dtype: As for `Generator`.
        recompute: As for `Generator`.
    """

    def __init__(self, widths: list[int], blocks: int, dtype: torch.dtype | None, recompute: bool) -> None:
        super().__init__()
        self.dtype, self.recompute = dtype, recompute
        self.stem = ConvBlock(3, widths[0], 7, norm="instance")
        self.downs = nn.ModuleList(ConvBlock(a, b, 4, 2, norm="instance") for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(widths[-1], "instance") for _ in range(blocks))

    def forward(self, images: Tensor, statistics: Statistics | None = None) -> Tensor:
        """`[n, 3, h, w]` -> the content, in the dtype of the images."""

        def at_full_resolution(x: Tensor) -> Tensor:
            return self.downs[0](self.stem(x, statistics), statistics)  # type: ignore[no-any-return]

        x = _passed(at_full_resolution, images.to(self.dtype or images.dtype), recompute=self.recompute)
        for layer in (*self.downs[1:], *self.blocks):
            x = layer(x, statistics)
        return x.to(images.dtype)


class StyleEncoder(nn.Module):
    """A 7x7 convolution, strided ones, the mean over all pixels, and a dense layer; nothing is normalised.

    Instance normalisation would take away the means and variances of features, in which the style lies.

    Args:
        widths: Channels at full resolution and behind each halving.
        style_size: Dimensions of a style.
        dtype: As for `Generator`.
        recompute: As for `Generator`.
    """

    def __init__(self, widths: list[int], style_size: int, dtype: torch.dtype | None, recompute: bool) -> None:
        super().__init__()
        self.dtype, self.recompute, self.halvings = dtype, recompute, len(widths) - 1
        self.stem = ConvBlock(3, widths[0], 7)
        self.downs = nn.ModuleList(ConvBlock(a, b, 4, 2) for a, b in pairwise(widths))
        self.output = Dense(widths[-1], style_size)

    def forward(self, images: Tensor) -> Tensor:
        """`[n, 3, h, w]` -> `[n, style_size]`, in the dtype of the images."""

        def at_full_resolution(x: Tensor) -> Tensor:
            return self.downs[0](self.stem(x))  # type: ignore[no-any-return]

        x = _passed(at_full_resolution, images.to(self.dtype or images.dtype), recompute=self.recompute)
        for layer in self.downs[1:]:
            x = layer(x)
        style: Tensor = self.output(x.mean((2, 3), dtype=images.dtype))
        return style


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
    ) -> None:
        super().__init__()
        self.dtype, self.recompute, self.channels = dtype, recompute, channels
        layers = (Dense(style_size, features, True), Dense(features, features, True))
        self.mapping = nn.Sequential(*layers, Dense(features, blocks * 4 * channels))
        self.blocks = nn.ModuleList(ResidualBlock(channels, "adaptive") for _ in range(blocks))
        widths = [channels >> level for level in range(ups + 1)]
        self.ups = nn.ModuleList(ConvBlock(a, b, 5, norm="layer") for a, b in pairwise(widths))
        self.output = Conv2d(widths[-1], 3, 7)

    def forward(self, content: Tensor, style: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Content and `[n, style_size]` -> `[n, 3, h, w]` in [-1, 1], in the dtype of the content."""

        def at_full_resolution(x: Tensor) -> Tensor:
            x = self.ups[-1](doubled(x), statistics)
            return self._colours(x, content.dtype)

        x = content.to(self.dtype or content.dtype)
        # For each block and each of its two layers, the shifts of all channels and then their factors.
        affine = self.mapping(style).reshape(len(style), len(self.blocks), 2, 2, self.channels)
        for block, own in zip(self.blocks, affine.unbind(1), strict=True):
            x = block(x, statistics, own)
        for layer in self.ups[:-1]:
            x = layer(doubled(x), statistics)
        return _passed(at_full_resolution, x, recompute=self.recompute)

    def _colours(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        y, factor = self.output(x)
        factor = None if factor is None else factor.to(dtype).expand(len(y), -1)
        return epilogue(y.to(dtype), factor, b=self.output.bias.to(dtype), act="linear").tanh()


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


def _check_images(images: Tensor, multiple: int, least: int) -> None:
    least = max(least, 4)  # the first kernel reaches three pixels across the edge
    sides = images.shape[2:]
    if images.ndim != 4 or images.shape[1] != 3 or any(side % multiple or side < least for side in sides):
        raise ValueError(
            f"images are {list(images.shape)}; [n, 3, h, w] is allowed, with h and w of at least {least} and multiples "
            f"of {multiple}: crop or resize them"
        )


def _check_content(content: Tensor, style: Tensor, channels: int, style_size: int) -> None:
    if content.ndim != 4 or content.shape[1] != channels or min(content.shape[2:]) < 2:
        raise ValueError(
            f"content is {list(content.shape)}; [n, {channels}, h, w] is allowed, with h and w of at least 2"
        )
    if tuple(style.shape) != (len(content), style_size):
        raise ValueError(f"style is {list(style.shape)}; [{len(content)}, {style_size}] is allowed")
