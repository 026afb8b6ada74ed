"""How much each channel counts in LPIPS, from a package that brings these weights along."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from torch import Tensor

from hires_gan.networks.published import OptionNames, published_tensors

Backbone = Literal["vgg", "alex"]
"""Whose channels: VGG16's or AlexNet's."""

LPIPS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
LPIPS_ALEX_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
OPTIONS = OptionNames(weights="--weights", download="--download")
"""What `project` calls its options for VGG16's weights."""
_LPIPS_PLACES = {"torchmetrics": "functional/image/lpips_models", "lpips": "weights/v0.1"}
"""Packages that bring the weights of LPIPS's last layers (version 0.1) along, and where."""
_LAYERS = 5


def lpips_file(backbone: Backbone = "vgg") -> Path | None:
    """The weights of LPIPS's last layers, in one of the packages that bring them, if it is installed."""
    for package, inside in _LPIPS_PLACES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / inside / f"{backbone}.pth"
            if path.is_file():
                return path
    return None


def load_lpips(path: Path, backbone: Backbone = "vgg") -> list[Tensor]:
    """How much each channel counts in LPIPS: float32 `[c]` for each of the five layers, not negative.

    Raises:
        UsageError: If it is not the published file.
    """
    sha256 = LPIPS_SHA256 if backbone == "vgg" else LPIPS_ALEX_SHA256
    tensors = published_tensors(path, sha256, f"LPIPS's {backbone}.pth, version 0.1", OPTIONS)
    return [tensors[f"lin{number}.model.1.weight"].flatten() for number in range(_LAYERS)]
