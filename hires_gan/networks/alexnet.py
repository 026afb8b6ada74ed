"""AlexNet's features, from weights that are at hand or downloaded, and checked each time."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import AlexNet_Weights

from hires_gan.networks.published import OptionNames, PublishedWeights
from hires_gan.networks.published_features import PublishedFeatures

ALEXNET_SHA256 = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
ALEXNET_URL: str = AlexNet_Weights.IMAGENET1K_V1.url

CHANNELS = (64, 192, 384, 256, 256)
"""Of the features: behind each of the five rectifiers."""
_TAKEN = (1, 4, 7, 9, 11)


class AlexNetFeatures(PublishedFeatures):
    """The convolutional part of AlexNet (Krizhevsky 2014, one column), with torchvision's names and weights.

    Args:
        weights: What `features.*` of torchvision's model holds; others are left alone.

    Raises:
        Failure: If one is missing or has another shape.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        super().__init__("AlexNet", features, _TAKEN, weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of images, behind each rectifier.

        Args:
            images: `[n, 3, h, w]` in [-1, 1], of 31x31 at least.

        Returns:
            Five tensors `[n, c, h', w']`, with c as `CHANNELS` says.
        """
        return list(self.maps(images))


def obtain_alexnet(path: Path | None, download: bool, names: OptionNames) -> AlexNetFeatures:
    """AlexNet's features from a file, else from torch hub's cache, else from the network if that is allowed.

    Args:
        path: torchvision's file of the weights (233 MB); None for torch hub's cache.
        download: Whether the file may be fetched into the cache if it is not there; without effect beside a path.
        names: What these two options are called.

    Returns:
        The network on the CPU, in float32.

    Raises:
        UsageError: If there are no weights, or they are not the published ones.
        Failure: If a download fails.
    """
    published = PublishedWeights("AlexNet", ALEXNET_URL, ALEXNET_SHA256)
    return AlexNetFeatures(published.obtain(path, download, names))
