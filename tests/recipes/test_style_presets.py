"""The shipped presets of StyleGAN and StyleGAN2 are the published ones: the numbers, not the files, stand here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from hires_gan.config import Configuration, load_configuration
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.growing import growth_at
from hires_gan.recipes.stylegan import StyleGAN
from hires_gan.recipes.stylegan2 import StyleGAN2
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


class Published(NamedTuple):
    """One row of the authors' table, for eight GPUs."""

    resolution: int
    batch: int
    group: int
    fmap_base: int
    rate: float
    r1: float
    half_life_kimg: float
    rampup: float | None
    mapping_layers: int
    freeze: int = 0
    augment_kimg: float | None = None


F = Published(1024, 32, 4, 32768, 0.002, 10, 10, None, 8)
PUBLISHED = {
    "ffhq1024": F,
    "paper256": Published(256, 64, 8, 16384, 0.0025, 1, 20, None, 8),
    "paper512": Published(512, 64, 8, 32768, 0.0025, 0.5, 20, None, 8),
    "paper1024": Published(1024, 32, 4, 32768, 0.002, 2, 10, None, 8),
    "config_e": Published(1024, 32, 4, 16384, 0.002, 100, 10, None, 8),
    "finetune": F._replace(freeze=10, augment_kimg=100),
    "auto": Published(1024, 32, 4, 32768, 0.002, 6.5536, 10, 0.05, 2, augment_kimg=500),
}
AUTO = {
    128: Published(128, 64, 4, 16384, 0.0025, 0.0512, 20, 0.05, 2, augment_kimg=500),
    256: Published(256, 64, 4, 16384, 0.0025, 0.2048, 20, 0.05, 2, augment_kimg=500),
    512: Published(512, 64, 4, 32768, 0.0025, 0.8192, 20, 0.05, 2, augment_kimg=500),
    1024: PUBLISHED["auto"],
}
ROWS = [(name, [], row) for name, row in PUBLISHED.items()]
ROWS += [("auto", [f"recipe.resolution={resolution}"], row) for resolution, row in AUTO.items()]


def shipped(name: str, overrides: list[str]) -> tuple[Configuration, StyleGAN2 | StyleGAN]:
    """A shipped configuration and its recipe, whose networks take no memory."""
    plan = load_configuration(CONFIGS / f"{name}.yaml", overrides)
    with torch.device("meta"):
        recipe = build_recipe(plan.recipe, plan.batch.size, torch.bfloat16, 0, None)
    assert isinstance(recipe, StyleGAN2 | StyleGAN)
    return plan, recipe


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def half_life_kimg(plan: Configuration, batch: int) -> float:
    ema = plan.ema
    return ema.half_life_kimg if ema.half_life_kimg is not None else (ema.half_life_batches or 0) * batch / 1000


def test_every_shipped_preset_is_in_the_table() -> None:
    there = {path.stem.removeprefix("stylegan2_") for path in CONFIGS.glob("stylegan2_*.yaml")}
    assert there - {"demo"} == PUBLISHED.keys()


@pytest.mark.parametrize(
    ("name", "overrides", "row"), ROWS, ids=[f"{name} {' '.join(more)}".strip() for name, more, _ in ROWS]
)
def test_a_preset_is_the_authors(name: str, overrides: list[str], row: Published) -> None:
    plan, recipe = shipped(f"stylegan2_{name}", overrides)
    assert isinstance(recipe, StyleGAN2)
    settings, (stage,) = recipe.settings, recipe.stages
    assert (stage.resolution, stage.batch, stage.group) == (row.resolution, row.batch, row.group)
    assert recipe.discriminator.group == row.group
    assert recipe.r1 == pytest.approx(row.r1, rel=1e-12)
    # The widths that were built: of all maps, those at the image's side are the ones that the base decides.
    maps = row.fmap_base // row.resolution
    assert maps < 512
    assert recipe.discriminator.from_rgb.weight.shape[0] == maps
    assert recipe.generator.get_parameter(f"synthesis.blocks.{row.resolution}.to_rgb.weight").shape[1] == maps
    assert len(recipe.generator.mapping.layers) == row.mapping_layers
    # As published: path lengths with weight 2 in every 4th step and R1 in every 16th, in the optimizers too.
    generator, discriminator = stage.optimizers["generator"], stage.optimizers["discriminator"]
    assert generator.learning_rate == pytest.approx(row.rate * 4 / 5, rel=1e-12)
    assert discriminator.learning_rate == pytest.approx(row.rate * 16 / 17, rel=1e-12)
    assert generator.betas == pytest.approx((0, 0.99 ** (4 / 5)), rel=1e-12)
    assert discriminator.betas == pytest.approx((0, 0.99 ** (16 / 17)), rel=1e-12)
    assert (settings.loss.path_length, settings.loss.path_length_decay, settings.mixing) == (2, 0.01, 0.9)
    assert half_life_kimg(plan, stage.batch) == pytest.approx(row.half_life_kimg, rel=1e-12)
    assert plan.ema.rampup == row.rampup
    assert len(list(recipe.discriminator.parameters())) - len(discriminator.live) == frozen_parameters(row.freeze)
    check_augmentation(settings, row.augment_kimg)
    # A tuned run has a length of its own; the authors give none for it.
    assert plan.run.total_kimg == (5_000 if name == "finetune" else 25_000)


