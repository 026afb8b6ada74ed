"""StyleGAN2's networks (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN").

The generator sums the images of all resolutions (its "skip" form), the discriminator is residual: configurations E and
F of the paper's table 1, which differ in width. Conditioning is that of "Training Generative Adversarial Networks with
Limited Data" (Karras et al. 2020): embedded classes, and a projection discriminator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from hires_gan.networks.growth import Width, resolutions_to
from hires_gan.networks.layers import LRELU_GAIN, EqualizedLinear, minibatch_deviation
from hires_gan.networks.mapping import MappingNetwork, check_labels
from hires_gan.networks.modulation import HALF, HALF_CLAMP, Form, modulated_conv2d
from hires_gan.networks.styles import ConstantNoise, StyleGenerator, check_images, check_styles
from hires_gan.ops import bias_act, conv2d_resample, upsample2d

CONFIG_F = Width(base=16384)
"""Feature maps of configuration F; Width(base=8192) is configuration E, with half as many from 64x64 on."""

Architecture = Literal["resnet", "orig"]


def resampling_filter() -> Tensor:
    """[1, 3, 3, 1] along both axes, `[4]` with a sum of 1; also where new tensors have no values (meta)."""
    return torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


class Generator(StyleGenerator):
    """Latents to images.

    Args:
        resolution: Of the images, a power of two from 4 on.
        latent_size: Dimensions of a latent vector.
        w_size: Dimensions of the intermediate latent space W.
        classes: Number of classes; 0 for an unconditional generator.
        mapping_layers: Dense layers of the mapping network.
        width: Feature maps per resolution; by default configuration F's.
        dtypes: In which dtype each resolution computes; that of the latents where it has no entry.
        clamp: Convolutional layers' outputs are kept within plus and minus this; None for 256 if a resolution
            computes in half precision, else for no limit.
        form: How convolutions are modulated; see `modulated_conv2d`.
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
        clamp: float | None = None,
        form: Form = "scaled",
    ) -> None:
        mapping = MappingNetwork(latent_size, w_size, classes, mapping_layers)
        synthesis = Synthesis(resolution, w_size, width or CONFIG_F, dtypes or {}, clamp, form)
        super().__init__(mapping, synthesis.num_ws, resolution)
        self.synthesis = synthesis


