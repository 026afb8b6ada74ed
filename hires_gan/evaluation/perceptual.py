"""LPIPS between pairs of images, and the rules that all metrics of pairs here share.

Images larger than 256x256 are reduced to it by box averages before features are taken, so that a model of 1024x1024
has numbers like the published ones; images that are smaller than a network takes are enlarged by nearest neighbour.
Nothing is quantised. Images go through networks in batches of a fixed size, the last one filled up, in float32 that is
not TF32: the value of a sample does not depend on which others are asked for, nor on who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.errors import UsageError
from hires_gan.inference.features import Backbone, load_lpips, lpips_file
from hires_gan.networks.alexnet import AlexNetFeatures, obtain_alexnet
from hires_gan.networks.layers import halve_box
from hires_gan.networks.published import OptionNames
from hires_gan.networks.vgg import VGG16Features, obtain_vgg

PairDistance = Callable[[Tensor, Tensor], Tensor]
"""From images `[n, 3, r, r]` in [-1, 1] and as many others, on the same device, to how far apart they are: `[n]`."""

FEATURES_SIDE = 256
"""Larger images are reduced to this: so path lengths are published, and 256 is the side of translations that are."""

_EPS = 1e-10
_PIXELS_AT_ONCE = 2**21
_MOST_AT_ONCE = 16


def at_once(resolution: int) -> int:
    """How many images pass through networks together: two of 1024x1024, 16 of 256x256 and below.

    What this takes beside the weights is bounded by what a generator's layers need for two images of 1024x1024 (one
    layer of StyleGAN2's last block: 2 x 128 MiB in float32), or VGG16's first ones for 16 of 256x256 (256 MiB each).
    """
    return min(_MOST_AT_ONCE, max(1, _PIXELS_AT_ONCE // resolution**2))


def equal_parts(rows: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Rows in parts of exactly `size`, the last filled up with its last row; and how many rows of a part count.

    A library's kernel, and with it the rounding, is chosen by the shape of what it is given.

    Args:
        rows: `[n, ...]`.
        size: At least 1.
    """
    for part in torch.split(rows, size) if len(rows) else ():
        missing = size - len(part)
        yield (torch.cat((part, part[-1:].expand(missing, *part.shape[1:]))) if missing else part), len(part)


def fitted(images: Tensor, least: int, most: int = FEATURES_SIDE) -> Tensor:
    """Images as a network takes them.

    Args:
        images: `[n, 3, r, r]`, r a power of two.
        least: Smaller ones are doubled by nearest neighbour until their side is at least this.
        most: Larger ones are halved by box averages until it is no more than this.
    """
    while images.shape[-1] > most:
        images = halve_box(images)
    while images.shape[-1] < least:
        images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return images


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it float32 is float32 and no TF32, whatever a run allows, and cuDNN chooses its algorithms by shape alone.

    cuDNN's benchmarking would let timing choose, and with it the last bits of a distance.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = False, False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, equation 1; version 0.1).

    At five layers, features are normalised over their channels; the squares of their differences are weighted by
    channel, summed over channels, averaged over places, and summed over layers.

    Args:
        features: VGG16's or AlexNet's.
        weights: `[c]` for each of its five layers.
    """

    def __init__(self, features: VGG16Features | AlexNetFeatures, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.features = features
        self.least = 16 if isinstance(features, VGG16Features) else 32
        self.layers = len(weights)
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight[:, None, None])

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """How far images are from others.

        Args:
            images: `[n, 3, r, r]` in [-1, 1], r a power of two.
            others: Likewise.

        Returns:
            float64 `[n]`, 0 for equal images.
        """
        pairs = zip(self._normalised(images), self._normalised(others), strict=True)
        found = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for number, (a, b) in enumerate(pairs):
            squares = (a - b).square() * self.get_buffer(f"weight{number}")
            found += squares.sum(1, dtype=torch.float64).mean((1, 2))
        return found

    def _normalised(self, images: Tensor) -> list[Tensor]:
        return [F.normalize(x, dim=1, eps=_EPS) for x in self.features(fitted(images, self.least))]


def open_lpips(
    backbone: Backbone, path: Path | None, download: bool, names: OptionNames, device: torch.device | str = "cpu"
) -> LPIPS:
    """LPIPS with the published weights.

    Args:
        backbone: "vgg" for path lengths, "alex" for the diversity of translations.
        path: torchvision's file of the backbone's weights; None for torch hub's cache.
        download: Whether the file may be fetched into the cache if it is not there.
        names: What these two options are called.
        device: Where it shall compute.

    Raises:
        UsageError: If there are no weights, or they are not the published ones.
        Failure: If a download fails.
    """
    heads = lpips_file(backbone)
    if heads is None:
        raise UsageError(
            "LPIPS needs the weights of its last layers, which come with torchmetrics, and that is not installed; "
            f"install the extra `metrics`{names.otherwise}"
        )
    obtain = obtain_vgg if backbone == "vgg" else obtain_alexnet
    return LPIPS(obtain(path, download, names), load_lpips(heads, backbone)).to(device)
