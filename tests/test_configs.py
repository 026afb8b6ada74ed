"""Every shipped configuration builds what it describes, at full size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hires_gan.config import load_configuration
from hires_gan.recipes.families import build_recipe
from hires_gan.training.launch import DTYPES
from hires_gan.training.schedule import steps
from hires_gan.training.trainer import average_decay, micro_batch

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_built(path):
    plan = load_configuration(path)
    with torch.device("meta"):
        recipe = build_recipe(plan.recipe, plan.batch.size, DTYPES[plan.precision], plan.run.seed, None)
    last = recipe.stages[-1]
    assert last.resolution == plan.recipe.resolution
    assert last.end is None
    assert last.start < plan.run.total_kimg * 1000, "the run would end before the networks are fully grown"
    for stage in recipe.stages:
        micro = micro_batch(plan.batch, stage)
        assert micro % stage.group == 0 or micro == stage.batch
        assert 0 < average_decay(plan.ema, stage.batch, stage.start + 10**6) < 1
    assert next(steps(recipe.stages, 0, 10)).resolution == plan.recipe.first_resolution


def test_celebahq_is_the_papers():
    plan = load_configuration(next(path for path in CONFIGS if "celebahq1024" in path.stem))
    with torch.device("meta"):
        recipe = build_recipe(plan.recipe, plan.batch.size, torch.bfloat16, 0, None)
    assert sum(p.numel() for p in recipe.generator.parameters()) == 23_079_115
    assert sum(p.numel() for p in recipe.discriminator.parameters()) == 23_087_249
    starts = {(stage.resolution, stage.fade): stage.start for stage in recipe.stages}
    assert starts[1024, False] == pytest.approx(9_600_000, abs=10 * 512)
    assert {stage.resolution: stage.batch for stage in recipe.stages}[1024] == 32
    rates = {s.resolution: s.optimizers["generator"].learning_rate for s in recipe.stages}
    assert rates == {4: 1e-3, 8: 1e-3, 16: 1e-3, 32: 1e-3, 64: 1e-3, 128: 1.5e-3, 256: 2e-3, 512: 3e-3, 1024: 3e-3}
