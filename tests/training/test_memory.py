"""The bound on memory: one full-width step of Progressive GAN at 1024x1024, in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

_FULL_WIDTH_STEP = """
import json, resource, sys, time
import torch
from hires_gan.recipes.progressive import Progressive
from hires_gan.recipes.protocol import Batch
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.training.backends import SingleProcess

dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[1]]
settings = ProgressiveSettings.model_validate(
    {"name": "progressive", "resolution": 1024, "discriminator": {"group_size": 2}})
recipe = Progressive(settings, 4, dtype, 0, None)
backend = SingleProcess(recipe, torch.device("cpu"), 0)
fade = next(stage for stage in recipe.stages if stage.resolution == 1024 and stage.fade)
backend.enter(fade)
nimg = fade.start + 4 * 1000
batch = Batch(torch.rand(4, 3, 1024, 1024).mul_(2).sub_(1), None)
start = time.perf_counter()
means = backend.step(recipe.phases(nimg), batch, nimg, 2)
backend.update_average(0.999)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "live": sum(p.numel() for live in backend.live.values() for p in live.values()),
    "nonfinite": int(backend.nonfinite),
    "losses": {name: float(mean) for name, mean in means.items()},
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_full_width_step_at_1024_needs_at_most_16_gib(precision: str) -> None:
    """Both networks within the last fade, gradient penalty included, two micro-batches of two."""
    command = [sys.executable, "-c", _FULL_WIDTH_STEP, precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(precision, report)
    assert report["live"] > 46_000_000  # all but the colour layers below 512x512
    assert {"loss/gp", "loss/discriminator_real", "loss/generator"} <= report["losses"].keys()
    assert all(math.isfinite(value) for value in report["losses"].values())
    assert report["nonfinite"] == 0
    assert report["gib"] <= 16
