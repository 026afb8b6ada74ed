"""What the tests of metrics of pairs share: small networks with random weights, and distances with known answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hires_gan.networks import progressive, stylegan, stylegan2
from hires_gan.networks.alexnet import AlexNetFeatures
from hires_gan.networks.growth import Width
from hires_gan.networks.mapping import MappingNetwork
from hires_gan.networks.styles import StyleGenerator
from hires_gan.networks.vgg import VGG16Features

LATENT = 8
WIDTH = Width(32, 8)
FAMILIES = ("progressive", "stylegan", "stylegan2")
HALF = {16: torch.bfloat16, 8: torch.bfloat16}


def squared(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 for each pair."""
    return (a.double() - b.double()).square().sum((1, 2, 3))


def generator(
    family: str, classes: int = 0, dtypes: dict[int, torch.dtype] | None = None, clamp: float | None = None
) -> nn.Module:
    """A generator of 16x16, whose layers take noise."""
    torch.manual_seed(0)
    if family == "progressive":
        network: nn.Module = progressive.Generator(16, LATENT, classes, WIDTH, dtypes)
    elif family == "stylegan":
        network = stylegan.Generator(16, LATENT, 6, classes, 2, WIDTH, dtypes)
    else:
        network = stylegan2.Generator(16, LATENT, 6, classes, 2, WIDTH, dtypes, clamp)
    for name, parameter in network.named_parameters():
        if "noise" in name:
            nn.init.normal_(parameter)
    return network.eval().requires_grad_(False)


class LinearGenerator(StyleGenerator):
    """Images that are a matrix times w, in float64; the mapping is one dense layer."""

    def __init__(self, matrix: Tensor) -> None:
        size = matrix.shape[1]
        super().__init__(MappingNetwork(size, size, layers=1, act="linear"), 2, 8)
        self.synthesis = LinearSynthesis(matrix)
        self.double().eval().requires_grad_(False)


class LinearSynthesis(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, ws: Tensor) -> Tensor:
        return (ws[:, 0] @ self.matrix.T).reshape(-1, 3, 8, 8)


def scaled_weights(network: nn.Module) -> dict[str, Tensor]:
    """Random weights for the convolutions of a network, with He's gain and small biases."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in network.state_dict().items():
        deviation = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1
        weights[f"features.{name}"] = torch.randn(tensor.shape, generator=random) * deviation
    return weights


def alexnet_weights() -> dict[str, Tensor]:
    from torchvision.models import alexnet

    return scaled_weights(alexnet(weights=None).features)


def random_alexnet() -> AlexNetFeatures:
    return AlexNetFeatures(alexnet_weights())


def random_vgg() -> VGG16Features:
    from torchvision.models import vgg16

    with torch.device("meta"):  # its dense layers are 0.5 GB
        features = vgg16(weights=None).features
    return VGG16Features(scaled_weights(features))


def random_heads(channels: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(count, generator=torch.Generator().manual_seed(count)) for count in channels]


def noise_images(count: int, side: int, seed: int = 0) -> Tensor:
    """`[count, 3, side, side]` in [-1, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