class Synthesis(nn.Module):
    """Styles to images: a learned constant, modulated convolutions, and the images of all resolutions summed.

    Args:
        resolution: Of the images, a power of two from 4 on.
        w_size: Dimensions of W.
        width: Feature maps per resolution.
        dtypes: In which dtype each resolution computes; that of the styles where it has no entry. The image is summed
            in the dtype of the styles.
        clamp: As for `Generator`.
        form: As for `Generator`.

    Attributes:
        num_ws: How many layers take a style; the layer that makes an image shares that of the next resolution.
        noise: The constant noise.
        noise_shapes: Height and width of each layer's noise.
        noise_total: How many values all layers take together.
    """

    filter: Tensor

    def __init__(
        self,
        resolution: int,
        w_size: int,
        width: Width,
        dtypes: Mapping[int, torch.dtype],
        clamp: float | None = None,
        form: Form = "scaled",
    ) -> None:
        super().__init__()
        sides = resolutions_to(resolution)
        clamp = limit(clamp, dtypes)
        self.dtypes = dict(dtypes)
        self.w_size, self.num_ws = w_size, 2 * len(sides)
        self.constant = nn.Parameter(torch.randn(width.at(4), 4, 4))
        self.register_buffer("filter", resampling_filter(), persistent=False)
        self.blocks = nn.ModuleDict({str(r): _SynthesisBlock(r, w_size, width, clamp, form) for r in sides})
        self.noise = ConstantNoise([sides[0], *(r for r in sides[1:] for _ in range(2))])
        self.noise_shapes = self.noise.shapes
        self.noise_total = self.noise.total_at(resolution)

    def split_noise(self, flat: Tensor) -> list[Tensor]:
        """`[n, noise_total]` -> `[n, 1, h, w]` for each layer."""
        return self.noise.split(flat)

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Make images.

        Args:
            ws: `[n, num_ws, w_size]`, a style for each layer, float32 or float64.
            noise: `[n or 1, 1, h, w]` for each layer, as `noise_shapes` says; None for the constant noise.

        Returns:
            `[n, 3, r, r]` in about [-1, 1], in the dtype of `ws`.

        Raises:
            ValueError: If styles or noise have another shape.
        """
        check_styles(ws, self.num_ws, self.w_size)
        noises = self.noise.checked(noise, ws.shape[0], len(self.noise_shapes), ws.dtype)
        x = self.constant.expand(ws.shape[0], -1, -1, -1)
        image: Tensor | None = None
        first = 0
        for r, block in self.blocks.items():
            layers = 1 if r == "4" else 2
            styles = ws[:, first : first + layers + 1].unbind(1)
            x = x.to(self.dtypes.get(int(r), ws.dtype))
            x, rgb = block(x, styles, noises[first : first + layers], self.filter)
            image = rgb.to(ws.dtype) if image is None else upsample2d(image, self.filter) + rgb.to(ws.dtype)
            first += layers
        assert image is not None
        return image


class _SynthesisBlock(nn.Module):
    """At 4x4 one layer, above it a doubling layer and another one; and the layer that makes an image of them."""

    def __init__(self, resolution: int, w_size: int, width: Width, clamp: float | None, form: Form) -> None:
        super().__init__()
        maps = width.at(resolution)
        layers = [_SynthesisLayer(w_size, maps, maps, 1, clamp, form)]
        if resolution > 4:
            layers.insert(0, _SynthesisLayer(w_size, width.at(resolution // 2), maps, 2, clamp, form))
        self.layers = nn.ModuleList(layers)
        self.to_rgb = _ToRGB(w_size, maps, clamp, form)

    def forward(
        self, x: Tensor, styles: Sequence[Tensor], noises: Sequence[Tensor], f: Tensor
    ) -> tuple[Tensor, Tensor]:
        for layer, w, noise in zip(self.layers, styles[:-1], noises, strict=True):
            x = layer(x, w, noise, f)
        rgb: Tensor = self.to_rgb(x, styles[-1])
        return x, rgb


class _SynthesisLayer(nn.Module):
    """A modulated and demodulated 3x3 convolution, noise, bias, and a leaky rectifier.

    Weights have no gain at run time: demodulation would divide by it.
    """

    def __init__(self, w_size: int, inputs: int, outputs: int, up: int, clamp: float | None, form: Form) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_size, inputs, gain=1.0, initial_bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up, self.clamp, self.form = up, clamp, form

    def forward(self, x: Tensor, w: Tensor, noise: Tensor, f: Tensor) -> Tensor:
        return modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            up=self.up,
            f=f,
            noise=noise,
            noise_strength=self.noise_strength,
            bias=self.bias,
            gain=LRELU_GAIN,
            clamp=self.clamp,
            form=self.form,
        )


class _ToRGB(nn.Module):
    """A modulated 1x1 convolution to three channels, without demodulation."""

    def __init__(self, w_size: int, inputs: int, clamp: float | None, form: Form) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_size, inputs, gain=1.0, initial_bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.scale = 1 / math.sqrt(inputs)
        self.clamp, self.form = clamp, form

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.scale
        return modulated_conv2d(
            x,
            self.weight,
            styles,
            demodulate=False,
            bias=self.bias,
            act="linear",
            clamp=self.clamp,
            form=self.form,
        )


class Discriminator(nn.Module):
    """Images to scores; with classes, how well an image fits its class (Miyato and Koyama 2018).

    Args:
        resolution: Of the images, a power of two from 4 on.
        classes: Number of classes; 0 for an unconditional discriminator.
        width: Feature maps per resolution; by default configuration F's.
        group: Samples that share one minibatch standard deviation.
        architecture: "resnet": residual blocks; "orig": plain ones.
        mapping_layers: Dense layers through which the classes go.
        dtypes: In which dtype each resolution computes; that of the images where it has no entry.
        clamp: As for `Generator`.
    """

    def __init__(
        self,
        resolution: int,
        classes: int = 0,
        width: Width | None = None,
        group: int = 4,
        architecture: Architecture = "resnet",
        mapping_layers: int = 8,
        dtypes: Mapping[int, torch.dtype] | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        sides, width = resolutions_to(resolution)[::-1], width or CONFIG_F
        clamp = limit(clamp, dtypes or {})
        self.resolution, self.classes, self.group = resolution, classes, group
        self.dtypes = dict(dtypes or {})
        self.register_buffer("filter", resampling_filter(), persistent=False)
        self.from_rgb = FilteredConv2d(3, width.at(resolution), 1, clamp=clamp)
        self.blocks = nn.ModuleDict(
            {
                str(r): _DiscriminatorBlock(width.at(r), width.at(below), architecture == "resnet", clamp)
                for r, below in pairwise(sides)
            }
        )
        maps = width.at(4)
        self.convolution = FilteredConv2d(maps + 1, maps, 3, clamp=clamp)
        self.dense = EqualizedLinear(maps * 16, maps, gain=1.0, act="lrelu", act_gain=LRELU_GAIN)
        self.output = EqualizedLinear(maps, maps if classes else 1, gain=1.0)
        self.mapping = MappingNetwork(0, maps, classes, mapping_layers) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            images: `[n, 3, r, r]` in about [-1, 1], float32 or float64; n a whole number of groups.
            labels: int64 `[n]` in [0, classes), if the discriminator is conditional.

        Returns:
            Scores `[n]`, in the dtype of the images; the higher, the more real.

        Raises:
            ValueError: If the images have another size, the batch is no whole number of groups, or labels are missing
                for a conditional discriminator or given to an unconditional one.
        """
        check_images(images, self.resolution)
        check_labels(labels, self.classes)
        x = self.from_rgb(images.to(self.dtypes.get(self.resolution, images.dtype)), self.filter)
        for r, block in self.blocks.items():
            x = block(x.to(self.dtypes.get(int(r), images.dtype)), self.filter)
        x = minibatch_deviation(x.to(images.dtype), self.group)
        features: Tensor = self.output(self.dense(self.convolution(x, self.filter).flatten(1)))
        if self.mapping is None:
            return features[:, 0]
        mapped: Tensor = self.mapping(None, labels).to(features.dtype)
        return (features * mapped).sum(1) / math.sqrt(mapped.shape[1])

    def layers_from_image(self) -> list[list[str]]:
        """The names of the parameters of the convolutional layers, from the image on, as Freeze-D counts them.

        The first layer reads colours; then come, for each residual block, its two convolutions and its shortcut.
        """
        blocks = [f"blocks.{r}.{name}." for r, block in self.blocks.items() for name, _ in block.named_children()]
        names = [name for name, _ in self.named_parameters()]
        return [[name for name in names if name.startswith(layer)] for layer in ["from_rgb.", *blocks]]


