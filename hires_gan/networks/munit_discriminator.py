"""MUNIT's discriminator: one network for each of several scales of an image (Huang et al. 2018, appendix B).

After Wang et al. 2018, "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", section 3.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.networks.munit_layers import Conv2d, ConvBlock

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

    Raises:
        ValueError: If there is no scale or no layer.
    """

    def __init__(
        self,
        scales: int = 3,
        layers: int = 4,
        base: int = 64,
        most: int = 512,
        spectral: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("scales", scales), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; 1 or more is allowed")
        widths = [3, *(min(base << level, most) for level in range(layers))]
        self.layers = layers
        self.scales = nn.ModuleList(_PatchDiscriminator(widths, spectral, dtype) for _ in range(scales))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Judge images.

        Args:
            images: `[n, 3, h, w]` in about [-1, 1], float32 or float64; h and w at least `least_side`.

        Returns:
            For each scale `[n, 1, h', w']`, in the dtype of the images; the higher, the more real. h' is h, halved by
            each scale before (rounded up) and by each layer (rounded down).

        Raises:
            ValueError: If the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.least_side:
            raise ValueError(
                f"images are {list(images.shape)}; [n, 3, h, w] is allowed, with h and w of at least "
                f"{self.least_side}: take larger images, or fewer scales or layers"
            )
        maps = [self.scales[0](images)]
        for scale in self.scales[1:]:
            images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
            maps.append(scale(images))
        return maps

    @property
    def least_side(self) -> int:
        """The least height and width: of the last scale's images, the last layer gets two pixels to reflect."""
        side: int = 1 << self.layers
        for _ in range(len(self.scales) - 1):
            side = 2 * side - 1
        return side

    def iterate_spectral_norm(self) -> None:
        """One power iteration of each weight's spectral normalisation, in place; nothing without one."""
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.iterate_spectral_norm()


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
