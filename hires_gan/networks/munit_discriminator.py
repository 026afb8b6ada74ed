"""MUNIT's discriminator: one network for each of several scales of an image (Huang et al. 2018, appendix B).

After Wang et al. 2018, "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", section 3.2.

When training goes coarse to fine, images at half the resolution go to the second network first, and so on: each network
always sees the resolution that it has learned.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.networks.munit_layers import Conv2d, ConvBlock, Level, check_level, halved

_DEVIATION = 0.02


class MultiScaleDiscriminator(nn.Module):
    """Images of one domain to maps of scores, at several scales.

    With the defaults these are the published networks, in which a score sees 46, 93 and 187 pixels, by scale. Another
    layer about doubles that, and another scale sees about twice as much as the last.

    Args:
        scales: How many discriminators there are, each one with weights of its own, and with images of half the size
            of those before.
        layers: Strided convolutions of each.
        base: Channels of the first; each further one doubles them.
        most: Channels are no more than this.
        spectral: Whether weights are divided by their largest singular values; `iterate_spectral_norm` is then to be
            called behind each optimizer step.
        dtype: In which convolutions compute; None for that of the images. Scores are computed in the latter.
        levels: How many levels below full resolution the network can work at, less than `scales`.

    Attributes:
        level: The level of the images when none is given; at first full resolution. Whoever loads weights that have
            not grown to the end sets it.

    Raises:
        ValueError: If there is no scale or no layer, or there are as many levels as scales.
    """

    def __init__(
        self,
        scales: int = 3,
        layers: int = 4,
        base: int = 64,
        most: int = 512,
        spectral: bool = False,
        dtype: torch.dtype | None = None,
        levels: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(scales, layers, levels)
        widths = [3, *(min(base << level, most) for level in range(layers))]
        self.layers, self.levels, self.level = layers, levels, Level()
        self.scales = nn.ModuleList(_PatchDiscriminator(widths, spectral, dtype) for _ in range(scales))

    def forward(self, images: Tensor, level: Level | None = None) -> list[Tensor]:
        """Judge images.

        Args:
            images: `[n, 3, h, w]` in about [-1, 1], float32 or float64; h and w at least `least_side` of the level.
            level: Of the images; None for `self.level`. Its alpha changes nothing: whoever calls fades the images and
                weighs the first of the scales.

        Returns:
            For each scale from the level's on `[n, 1, h', w']`, in the dtype of the images; the higher, the more real.
            h' is h, halved by each scale before (rounded up) and by each layer (rounded down).

        Raises:
            ValueError: If the images have another shape, or the network does not have the level.
        """
        level = self._at(level)
        self._check(images, level)
        first, *coarser = self.scales[level.number :]
        maps = [first(images)]
        for scale in coarser:
            images = self._reduced(images)
            maps.append(scale(images))
        return maps

    def _reduced(self, images: Tensor) -> Tensor:
        """The images of the next scale: pooled as published; where networks grow, as their images are reduced.

        At the start of a fade, images are those of the level before, doubled: halved, they are what that level saw.
        """
        if self.levels:
            return halved(images)
        return F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)

    def _check(self, images: Tensor, level: Level) -> None:
        least, multiple = self.least_side(level), 1
        if self.levels:
            multiple = 1 << (len(self.scales) - level.number - 1)
        sides = images.shape[2:]
        if images.ndim != 4 or images.shape[1] != 3 or any(side < least or side % multiple for side in sides):
            multiples = f" and multiples of {multiple}" if multiple > 1 else ""
            raise ValueError(
                f"images are {list(images.shape)}; [n, 3, h, w] is allowed, with h and w of at least "
                f"{least}{multiples}: take larger images, or fewer scales or layers"
            )

    def least_side(self, level: Level | None = None) -> int:
        """The least height and width: of the last scale's images, the last layer gets two pixels to reflect."""
        side: int = 1 << self.layers
        for _ in range(len(self.scales) - self._at(level).number - 1):
            side = 2 * side - (0 if self.levels else 1)
        return side

    def live_parameters(self, level: Level | None = None) -> list[str]:
        """The names of the parameters that the scores at a level depend on."""
        dead = tuple(f"scales.{number}." for number in range(self._at(level).number))
        return [name for name, _ in self.named_parameters() if not name.startswith(dead)]

    def iterate_spectral_norm(self) -> None:
        """One power iteration of each weight's spectral normalisation, in place; nothing without one.

        At any level of all of them: where a weight stands still, its vectors only get nearer to what they stand for.
        """
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.iterate_spectral_norm()

    def _at(self, level: Level | None) -> Level:
        level = level or self.level
        check_level(level, self.levels)
        return level


def _check_sizes(scales: int, layers: int, levels: int) -> None:
    for name, value in (("scales", scales), ("layers", layers)):
        if value < 1:
            raise ValueError(f"{name} is {value}; 1 or more is allowed")
    if not 0 <= levels < scales:
        raise ValueError(
            f"levels is {levels}, and scales is {scales}; 0 to {scales - 1} is allowed: choose fewer levels or more "
            "scales"
        )


class _PatchDiscriminator(nn.Module):
    """Strided convolutions with leaky rectifiers, nothing normalised, and a score for each pixel of what is left."""

    def __init__(self, widths: list[int], spectral: bool, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.blocks = nn.ModuleList(
            ConvBlock(a, b, 4, 2, act="lrelu", deviation=_DEVIATION, spectral=spectral) for a, b in pairwise(widths)
        )
        self.output = ConvBlock(widths[-1], 1, 1, act="linear", deviation=_DEVIATION, spectral=spectral)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.dtype or images.dtype)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.output(x.to(images.dtype))
        return scores
