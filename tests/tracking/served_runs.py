"""Runs of seconds that a server records: real processes, real images, networks of a few weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare

EXPERIMENT, NAME = "tiny-runs", "tiny"


def make_shards(folder: Path) -> Path:
    """24 images of 16x16 with colours and edges."""
    images, generator = folder / "images", np.random.default_rng(0)
    images.mkdir()
    for number in range(24):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :] = generator.integers(60, 200, 3)
        pixels[: generator.integers(4, 12)] = generator.integers(0, 255, 3)
        Image.fromarray(pixels).save(images / f"{number:03d}.png")
    prepare([str(images)], folder / "shards", PrepareOptions(resolution=16, processes=1))
    return folder / "shards"


def settings(shards: Path, root: Path, uri: str) -> dict[str, Any]:
    """A Progressive GAN of 16x16, 60 steps of 16 images."""
    return {
        "run": {"name": "tiny", "dir": str(root / "runs"), "total_kimg": 0.96},
        "data": {"shards": str(shards), "workers": 0},
        "recipe": {
            "name": "progressive",
            "resolution": 16,
            "generator": {"latent_size": 8, "fmap_base": 64, "fmap_max": 8},
            "discriminator": {"fmap_base": 64, "fmap_max": 8},
            "schedule": {"stable_kimg": 0.096, "fade_kimg": 0.096},
        },
        "batch": {"size": 16, "per_device": 8},
        "precision": "fp32",
        "checkpoint": {"every_kimg": 0.32, "keep": 2},
        "samples": {"every_kimg": 0.32, "count": 16},
        "ema": {"half_life_batches": 5},
        "evaluation": {"every_kimg": 0.32, "count": 16},
        "tracking": {"uri": uri, "experiment": EXPERIMENT, "every_kimg": 0.032, "register_as": NAME},
    }


def hires_gan(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "hires_gan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=400)


@dataclass
class ServedRuns:
    """Runs beside each other in one folder and one experiment."""

    root: Path
    shards: Path
    uri: str

    def config(self, **blocks: dict[str, Any]) -> Path:
        """The configuration as a file, with changes block by block."""
        content = settings(self.shards, self.root, self.uri)
        for block, values in blocks.items():
            content[block].update(values)
        path = self.root / "tiny.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def train(self, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        done = hires_gan("train", self.config(), f"run.name={name}", *overrides)
        assert done.returncode == 0, done.stderr
        return done

    def run_id(self, name: str) -> str:
        return str(json.loads((self.folder(name) / "tracking/run.json").read_text())["run_id"])

    def folder(self, name: str) -> Path:
        return self.root / "runs" / name
