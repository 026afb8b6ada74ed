"""Small domains of images, and a small MUNIT in which every term of the loss but the perceptual one is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare

MUNIT: dict[str, Any] = {
    "name": "munit",
    "resolution": 32,
    "generator": {
        "style_size": 4,
        "base": 4,
        "most": 8,
        "content_downs": 1,
        "style_downs": 2,
        "blocks": 1,
        "features": 8,
    },
    "discriminator": {"scales": 2, "layers": 2, "base": 4, "most": 8, "spectral": True},
    "loss": {
        "name": "hinge",
        "scales": "mean",
        "image": 10,
        "content": 1,
        "style": 1,
        "cycle": 10,
        "detach_content": True,
        "style_prior": 0.1,
        "r1": 1,
        "r1_interval": 4,
        "consistency": 1,
    },
    "generator_optimizer": {"learning_rate": 0.0002, "weight_decay": 0.0001, "halve_kimg": 0.02},
    "discriminator_optimizer": {"learning_rate": 0.0004, "weight_decay": 0.0001, "halve_kimg": 0.02},
}

Pictures = npt.NDArray[np.uint8]


def pictures(count: int, side: int, seed: int, turned: bool = False) -> Pictures:
    """uint8 `[count, side, side, 3]`: slanted bars over a plain ground, in random colours."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((side, side))
    made = np.empty((count, side, side, 3), np.uint8)
    for picture in made:
        slant = rows - columns if turned else rows + columns
        bars = (slant + random.integers(0, 16)) % 16 < random.integers(4, 12)
        picture[:] = np.where(bars[..., None], random.integers(0, 256, 3), random.integers(0, 256, 3))
    return made


def prepared(folder: Path, images: Pictures) -> Path:
    """A shard set of images of one size."""
    source = folder.parent / f"{folder.name}-source"
    source.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(source / f"{number:03d}.png")
    prepare([str(source)], folder, PrepareOptions(resolution=images.shape[1], processes=1))
    return folder
