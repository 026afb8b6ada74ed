"""Small feature networks in packages that tests install for themselves, and Inception's file with random weights."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

SIDE = 16
FEATURES = 8
CLASSES = 12

TINY = f'''
import torch
from torch import nn


class Tiny(nn.Module):
    """Random projections of pixels, as features and as logits."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(3 * {SIDE} * {SIDE}, {FEATURES})
        self.classes = nn.Linear({FEATURES}, {CLASSES})

    def forward(self, images):
        features = self.features(images.flatten(1))
        return features, self.classes(features)


def features_alone():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))


def means():
    return lambda images: images.mean((2, 3))


def without_weights():
    return nn.Flatten()


def spoiled():
    def network(images):
        return images.mean((2, 3)) / (images.amax((1, 2, 3)) > 0.99)[:, None]

    return network


def one_number():
    return lambda images: images.mean()


def three_things():
    return lambda images: (images, images, images)


def whole_numbers():
    return lambda images: torch.zeros(len(images), 3, dtype=torch.int64)


def wants_224():
    def network(images):
        raise RuntimeError("expected images of 224")

    return network


def fails():
    raise ValueError("no weights here")


def nothing():
    return None


CONSTANT = 3
'''


def install(site: Path, package: str, source: str, version: str = "1.2") -> None:
    """A distribution with one module, as pip leaves it."""
    (site / f"{package}.py").write_text(source)
    info = site / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{package}\n")
    (info / "RECORD").write_text(f"{package}.py,,\n{info.name}/METADATA,,\n{info.name}/top_level.txt,,\n")


class Pictures(torch.utils.data.Dataset[Tensor]):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        return self.images[number]


def install_in_place(site: Path, source: Path, package: str, version: str = "1.2", editable: bool = True) -> None:
    """A distribution whose source lies elsewhere, as `pip install -e` leaves it; a file of its own is not in `site`."""
    install(site, package, "", version)
    (site / f"{package}.py").unlink()
    described = {"url": source.as_uri(), "dir_info": {"editable": True} if editable else {}}
    (site / f"{package}-{version}.dist-info" / "direct_url.json").write_text(json.dumps(described))


def on_path(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder's module be found, and be forgotten when the test is over."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, package, raising=False)


def inception_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Everything that the published file holds, with random values that neither vanish nor explode."""
    import torch_fidelity.feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("shapes", ["2048", "logits_unbiased"])
    random = torch.Generator().manual_seed(seed)
    state = dict(network.state_dict())
    for name, tensor in state.items():
        if tensor.dim() >= 2:
            state[name] = torch.randn(tensor.shape, generator=random) * math.sqrt(2 / tensor[0].numel())
    return state


def pictures(count: int, seed: int, brightness: float = 128.0, side: int = SIDE) -> Tensor:
    """uint8 `[count, 3, side, side]`: noise over colours that differ from one to the next."""
    random = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=random) * 40 + brightness
    noise = torch.randn(count, 3, side, side, generator=random) * 20
    return (colours + noise).round().clamp(0, 255).to(torch.uint8)
