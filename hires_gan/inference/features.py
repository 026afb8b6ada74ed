"""How much each of VGG16's channels counts in LPIPS, from a package that brings these weights along."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from hires_gan.networks.vgg import CHANNELS, OptionNames, published_tensors

LPIPS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
OPTIONS = OptionNames(weights="--weights", download="--download")
"""What `project` calls its options for VGG16's weights."""
_LPIPS_PLACES = {"torchmetrics": "functional/image/lpips_models/vgg.pth", "lpips": "weights/v0.1/vgg.pth"}
"""Packages that bring the weights of LPIPS's last layers (version 0.1) along, and where."""


def lpips_file() -> Path | None:
    """The weights of LPIPS's last layers, in one of the packages that bring them, if it is installed."""
    for package, inside in _LPIPS_PLACES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / inside).is_file():
                return Path(folder) / inside
    return None


def load_lpips(path: Path) -> list[Tensor]:
    """How much each channel counts in LPIPS: float32 `[c]` for each of the five resolutions, not negative.

    Raises:
        UsageError: If it is not the published file.
    """
    tensors = published_tensors(path, LPIPS_SHA256, "LPIPS's vgg.pth, version 0.1", OPTIONS)
    return [tensors[f"lin{number}.model.1.weight"].flatten() for number in range(len(CHANNELS))]