class _DiscriminatorBlock(nn.Module):
    """A convolution, and another one that halves the resolution; with a shortcut, if it is residual.

    Both branches of a residual block are multiplied by sqrt(1/2), which keeps the power of their sum.
    """

    def __init__(self, inputs: int, outputs: int, residual: bool, clamp: float | None) -> None:
        super().__init__()
        gain = math.sqrt(0.5) if residual else 1.0
        self.first = FilteredConv2d(inputs, inputs, 3, clamp=clamp)
        self.second = FilteredConv2d(inputs, outputs, 3, down=2, gain=gain, clamp=clamp)
        if residual:
            self.shortcut = FilteredConv2d(inputs, outputs, 1, down=2, bias=False, act="linear", gain=gain, clamp=clamp)
        self.residual = residual

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x, f), f)
        return y + self.shortcut(x, f) if self.residual else y


class FilteredConv2d(nn.Module):
    """A convolution with equalized learning rate, behind a filter where it reduces the resolution.

    Args:
        inputs: Channels of the input `[n, inputs, h, w]`.
        outputs: Channels of the output.
        kernel: Side of the kernel, odd.
        down: Factor of the reduction.
        bias: Whether there is a bias, initially 0.
        act: "linear", or "lrelu" behind the bias, with a gain of sqrt(2).
        gain: What comes out is multiplied by this.
        clamp: What comes out is kept within plus and minus this, times the gain; None for no limit.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        down: int = 1,
        bias: bool = True,
        act: str = "lrelu",
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel * kernel)
        self.down, self.padding, self.act = down, kernel // 2, act
        self.gain = gain * (LRELU_GAIN if act == "lrelu" else 1.0)
        self.clamp = None if clamp is None else clamp * gain

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        """`[n, inputs, h, w]` -> `[n, outputs, h / down, w / down]`, in the dtype of `x`; `f` filters a reduction."""
        weight = (self.weight * self.scale).to(x.dtype)
        x = conv2d_resample(x, weight, f, down=self.down, padding=self.padding)
        bias = None if self.bias is None else self.bias.to(torch.promote_types(x.dtype, torch.float32))
        return bias_act(x, bias, act=self.act, gain=self.gain, clamp=self.clamp)


def limit(clamp: float | None, dtypes: Mapping[int, torch.dtype]) -> float | None:
    """The clamp of all layers: what is given, else 256 if any resolution computes in half precision.

    All layers, since one in float32 may come before one in half precision, which its output has to fit.
    """
    return HALF_CLAMP if clamp is None and any(dtype in HALF for dtype in dtypes.values()) else clamp
