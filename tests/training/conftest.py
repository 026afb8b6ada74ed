"""Small shard sets and configurations that train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare

RESOLUTION = 16


@pytest.fixture
def as_it_was():
    """What `choose_float32` sets is set for a whole process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """40 images of 16x16 with colours and edges, in two classes of 24 and 16."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = np.zeros((RESOLUTION, RESOLUTION, 3), np.uint8)
        pixels[:, :] = generator.integers(60, 200, 3)
        pixels[: generator.integers(4, 12)] = generator.integers(0, 255, 3)
        kind = root / ("stripe" if number < 24 else "tall")
        kind.mkdir(exist_ok=True)
        Image.fromarray(pixels if number < 24 else pixels.transpose(1, 0, 2)).save(kind / f"{number:03d}.png")
    out = tmp_path_factory.mktemp("shards") / "set"
    prepare([str(root)], out, PrepareOptions(resolution=RESOLUTION, labels="folders", processes=1))
    return out


@pytest.fixture
def settings(shards, tmp_path) -> dict[str, Any]:
    """A configuration, as YAML would give it: grows from 4 to 16 within 480 images, in 30 steps of 16."""
    return {
        "run": {"name": "small", "dir": str(tmp_path / "runs"), "total_kimg": 0.48},
        "data": {"shards": str(shards), "workers": 0, "mirror": True},
        "recipe": {
            "name": "progressive",
            "resolution": RESOLUTION,
            "generator": {"latent_size": 8, "fmap_base": 64, "fmap_max": 8},
            "discriminator": {"fmap_base": 64, "fmap_max": 8},
            "schedule": {"stable_kimg": 0.096, "fade_kimg": 0.096},
        },
        "batch": {"size": 16, "per_device": 8},
        "precision": "fp32",
        "checkpoint": {"every_kimg": 0.1, "keep": 2},
        "samples": {"every_kimg": 0.2, "count": 4},
        "ema": {"half_life_batches": 5},
        "evaluation": {"every_kimg": 0.16, "count": 16},
        "tracking": {"every_kimg": 0.032},
    }


@pytest.fixture
def write_config(tmp_path):
    """Write a configuration as a YAML file."""

    def write(content: dict[str, Any], name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return path

    return write
