"""StyleGAN's networks (Karras et al. 2019, "A Style-Based Generator Architecture for GANs", configuration F).

They grow as Progressive GAN's do, from 8x8 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hires_gan.networks.blending import blended
from hires_gan.networks.growth import Growth, Width, live_at, resolutions_to
from hires_gan.networks.layers import (
    FP16_CLAMP,
    EqualizedConv2d,
    EqualizedLinear,
    biased_lrelu,
    double_nearest,
    halve_box,
    minibatch_deviation,
)
from hires_gan.networks.mapping import MappingNetwork, check_labels
from hires_gan.networks.styles import ConstantNoise, StyleGenerator, check_images, check_styles
from hires_gan.ops import filter2d


def blur_filter() -> Tensor:
    """[1, 2, 1] in both directions, `[3, 3]` with a sum of 1; also where new tensors have no values (meta)."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    return torch.outer(taps, taps)


class Generator(StyleGenerator):
    """Latents to images, at any resolution up to the full one.

    Args:
        resolution: The full resolution, a power of two from 4 on.
        latent_size: Dimensions of a latent vector.
        w_size: Dimensions of the intermediate latent space W.
        classes: Number of classes; 0 for an unconditional generator.
        mapping_layers: Dense layers of the mapping network.
        width: Feature maps per resolution.
        dtypes: In which dtype each resolution computes; that of the latents where it has no entry.
    """

    synthesis: Synthesis

    def __init__(
        self,
        resolution: int,
        latent_size: int = 512,
        w_size: int = 512,
        classes: int = 0,
        mapping_layers: int = 8,
        width: Width | None = None,
        dtypes: Mapping[int, torch.dtype] | None = None,
    ) -> None:
        mapping = MappingNetwork(latent_size, w_size, classes, mapping_layers, family="stylegan")
        synthesis = Synthesis(resolution, w_size, width or Width(), dtypes or {})
        super().__init__(mapping, synthesis.num_ws, resolution)
        self.synthesis = synthesis

    @property
    def growth(self) -> Growth:
        """The growth that is used where none is given; at first the full resolution."""
        return self.synthesis.growth

    @growth.setter
    def growth(self, growth: Growth) -> None:
        self.synthesis.growth = growth

    def forward(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        truncation: float = 1.0,
        cutoff: int | None = None,
        growth: Growth | None = None,
    ) -> Tensor:
        """Generate images as `StyleGenerator.forward` does, at a growth, by default `self.growth`."""
        images: Tensor = self.synthesis(self.truncate(self.styles(latents, labels), truncation, cutoff), growth=growth)
        return images

    def live_ws(self, growth: Growth) -> int:
        """How many layers take a style at this growth; the styles of the others do nothing."""
        return 2 * len(growth.resolutions)

    def live_parameters(self, growth: Growth) -> list[str]:
        """The names of the parameters that an image at this growth depends on."""
        always = ("mapping.", "synthesis.constant")
        return live_at(self, growth, "synthesis.to_rgb", always, "synthesis.blocks")


