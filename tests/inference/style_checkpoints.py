"""Small checkpoints, their weights drawn at random, and what their images are by definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hires_gan import checkpoint
from hires_gan.inference.images import to_uint8
from hires_gan.networks import progressive, stylegan, stylegan2
from hires_gan.networks.growth import Width
from hires_gan.randomness import Purpose, RandomSource

LATENT, W, BASE, MOST = 8, 12, 128, 8


def style_network(family: str = "stylegan2", side: int = 16, classes: int = 0, seed: int = 0):
    """A generator whose images depend on everything: noise has a strength, and W a mean."""
    torch.manual_seed(seed)
    kind = {"stylegan": stylegan, "stylegan2": stylegan2}[family].Generator
    network = kind(side, LATENT, W, classes, 2, width=Width(BASE, MOST))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("noise_strength", "noise_weight")):
                parameter.fill_(0.05)
        labels = torch.zeros(500, dtype=torch.int64) if classes else None
        network.w_average.copy_(network.mapping(torch.randn(500, LATENT), labels).mean(0))
    return network.eval().requires_grad_(False)


def write_style_checkpoint(
    root: Path, family: str = "stylegan2", side: int = 16, classes: int = 0, grown: int | None = None, seed: int = 0
) -> checkpoint.Checkpoint:
    network = style_network(family, side, classes, seed)
    recipe = {
        "name": family,
        "resolution": side,
        "labels": classes > 0,
        # A width in the settings counts feature maps as each family's paper does.
        "generator": {
            "latent_size": LATENT,
            "w_size": W,
            "mapping_layers": 2,
            "fmap_base": BASE * (2 if family == "stylegan2" else 1),
            "fmap_max": MOST,
        },
    }
    inference = {"resolution": grown or side, "alpha": 1.0, "classes": classes}
    state = {"configuration": {"recipe": recipe, "precision": "fp32"}, "inference": inference}
    return checkpoint.write(root / "checkpoints", 100, {"generator.average": dict(network.state_dict())}, state)


def write_progressive_checkpoint(root: Path) -> checkpoint.Checkpoint:
    torch.manual_seed(0)
    network = progressive.Generator(16, LATENT, 0, Width(64, 8))
    generator = {"latent_size": LATENT, "fmap_base": 64, "fmap_max": 8}
    recipe = {"name": "progressive", "resolution": 16, "generator": generator}
    inference = {"resolution": 8, "alpha": 1.0, "classes": 0}
    state = {"configuration": {"recipe": recipe, "precision": "fp32"}, "inference": inference}
    return checkpoint.write(root / "checkpoints", 100, {"generator.average": dict(network.state_dict())}, state)


def latents(seed: int) -> torch.Tensor:
    """The latents of a seed: `[1, LATENT]`."""
    return RandomSource(seed).normal(Purpose.LATENT_SAMPLE, torch.zeros(1, dtype=torch.int64), (LATENT,))


def shown(images: torch.Tensor) -> np.ndarray:
    """`[1, 3, r, r]` as pixels: uint8 `[r, r, 3]`."""
    return to_uint8(images)[0].permute(1, 2, 0).numpy()
