"""The bound on memory: one full-width step of each family at 1024x1024, in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

_FULL_WIDTH_STEP = """
import json, resource, sys, time
import torch
from pydantic import TypeAdapter
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend

family, size = sys.argv[1], int(sys.argv[3])
dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
settings = TypeAdapter(RecipeSettings).validate_python(
    {"name": family, "resolution": 1024, "discriminator": {"group_size": 2}})
recipe = build_recipe(settings, size, dtype, 0, None)
backend = Backend(recipe, torch.device("cpu"), 0)
stages = [stage for stage in recipe.stages if stage.resolution == 1024]
stage = next((stage for stage in stages if stage.fade), stages[0])
backend.enter(stage)
nimg = stage.start + size * 1600  # within the fade; a multiple of every interval
batch = Batch(torch.rand(size, 3, 1024, 1024).mul_(2).sub_(1), None)
start = time.perf_counter()
phases = recipe.phases(nimg)
means = backend.step(phases, batch, nimg, 2)
backend.update_average(0.999)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "live": sum(p.numel() for live in backend.live.values() for p in live.values()),
    "nonfinite": int(backend.nonfinite),
    "phases": [phase.name for phase in phases],
    "losses": {name: float(mean) for name, mean in means.items() if mean.ndim == 0},
}))
"""


_PHASES = {
    "progressive": ["discriminator", "generator"],
    "stylegan": ["discriminator", "generator"],
    "stylegan2": ["generator", "path_length", "discriminator", "r1"],
}
_LEAST = {"progressive": 46_000_000, "stylegan": 49_000_000, "stylegan2": 59_382_573}
"""Parameters that learn: those of growing networks lack the colour layers below 512x512."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "precision", "size"),
    [
        ("progressive", "fp32", 4),
        ("progressive", "bf16", 4),
        ("stylegan", "bf16", 2),
        ("stylegan2", "fp32", 2),
        ("stylegan2", "bf16", 2),
    ],
)
def test_a_full_width_step_at_1024_needs_at_most_16_gib(family: str, precision: str, size: int) -> None:
    """All phases with their penalties, in micro-batches of two; growing networks within the last fade."""
    command = [sys.executable, "-c", _FULL_WIDTH_STEP, family, precision, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(family, precision, report)
    assert report["phases"] == _PHASES[family]
    assert report["live"] >= _LEAST[family]
    assert all(math.isfinite(value) for value in report["losses"].values())
    assert report["nonfinite"] == 0
    assert report["gib"] <= 16
