"""Small checkpoints of MUNIT, their weights drawn at random, and what their images are by definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hires_gan import checkpoint
from hires_gan.inference.images import to_uint8
from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.translation import Translator
from hires_gan.randomness import Purpose, RandomSource

STYLE = 4
GENERATOR = {"style_size": STYLE, "base": 4, "most": 8, "blocks": 1, "features": 8}


def translator(domains: Sequence[str] = ("a", "b"), levels: int = 0) -> Translator:
    torch.manual_seed(0)
    network = Translator({domain: Generator(**GENERATOR, levels=levels) for domain in domains})
    return network.eval().requires_grad_(False)


def write_munit_checkpoint(
    root: Path,
    side: int = 32,
    domains: Sequence[str] = ("a", "b"),
    level: Level | None = None,
    without: Callable[[str], bool] = lambda _: False,
) -> checkpoint.Checkpoint:
    """Write one.

    Args:
        root: The run's folder.
        side: Of the images, in the end.
        domains: Their names.
        level: How far the networks have grown, if they started at half of `side`.
        without: Which tensors are left out.
    """
    network = translator(domains, 0 if level is None else 1)
    schedule = None if level is None else {"start_resolution": side // 2}
    recipe = {
        "name": "munit",
        "resolution": side,
        "generator": GENERATOR,
        "discriminator": {"scales": 1 if level is None else 2, "layers": 2, "base": 4},
        "schedule": schedule,
    }
    level = level or Level()
    inference = {
        "resolution": side >> level.number,
        "domains": list(domains),
        "level": level.number,
        "alpha": level.alpha,
    }
    state = {"configuration": {"recipe": recipe, "precision": "fp32"}, "inference": inference}
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not without(name)}
    return checkpoint.write(root / "checkpoints", 100, {"generator.average": tensors}, state)


def drawn(seed: int, number: int) -> torch.Tensor:
    """Style `number` of a seed: `[1, STYLE]`."""
    return RandomSource(seed).normal(Purpose.LATENT_SAMPLE, torch.tensor([number]), (STYLE,))


def images_of(pixels: np.ndarray) -> torch.Tensor:
    """uint8 `[h, w, 3]` as a network takes it: `[1, 3, h, w]` in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def shown(images: torch.Tensor) -> np.ndarray:
    """`[1, 3, h, w]` as pixels: uint8 `[h, w, 3]`."""
    return to_uint8(images)[0].permute(1, 2, 0).numpy()


def photograph(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """Write a picture of smooth noise, of this width and height."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)
