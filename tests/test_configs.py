"""Every shipped configuration builds what it describes, at full size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hires_gan.config import load_configuration
from hires_gan.recipes import munit
from hires_gan.recipes.families import build_recipe
from hires_gan.training.launch import DTYPES
from hires_gan.training.schedule import steps
from hires_gan.training.trainer import average_decay, micro_batch

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_built(path):
    plan = load_configuration(path)
    with torch.device("meta"):
        domains = tuple(plan.data.domains or ())
        recipe = build_recipe(plan.recipe, plan.batch.size, DTYPES[plan.precision], plan.run.seed, None, domains)
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


def test_edges2shoes_is_the_papers():
    """Parameters of each domain, Adam, and rates that are halved every 100,000 images of a domain, one at a time."""
    plan = load_configuration(next(path for path in CONFIGS if "edges2shoes" in path.stem))
    with torch.device("meta"):
        recipe = build_recipe(plan.recipe, plan.batch.size, torch.float32, 0, None, ("edges", "shoes"))
    assert sum(p.numel() for p in recipe.generator.generator("edges").parameters()) == 15_026_187
    assert sum(p.numel() for p in recipe.discriminator.discriminator("shoes").parameters()) == 8_271_171
    (stage,) = recipe.stages
    for optimizer in stage.optimizers.values():
        assert (optimizer.betas, optimizer.weight_decay) == ((0.5, 0.999), 1e-4)
        assert [optimizer.rate_at(nimg) for nimg in (0, 99_999, 100_000, 950_000)] == [1e-4, 1e-4, 5e-5, 1e-4 / 2**9]


def test_what_is_published_at_512_stands_beside_it():
    path = next(path for path in CONFIGS if "edges2shoes" in path.stem)
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("#   recipe.resolution=512")]
    plan = load_configuration(path, line.removeprefix("#").split())
    loss = plan.recipe.loss
    assert (loss.image, loss.content, loss.style, loss.cycle, loss.perceptual) == (10, 1, 1, 10, 1)
    with torch.device("meta"):
        recipe = munit.Munit(plan.recipe, plan.batch.size, torch.float32, 0, ("a", "b"))
    assert [stage.resolution for stage in recipe.stages] == [512]
    assert sum(p.numel() for p in recipe.generator.generator("a").parameters()) == 15_026_187


def test_what_the_face_configuration_offers_in_its_comments_is_allowed():
    path = next(path for path in CONFIGS if "faces1024" in path.stem)
    offered = [text.replace('"', "") for text in re.findall(r'recipe\.[\w.]+=(?:"[^"]*"|\d+)', path.read_text())]
    assert {text.split("=")[0] for text in offered} == {
        "recipe.generator.content_downs",
        "recipe.schedule",
        "recipe.crop",
    }
    grown = next(plan for plan in (load_configuration(path, [text]) for text in offered) if plan.recipe.schedule)
    with torch.device("meta"):
        recipe = build_recipe(grown.recipe, grown.batch.size, torch.bfloat16, 0, None, ("neutral", "smiling"))
    sides = [(stage.resolution, stage.fade) for stage in recipe.stages]
    assert sides == [(256, False), (512, True), (512, False), (1024, True), (1024, False)]
    assert recipe.stages[-1].start < grown.run.total_kimg * 1000
