"""VGG16's features, from weights that are at hand and checked; nothing is ever downloaded without being asked for."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
LPIPS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
VGG_URL: str = VGG16_Weights.IMAGENET1K_V1.url
_LPIPS_PLACES = {"torchmetrics": "functional/image/lpips_models/vgg.pth", "lpips": "weights/v0.1/vgg.pth"}
"""Packages that bring the weights of LPIPS's last layers (version 0.1) along, and where."""

# Side by side: the maps of the convolutions of each resolution; after the last of them, features are taken.
_CONVOLUTIONS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CHANNELS = tuple(maps[-1] for maps in _CONVOLUTIONS)
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class VGG16Features(nn.Module):
    """The convolutional part of VGG16 (Simonyan and Zisserman 2015), with torchvision's names and weights.

    Args:
        weights: What `features.*` of torchvision's model holds; others are left alone.

    Raises:
        Failure: If one is missing or has another shape.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taken: list[int] = []
        channels = 3
        for maps in _CONVOLUTIONS:
            for count in maps:
                layers += [nn.Conv2d(channels, count, 3, padding=1), nn.ReLU()]
                channels = count
            self.taken.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)
        own = {name: weights[name] for name in self.state_dict() if name in weights}
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            raise Failure(f"the VGG16 weights are of another network: {' '.join(str(error).split())}") from error
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of images, after the last rectifier of each resolution.

        Args:
            images: `[n, 3, h, w]` in [-1, 1], of 16x16 at least.

        Returns:
            Five tensors `[n, c, h / 2^i, w / 2^i]`, with c as `CHANNELS` says.
        """
        x = (images * 0.5 + 0.5 - self.mean) / self.deviation
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taken:
                found.append(x)
        return found


def cached_vgg() -> Path:
    """Where torch hub keeps torchvision's VGG16 weights, whether they are there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG_URL.rsplit("/", 1)[1]


def lpips_file() -> Path | None:
    """The weights of LPIPS's last layers, in one of the packages that bring them, if it is installed."""
    for package, inside in _LPIPS_PLACES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / inside).is_file():
                return Path(folder) / inside
    return None


def download_vgg() -> Path:
    """Fetch torchvision's VGG16 weights (528 MB) into torch hub's cache, if they are not there.

    Raises:
        Failure: If they cannot be had.
    """
    path = cached_vgg()
    if not path.is_file():
        say(f"downloading {VGG_URL} to {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(VGG_URL, str(path), VGG_SHA256, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise Failure(
                f"cannot download {VGG_URL} ({error}); fetch it elsewhere and name it with --weights"
            ) from error
    return path


def load_vgg(path: Path) -> VGG16Features:
    """VGG16's features with the weights of a file.

    Raises:
        UsageError: If it is not there, or is not torchvision's file.
    """
    return VGG16Features(_checked(path, VGG_SHA256, f"torchvision's {VGG_URL.rsplit('/', 1)[1]}"))


def load_lpips(path: Path) -> list[Tensor]:
    """How much each channel counts in LPIPS: float32 `[c]` for each of the five resolutions, not negative.

    Raises:
        UsageError: If it is not the published file.
    """
    tensors = _checked(path, LPIPS_SHA256, "LPIPS's vgg.pth, version 0.1")
    return [tensors[f"lin{number}.model.1.weight"].flatten() for number in range(len(CHANNELS))]


def _checked(path: Path, sha256: str, what: str) -> dict[str, Tensor]:
    """The tensors of a file whose bytes are the published ones; nothing in it executes."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"--weights: {path} cannot be read ({error.strerror}); give {what}") from error
    if found != sha256:
        raise UsageError(f"{path} is not {what}: its sha256 is {found}, not {sha256}; fetch it anew")
    # The file is there: torch hub only reads it, as tensors and nothing else.
    tensors: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        VGG_URL, str(path.parent), "cpu", file_name=path.name, weights_only=True
    )
    return tensors
