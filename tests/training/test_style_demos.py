"""What the demos of StyleGAN and StyleGAN2 promise, by running them: they learn to draw like the photographs."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from demo_runs import DEMOS, DemoRun, trained
from PIL import Image

from hires_gan.data.demo import demo_shards
from hires_gan.data.shards import ShardSet

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(1800)]

SIDE = 32


@pytest.fixture(scope="module", params=DEMOS)
def demo(request, tmp_path_factory) -> DemoRun:
    return trained(request.param, tmp_path_factory)


def photographs(count: int) -> np.ndarray:
    """Evenly chosen images of the set, reduced as the demos see them: float64 [n, r, r, 3]."""
    shards = ShardSet(demo_shards("photographs"))
    rows = np.linspace(0, len(shards) - 1, count).astype(int)
    images = [Image.open(io.BytesIO(shards.read(int(row)))) for row in rows]
    return np.stack([np.asarray(image.reduce(image.width // SIDE), dtype=float) for image in images])


def spread(images: np.ndarray) -> float:
    """How far images lie from their mean, on average over pixels: 0 where all are one image."""
    return float(np.abs(images - images.mean(0)).mean())


def test_the_run_ends_with_what_it_made(demo):
    assert demo.done.returncode == 0, demo.done.stderr
    assert json.loads((demo.folder / "status.json").read_text())["state"] == "finished"
    assert f"grid:       {demo.grids[-1]}" in demo.done.stderr
    assert "checkpoint: " in demo.done.stderr


def test_the_distance_to_the_photographs_falls(demo):
    distances = demo.metric("evaluation/swd")
    assert distances[0][0] == 0
    assert distances[-1][1] <= 0.7 * distances[0][1], distances


def test_every_gradient_is_finite(demo):
    counts = demo.metric("gradients/nonfinite")
    assert len(counts) > 10
    assert not any(count for _, count in counts)


def test_the_images_vary_as_the_photographs_do(demo):
    grid = np.asarray(Image.open(demo.grids[-1]), dtype=float)
    assert grid.shape == (8 * SIDE, 8 * SIDE, 3)
    images = grid.reshape(8, SIDE, 8, SIDE, 3).swapaxes(1, 2).reshape(64, SIDE, SIDE, 3)
    assert 0.5 < spread(images) / spread(photographs(64)) < 1.5
    colours = images.mean((1, 2))
    assert spread(colours - colours.mean(1, keepdims=True)) > 5  # not grey
