"""How far an image is from a target: LPIPS, VGG16's features, or pixels and frequencies where there are no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hires_gan.errors import UsageError
from hires_gan.inference.features import OPTIONS, load_lpips, lpips_file
from hires_gan.networks.layers import halve_box
from hires_gan.networks.vgg import VGG16Features, cached_vgg, download_vgg, load_vgg
from hires_gan.progress import say

Kind = Literal["auto", "lpips", "vgg", "pixel"]
Distance = Callable[[Tensor], Tensor]
"""From images `[n, 3, r, r]` in [-1, 1] to how far each is from the target: `[n]`, differentiable."""

_FEATURES_SIDE = 256
"""Larger images are reduced before their features are compared (Karras et al. 2020, appendix D)."""
_LEAST_SIDE = 16
_LEAST_LEVEL = 8
_EPS = 1e-10


@dataclass(frozen=True)
class DistanceOptions:
    """Which distance is wanted, and where its weights come from.

    Attributes:
        kind: auto takes the best one whose weights are at hand.
        weights: torchvision's file of VGG16's weights; None for torch hub's cache.
        download: Whether they may be fetched if they are not there.
    """

    kind: Kind = "auto"
    weights: Path | None = None
    download: bool = False


class PixelDistance:
    """Absolute and squared differences of pixels, at all scales, and of the magnitudes of frequencies.

    The mean over the image and its halvings down to 8x8 of mean |d| + mean d^2, plus the mean difference of the
    magnitudes of the orthonormal Fourier transform, which says how much fine structure there is where its place is
    unsure.

    Args:
        target: `[1, 3, r, r]` in [-1, 1].
    """

    def __init__(self, target: Tensor) -> None:
        self._levels = _pyramid(target)
        self._magnitudes = torch.fft.rfft2(target, norm="ortho").abs()

    def __call__(self, images: Tensor) -> Tensor:
        """How far images `[n, 3, r, r]` are from the target: `[n]`."""
        levels = _pyramid(images)
        differences = [a - b for a, b in zip(levels, self._levels, strict=True)]
        pixels = torch.stack([(d.abs() + d.square()).mean((1, 2, 3)) for d in differences]).mean(0)
        magnitudes = torch.fft.rfft2(images, norm="ortho").abs()
        frequencies: Tensor = (magnitudes - self._magnitudes).abs().mean((1, 2, 3))
        return pixels + frequencies


class FeatureDistance:
    """Squared differences of VGG16's features, each normalised over its channels.

    With weights for the channels, it is LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as
    a Perceptual Metric", version 0.1); without, every channel counts the same, and resolutions are averaged.

    Args:
        target: `[1, 3, r, r]` in [-1, 1].
        vgg: Gives the features, on the target's device.
        weights: `[c]` for each resolution of the features, or None.
    """

    def __init__(self, target: Tensor, vgg: VGG16Features, weights: Sequence[Tensor] | None) -> None:
        self._vgg = vgg
        self._weights = None if weights is None else [weight[:, None, None].to(target) for weight in weights]
        with torch.no_grad():
            self._target = self._features(target)

    def __call__(self, images: Tensor) -> Tensor:
        """How far images `[n, 3, r, r]` are from the target: `[n]`."""
        squares = [(a - b).square() for a, b in zip(self._features(images), self._target, strict=True)]
        if self._weights is None:
            return torch.stack([square.sum(1).mean((1, 2)) for square in squares]).mean(0)
        weighted = [(square * w).sum(1).mean((1, 2)) for square, w in zip(squares, self._weights, strict=True)]
        return torch.stack(weighted).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        while images.shape[-1] > _FEATURES_SIDE:
            images = halve_box(images)
        while images.shape[-1] < _LEAST_SIDE:  # VGG16 halves four times
            images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        found = self._vgg(images)
        return [F.normalize(x, dim=1, eps=_EPS) for x in found]


def _pyramid(images: Tensor) -> list[Tensor]:
    """The images and their halvings, down to 8x8."""
    levels = [images]
    while levels[-1].shape[-1] > _LEAST_LEVEL:
        levels.append(halve_box(levels[-1]))
    return levels


def choose_kind(wanted: DistanceOptions) -> tuple[Kind, Path | None]:
    """Which distance it will be, and where VGG16's weights are for it; said, with how to get a better one.

    Raises:
        UsageError: If what is asked for is not at hand, or an option has no use.
        Failure: If a download fails.
    """
    if wanted.kind == "pixel":
        if wanted.weights is not None or wanted.download:
            option = "--download" if wanted.download else "--weights"
            raise UsageError(f"{option} is given, but --distance pixel needs no weights; leave one of them out")
        say("distance: pixels and frequencies")
        return "pixel", None
    path = _vgg_file(wanted)
    if path is None:
        say(f"distance: pixels and frequencies. LPIPS follows the eye better: {OPTIONS.remedy('VGG16')} (528 MB)")
        return "pixel", None
    if wanted.kind != "vgg" and lpips_file() is not None:
        say("distance: LPIPS")
        return "lpips", path
    missing = "the weights of its last layers are not installed; install torchmetrics (the extra `metrics`)"
    if wanted.kind == "lpips":
        raise UsageError(f"--distance is lpips, but {missing}, or give --distance vgg")
    say("distance: VGG16's features" + (f". For LPIPS, {missing}" if wanted.kind == "auto" else ""))
    return "vgg", path


def _vgg_file(wanted: DistanceOptions) -> Path | None:
    """Where VGG16's weights are; None if they are not at hand and need not be."""
    if wanted.weights is not None:
        if wanted.download:
            raise UsageError("--weights and --download are both given; one of them is enough")
        return wanted.weights
    path = download_vgg(OPTIONS) if wanted.download else cached_vgg()
    if path.is_file():
        return path
    if wanted.kind != "auto":
        raise UsageError(
            f"--distance is {wanted.kind}, but there are no VGG16 weights in {path}; {OPTIONS.remedy('VGG16')}"
        )
    return None


def make_distance(kind: Kind, target: Tensor, weights: Path | None) -> Distance:
    """The distance from a target.

    Args:
        kind: As `choose_kind` gave it.
        target: `[1, 3, r, r]` in [-1, 1], on the device that computes.
        weights: VGG16's, as `choose_kind` gave it.

    Raises:
        UsageError: If a file is not the published one.
    """
    if kind == "pixel" or weights is None:
        return PixelDistance(target)
    vgg = load_vgg(weights, OPTIONS).to(target.device, target.dtype)
    linear = lpips_file() if kind == "lpips" else None
    return FeatureDistance(target, vgg, None if linear is None else load_lpips(linear))
