"""VGG16's features, from weights that are at hand or downloaded, and checked each time."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from hires_gan.networks.munit_layers import EPS, moments
from hires_gan.networks.published import OptionNames, PublishedWeights, published_tensors
from hires_gan.networks.published_features import PublishedFeatures

__all__ = [
    "CHANNELS",
    "LAYERS",
    "VGG_SHA256",
    "VGG_URL",
    "Layer",
    "OptionNames",
    "VGG16Features",
    "cached_vgg",
    "download_vgg",
    "instance_normalised",
    "load_vgg",
    "obtain_vgg",
    "perceptual_distance",
    "published_tensors",
]

VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
VGG_URL: str = VGG16_Weights.IMAGENET1K_V1.url

Layer = Literal["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""Where features are taken: behind the last rectifier of each resolution, the largest first."""

# Side by side: the maps of the convolutions of each resolution; after the last of them, features are taken.
_CONVOLUTIONS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CHANNELS = tuple(maps[-1] for maps in _CONVOLUTIONS)


class VGG16Features(PublishedFeatures):
    """The convolutional part of VGG16 (Simonyan and Zisserman 2015), with torchvision's names and weights.

    Args:
        weights: What `features.*` of torchvision's model holds; others are left alone.

    Raises:
        Failure: If one is missing or has another shape.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        layers: list[nn.Module] = []
        taken: list[int] = []
        channels = 3
        for maps in _CONVOLUTIONS:
            for count in maps:
                layers += [nn.Conv2d(channels, count, 3, padding=1), nn.ReLU()]
                channels = count
            taken.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        super().__init__("VGG16", nn.Sequential(*layers[:-1]), taken, weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of images, after the last rectifier of each resolution.

        Args:
            images: `[n, 3, h, w]` in [-1, 1], of 16x16 at least.

        Returns:
            Five tensors `[n, c, h / 2^i, w / 2^i]`, with c as `CHANNELS` says.
        """
        return list(self.maps(images))

    def features_at(self, images: Tensor, layer: Layer) -> Tensor:
        """Features of images at one layer; what is behind it is not computed.

        Args:
            images: `[n, 3, h, w]` in [-1, 1], of 2^i x 2^i at least, for number i of `LAYERS` from 0.
            layer: One of `LAYERS`.

        Returns:
            `[n, c, h / 2^i, w / 2^i]`.

        Raises:
            ValueError: If there is no such layer.
        """
        if layer not in LAYERS:
            raise ValueError(f"layer is {layer!r}; {', '.join(LAYERS)} are allowed")
        return next(islice(self.maps(images), LAYERS.index(layer), None))


def instance_normalised(features: Tensor, eps: float = EPS) -> Tensor:
    """Each channel of each sample to mean 0 and variance 1 over its pixels; no factors or shifts are learned.

    Args:
        features: `[n, c, h, w]`, of any floating dtype.
        eps: Added to variances, so that a constant channel becomes 0, and its gradient stays finite.

    Returns:
        `[n, c, h, w]` in float32 (float64 for float64).
    """
    mean, variance, _ = moments(features)
    scale = torch.rsqrt(variance + eps)
    return (features.to(mean.dtype) - mean[:, :, None, None]) * scale[:, :, None, None]


def perceptual_distance(a: Tensor, b: Tensor) -> Tensor:
    """The domain-invariant perceptual distance (Huang et al. 2018, section 5.1), from the features of one layer.

    The mean square of the differences of instance-normalised features, over channels and pixels: what the means and
    deviations of channels say, which is more of the domain than of the content, is left out.

    Args:
        a: `[n, c, h, w]`, of more than one pixel: normalisation would leave nothing of a single one.
        b: Likewise, of the same shape.

    Returns:
        `[n]`, one distance for each sample, in float32 (float64 for float64); differentiable in both.

    Raises:
        ValueError: If the shapes differ, or the maps have a single pixel.
    """
    if a.shape != b.shape:
        raise ValueError(f"a is of shape {list(a.shape)} and b of {list(b.shape)}; they have to be the same")
    if a.shape[2] * a.shape[3] == 1:
        raise ValueError(
            f"features are of shape {list(a.shape)}, and instance normalisation leaves nothing of a single pixel; "
            "take larger images, or an earlier layer"
        )
    return (instance_normalised(a) - instance_normalised(b)).square().mean((1, 2, 3))


def obtain_vgg(path: Path | None, download: bool, names: OptionNames) -> VGG16Features:
    """VGG16's features from a file, else from torch hub's cache, else from the network if that is allowed.

    Args:
        path: torchvision's file of the weights; None for torch hub's cache.
        download: Whether the file may be fetched into the cache if it is not there; without effect beside a path.
        names: What these two options are called.

    Returns:
        The network on the CPU, in float32.

    Raises:
        UsageError: If there are no weights, or they are not the published ones.
        Failure: If a download fails.
    """
    return VGG16Features(_published().obtain(path, download, names))


def cached_vgg() -> Path:
    """Where torch hub keeps torchvision's VGG16 weights, whether they are there or not."""
    return _published().cached()


def download_vgg(names: OptionNames) -> Path:
    """Fetch torchvision's VGG16 weights (528 MB) into torch hub's cache, if they are not there.

    Raises:
        Failure: If they cannot be had.
    """
    return _published().download(names)


def load_vgg(path: Path, names: OptionNames) -> VGG16Features:
    """VGG16's features with the weights of a file.

    Raises:
        UsageError: If it is not there, or is not torchvision's file.
    """
    return VGG16Features(_published().tensors(path, names))


def _published() -> PublishedWeights:
    return PublishedWeights("VGG16", VGG_URL, VGG_SHA256)
