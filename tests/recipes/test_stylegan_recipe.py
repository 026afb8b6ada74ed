"""StyleGAN's recipe: Progressive GAN's schedule from 8x8, the losses written out, styles mixed among living layers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hires_gan.networks.growth import Growth
from hires_gan.networks.layers import cross_fade
from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.families import build_for_inference
from hires_gan.recipes.growing import growth_at
from hires_gan.recipes.protocol import Batch, LabelDistribution, Step
from hires_gan.recipes.stylegan import StyleGAN
from hires_gan.recipes.stylegan_settings import StyleGANSettings
from hires_gan.training.backends import Backend

BATCH = 4
SMALL = {
    "name": "stylegan",
    "resolution": 32,
    "generator": {"latent_size": 6, "w_size": 5, "mapping_layers": 2, "fmap_base": 32, "fmap_max": 6},
    "discriminator": {"fmap_base": 32, "fmap_max": 6, "group_size": 2},
    "schedule": {"stable_kimg": 0.04, "fade_kimg": 0.04},
}
FADE = 60  # half-way into the fade of 16x16


def recipe(labels: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float64, **more: Any) -> StyleGAN:
    block = SMALL | ({"labels": True} if labels else {}) | more
    return StyleGAN(
        StyleGANSettings.model_validate(block), BATCH, dtype, 7, LabelDistribution(labels) if labels else None
    )


def step_at(nimg: int, side: int) -> Step:
    samples = torch.arange(nimg, nimg + BATCH)
    images = RandomSource(99).uniform(Purpose.MIRROR, samples, (3, side, side)).double() * 2 - 1
    return Step(Batch(images, samples % 2), SampleRandom(RandomSource(7), samples))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def test_the_schedule_begins_at_8_and_its_nominal_starts_are_the_papers() -> None:
    block = SMALL | {"resolution": 1024, "schedule": {}}
    stages = StyleGAN(StyleGANSettings.model_validate(block), 32, torch.float32, 0, None).stages
    assert stages[0].resolution == 8
    assert [stage.resolution for stage in stages] == [8] + [r for r in (16, 32, 64, 128, 256, 512, 1024) for _ in "ab"]
    assert stages[-1].start == pytest.approx(8_400_000, abs=32 * 14), "1024x1024 is fully in"


def test_every_stage_trains_the_mapping_and_what_lives_in_it() -> None:
    model = recipe()
    for stage in model.stages:
        live = set(stage.optimizers["generator"].live)
        assert {name for name, _ in model.generator.mapping.named_parameters("mapping")} <= live
        blocks = {name.split(".")[2] for name in live if name.startswith("synthesis.blocks.")}
        assert blocks == {str(r) for r in (4, 8, 16, 32) if r <= stage.resolution}
    # Each of them gets a gradient: what is declared dead takes no part.
    for nimg in (0, FADE):
        growth = growth_at(model.stages, nimg)
        for phase in model.phases(nimg):
            player = model.players[phase.player]
            player.requires_grad_(True)
            player.zero_grad()
            outcome = phase.function(step_at(nimg, growth.resolution))
            sum(loss.sum() for loss in outcome.losses.values()).backward()  # type: ignore[union-attr]
            found = {name for name, p in player.named_parameters() if p.grad is not None}
            assert found == set(player.live_parameters(growth))
            player.requires_grad_(False)


@pytest.mark.parametrize("nimg", [0, FADE])
def test_the_losses_are_the_formulas(nimg: int) -> None:
    model = recipe(loss={"r1": 3.0})
    growth = growth_at(model.stages, nimg)
    step, layers = step_at(nimg, growth.resolution), 2 * len(growth.resolutions)
    found = {phase.name: phase.function(step) for phase in model.phases(nimg)}

    def fakes(latent: Purpose, mixing: Purpose, noise: Purpose) -> Tensor:
        latents = step.random.normal(latent, 2, 6).double()
        uniform = step.random.uniform(mixing, 2)
        first, second = model.generator.mapping(latents[:, 0]), model.generator.mapping(latents[:, 1])
        ws = torch.empty(BATCH, model.generator.num_ws, 5, dtype=torch.float64)
        for sample in range(BATCH):
            cutoff = 1 + int(uniform[sample, 1] * (layers - 1)) if uniform[sample, 0] < 0.9 else layers
            for layer in range(model.generator.num_ws):
                ws[sample, layer] = first[sample] if layer < cutoff else second[sample]
        synthesis = model.generator.synthesis
        numbers = step.random.normal(noise, synthesis.noise_total_at(growth.resolution)).double()
        return synthesis(ws, synthesis.split_noise(numbers), growth)

    fake = fakes(Purpose.LATENT_GENERATOR, Purpose.MIXING_GENERATOR, Purpose.NOISE_GENERATOR)
    torch.testing.assert_close(
        found["generator"].losses["generator"], softplus(-model.discriminator(fake, None, growth))
    )
    fake = fakes(Purpose.LATENT_DISCRIMINATOR, Purpose.MIXING_DISCRIMINATOR, Purpose.NOISE_DISCRIMINATOR)
    real = cross_fade(step.batch.images, growth.alpha).requires_grad_(True)
    scores = model.discriminator(real, None, growth)
    (gradient,) = torch.autograd.grad(scores.sum(), real)
    terms = found["discriminator"].losses
    torch.testing.assert_close(terms["discriminator_fake"], softplus(model.discriminator(fake, None, growth)))
    torch.testing.assert_close(terms["discriminator_real"], softplus(-scores))
    torch.testing.assert_close(terms["r1"], gradient.square().sum((1, 2, 3)) * 1.5)


def test_without_weight_r1_is_not_computed() -> None:
    outcome = recipe(loss={"r1": 0}).phases(0)[0].function(step_at(0, 8))
    assert set(outcome.losses) == {"discriminator_real", "discriminator_fake"}


def test_micro_batches_change_nothing_but_rounding() -> None:
    models = []
    for micro in (BATCH, 2):
        model = recipe(labels=(3, 1))
        # Without noise the learned constant's maps are flat, and what is normalised there is rounding alone.
        for name, parameter in model.generator.named_parameters():
            if name.endswith("noise_weight"):
                torch.nn.init.constant_(parameter, 0.3)
        backend = Backend(model, torch.device("cpu"), 7)
        for stage in model.stages[:2]:
            backend.enter(stage)
            for nimg in (stage.start, stage.start + BATCH):
                batch = step_at(nimg, stage.resolution).batch
                model.advance(nimg + BATCH, backend.step(model.phases(nimg), batch, nimg, micro))
        models.append(model)
    for name in models[0].players:
        states = [model.players[name].state_dict() for model in models]
        for key, value in states[0].items():
            assert (value - states[1][key]).abs().max() < 1e-9, key
    assert models[0].generator.w_average.abs().max() > 0


def test_samples_have_the_resolution_of_the_moment() -> None:
    model = recipe()
    assert model.sample(model.generator, torch.arange(3), 0).shape == (3, 3, 8, 8)
    assert model.sample(model.generator, torch.arange(3), FADE).shape == (3, 3, 16, 16)
    assert (model.describe(0), model.describe(FADE)) == ("8x8", "16x16 fade 50%")


def test_what_inference_needs_rebuilds_the_generator_as_it_stood() -> None:
    model = recipe(labels=(1, 1))
    inference = json.loads(json.dumps(model.inference(FADE)))
    rebuilt = build_for_inference(model.settings, torch.float64, inference)
    rebuilt.load_state_dict(model.generator.state_dict())
    latents, labels = torch.randn(2, 6, dtype=torch.float64), torch.tensor([0, 1])
    expected = model.generator(latents, labels, growth=Growth(16, 0.5))
    torch.testing.assert_close(rebuilt(latents, labels), expected)


def test_a_start_above_the_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="start_resolution is 64; it must be at most resolution, 32"):
        StyleGANSettings.model_validate(SMALL | {"schedule": {"start_resolution": 64}})