class Synthesis(nn.Module):
    """Styles to images: a learned constant, and two layers for each resolution.

    Args:
        resolution: The full resolution.
        w_size: Dimensions of W.
        width: Feature maps per resolution.
        dtypes: In which dtype each resolution computes; that of the styles where it has no entry.

    Attributes:
        growth: The growth that is used where none is given; at first the full resolution.
        num_ws: How many layers take a style.
        noise: The constant noise.
        noise_shapes: Height and width of each layer's noise.
        noise_total: How many values all layers take together.
    """

    filter: Tensor

    def __init__(self, resolution: int, w_size: int, width: Width, dtypes: Mapping[int, torch.dtype]) -> None:
        super().__init__()
        sides = resolutions_to(resolution)
        self.growth = Growth(resolution)
        self.dtypes = dict(dtypes)
        self.w_size, self.num_ws = w_size, 2 * len(sides)
        self.constant = nn.Parameter(torch.ones(width.at(4), 4, 4))
        self.register_buffer("filter", blur_filter(), persistent=False)
        self.blocks = nn.ModuleDict({str(r): _SynthesisBlock(r, w_size, width) for r in sides})
        self.to_rgb = nn.ModuleDict({str(r): EqualizedConv2d(width.at(r), 3, 1, 1.0) for r in sides})
        self.noise = ConstantNoise(r for r in sides for _ in range(2))
        self.noise_shapes = self.noise.shapes
        self.noise_total = self.noise_total_at(resolution)

    def noise_total_at(self, resolution: int) -> int:
        """How many values the layers up to a resolution take together."""
        return self.noise.total_at(resolution)

    def split_noise(self, flat: Tensor) -> list[Tensor]:
        """`[n, total]` -> `[n, 1, h, w]` for each layer; for the first ones with a total of `noise_total_at`."""
        return self.noise.split(flat)

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None, growth: Growth | None = None) -> Tensor:
        """Make images.

        Args:
            ws: `[n, num_ws, w_size]`, a style for each layer, float32 or float64.
            noise: `[n or 1, 1, h, w]` for each layer, or those of this growth, as `noise_shapes` says; None for the
                constant noise.
            growth: How far the network has grown; by default `self.growth`.

        Returns:
            `[n, 3, r, r]` in about [-1, 1], in the dtype of `ws`.

        Raises:
            ValueError: If styles or noise have another shape.
        """
        growth = growth or self.growth
        check_styles(ws, self.num_ws, self.w_size)
        noises = self.noise.checked(noise, ws.shape[0], 2 * len(growth.resolutions), ws.dtype)
        x = before = self.constant.expand(ws.shape[0], -1, -1, -1)
        for level, r in enumerate(growth.resolutions):
            before = x
            layers = slice(2 * level, 2 * level + 2)
            x = x.to(self.dtypes.get(r, ws.dtype))
            x = self.blocks[str(r)](x, ws[:, layers].unbind(1), noises[layers], self.filter)
        image: Tensor = self.to_rgb[str(growth.resolution)](x).to(ws.dtype)
        if growth.fades:
            old = self.to_rgb[str(growth.resolution // 2)](before).to(ws.dtype)
            image = blended(double_nearest(old), image, growth.alpha)
        return image


class _SynthesisBlock(nn.Module):
    """At 4x4 the learned constant's layer, above it a doubling one; then another one."""

    def __init__(self, resolution: int, w_size: int, width: Width) -> None:
        super().__init__()
        maps = width.at(resolution)
        self.doubles = resolution > 4
        below = width.at(resolution // 2)
        self.convolutions = nn.ModuleList([EqualizedConv2d(maps, maps, 3, bias=False)])
        if self.doubles:
            self.convolutions.insert(0, EqualizedConv2d(below, maps, 3, resample="up", bias=False))
        self.styles = nn.ModuleList(_Style(w_size, maps) for _ in range(2))

    def forward(self, x: Tensor, ws: Sequence[Tensor], noises: Sequence[Tensor], f: Tensor) -> Tensor:
        first, second = self.styles
        if self.doubles:
            x = filter2d(self.convolutions[0](x), f)
        x = first(x, ws[0], noises[0])
        y: Tensor = second(self.convolutions[-1](x), ws[1], noises[1])
        return y


class _Style(nn.Module):
    """What follows a convolution: noise, bias, a leaky rectifier of slope 0.2, and adaptive instance normalisation."""

    def __init__(self, w_size: int, maps: int) -> None:
        super().__init__()
        self.noise_weight = nn.Parameter(torch.zeros(maps))
        self.bias = nn.Parameter(torch.zeros(maps))
        self.affine = EqualizedLinear(w_size, 2 * maps, gain=1.0)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        x = torch.addcmul(x, noise.to(x.dtype), self.noise_weight.to(x.dtype)[:, None, None])
        scale, shift = self.affine(w).chunk(2, 1)
        return adaptive_instance_norm(biased_lrelu(x, self.bias), scale, shift)


def adaptive_instance_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-8) -> Tensor:
    """Normalise each sample's feature maps, then scale and shift them (equation 1): `norm(x) * (scale + 1) + shift`.

    Args:
        x: `[n, c, h, w]`; the statistics are taken in float32 (float64 for float64).
        scale: `[n, c]`.
        shift: `[n, c]`.
        eps: Added to the variance.

    Returns:
        The same shape and dtype as `x`; in fp16 within plus and minus `FP16_CLAMP`, as the layers' other outputs.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean((2, 3), keepdim=True)  # the one large tensor that is kept for the backward pass
    factor = torch.rsqrt(centred.square().mean((2, 3)) + eps) * (scale + 1)
    styled = torch.addcmul(shift[:, :, None, None], centred, factor[:, :, None, None])
    return (styled.clamp(-FP16_CLAMP, FP16_CLAMP) if x.dtype == torch.float16 else styled).to(x.dtype)


class Discriminator(nn.Module):
    """Images, at any resolution up to the full one, to scores: Progressive GAN's, with a blur before each halving.

    Args:
        resolution: The full resolution, a power of two from 4 on.
        classes: Number of classes, each of which has a score of its own; 0 for one score.
        width: Feature maps per resolution.
        group: Samples that share one minibatch standard deviation.
        dtypes: In which dtype each resolution computes; that of the images where it has no entry.

    Attributes:
        growth: The growth that is used where none is given; at first the full resolution.
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
        sides, width = resolutions_to(resolution), width or Width()
        self.classes, self.group = classes, group
        self.dtypes = dict(dtypes or {})
        self.growth = Growth(resolution)
        self.register_buffer("filter", blur_filter(), persistent=False)
        self.from_rgb = nn.ModuleDict({str(r): EqualizedConv2d(3, width.at(r), 1, act="lrelu") for r in sides})
        self.blocks = nn.ModuleDict({str(r): _DiscriminatorBlock(width.at(r), width.at(r // 2)) for r in sides[1:]})
        self.convolution = EqualizedConv2d(width.at(4) + 1, width.at(4), 3, act="lrelu")
        self.dense = EqualizedLinear(width.at(4) * 16, width.at(2), act="lrelu")
        self.output = EqualizedLinear(width.at(2), max(1, classes), gain=1.0)

    def forward(self, images: Tensor, labels: Tensor | None = None, growth: Growth | None = None) -> Tensor:
        """Judge images.

        Args:
            images: `[n, 3, r, r]` in about [-1, 1], float32 or float64; n a whole number of groups.
            labels: int64 `[n]` in [0, classes), if the discriminator is conditional.
            growth: How far the network has grown; by default `self.growth`.

        Returns:
            Scores `[n]`, those of the labels' classes, in the dtype of the images; the higher, the more real.

        Raises:
            ValueError: If the images have another size, the batch is no whole number of groups, or labels are missing
                for a conditional discriminator or given to an unconditional one.
        """
        growth = growth or self.growth
        check_images(images, growth.resolution)
        check_labels(labels, self.classes)
        x = self._entry(images, growth.resolution)
        if growth.resolution > 4:
            x = self.blocks[str(growth.resolution)](x, self.filter)
        if growth.fades:
            old = self._entry(halve_box(images), growth.resolution // 2)
            x = blended(old, x.to(old.dtype), growth.alpha)
        for r in reversed(growth.resolutions[1:-1]):
            x = self.blocks[str(r)](x.to(self.dtypes.get(r, images.dtype)), self.filter)
        x = self.convolution(minibatch_deviation(x.to(images.dtype), self.group))
        scores: Tensor = self.output(self.dense(x.flatten(1)))
        return scores[:, 0] if labels is None else scores.gather(1, labels[:, None])[:, 0]

    def _entry(self, images: Tensor, resolution: int) -> Tensor:
        entry: Tensor = self.from_rgb[str(resolution)](images.to(self.dtypes.get(resolution, images.dtype)))
        return entry

    def live_parameters(self, growth: Growth) -> list[str]:
        """The names of the parameters that a score at this growth depends on."""
        return live_at(self, growth, "from_rgb", ("convolution.", "dense.", "output."))


class _DiscriminatorBlock(nn.Module):
    """A convolution, a blur, and another convolution that halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualizedConv2d(inputs, inputs, 3, act="lrelu")
        self.second = EqualizedConv2d(inputs, outputs, 3, resample="down", act="lrelu")

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        y: Tensor = self.second(filter2d(self.first(x), f))
        return y