def frozen_parameters(layers: int) -> int:
    """The layer that reads colours has a bias, and of a block's three all but the shortcut."""
    return {0: 0, 10: 2 + 3 * (2 + 2 + 1)}[layers]


def check_augmentation(settings: StyleGAN2Settings, kimg: float | None) -> None:
    if kimg is None:
        assert settings.augment is None
        return
    assert settings.augment is not None
    assert settings.augment.preset == "bgc"
    probability = settings.augment.probability
    assert probability.fixed is None
    assert (probability.initial, probability.kimg, probability.target, probability.interval) == (0, kimg, 0.6, 4)


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("stylegan_ffhq1024", 26_219_627, 23_087_249),
        ("stylegan2_ffhq1024", 30_370_060, 29_012_513),
        ("stylegan2_config_e", 24_900_764, 24_038_161),
        ("stylegan2_paper256", 24_767_458, 24_001_089),
        ("stylegan2_auto", 28_794_124, 29_012_513),
    ],
)
def test_a_shipped_configuration_has_the_published_parameters(name: str, generator: int, discriminator: int) -> None:
    _, recipe = shipped(name, [])
    assert (count(recipe.generator), count(recipe.discriminator)) == (generator, discriminator)


def test_stylegan_grows_by_the_published_schedule() -> None:
    plan, recipe = shipped("stylegan_ffhq1024", [])
    assert isinstance(recipe, StyleGAN)
    stages = recipe.stages
    fade, whole = stages[-2:]
    # Nominal borders are met by whole steps: each stage of 14 is at most a batch late.
    assert (fade.resolution, fade.fade, whole.resolution, whole.fade) == (1024, True, 1024, False)
    assert whole.start == pytest.approx(8_400_000, abs=32 * 14), "1024x1024 is fully in at 8,400 kimg"
    assert fade.start == pytest.approx(7_800_000, abs=32 * 14)
    assert growth_at(stages, whole.start - 32).alpha < 1
    assert growth_at(stages, whole.start).alpha == 1
    assert (stages[0].resolution, stages[0].fade, stages[0].end) == (8, False, pytest.approx(600_000, abs=256))
    assert plan.run.total_kimg == 25_000


def test_stylegans_batches_and_rates_are_those_for_eight_gpus() -> None:
    plan, recipe = shipped("stylegan_ffhq1024", [])
    batches = {8: 256, 16: 128, 32: 64, 64: 32, 128: 32, 256: 32, 512: 32, 1024: 32}
    assert {s.resolution: s.batch for s in recipe.stages} == batches
    rates = {8: 1e-3, 16: 1e-3, 32: 1e-3, 64: 1e-3, 128: 1.5e-3, 256: 2e-3, 512: 3e-3, 1024: 3e-3}
    for player in ("generator", "discriminator"):
        assert {s.resolution: s.optimizers[player].learning_rate for s in recipe.stages} == rates
    assert {s.group for s in recipe.stages} == {4}
    assert {tuple(s.optimizers["generator"].betas) for s in recipe.stages} == {(0, 0.99)}
    assert isinstance(recipe, StyleGAN)
    assert (recipe.settings.loss.r1, recipe.settings.mixing, recipe.settings.w_average_decay) == (10, 0.9, 0.995)
    assert (half_life_kimg(plan, 32), plan.ema.rampup) == (10, None)
