"""MUNIT's settings: the published ones by default, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from literal_munit_losses import DOMAINS, GROWING, NETWORKS
from pydantic import ValidationError

from hires_gan.config import Configuration
from hires_gan.networks.munit import Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.recipes.munit import Munit
from hires_gan.recipes.munit_settings import MunitSettings, least_side

GENERATOR, JUDGE = NETWORKS["generator"], NETWORKS["discriminator"]


def settings_of(**more: Any) -> MunitSettings:
    return MunitSettings.model_validate({"name": "munit", "resolution": 32} | NETWORKS | more)


def test_the_defaults_are_the_published_networks_and_losses() -> None:
    """Huang et al. 2018, appendix B, with the cycle and the weights of the authors' street and season scenes."""
    settings = MunitSettings.model_validate({"name": "munit", "resolution": 256})
    own, judge, loss = settings.generator, settings.discriminator, settings.loss
    assert (own.style_size, own.base, own.most, own.content_downs, own.style_downs, own.blocks) == (8, 64, 256, 2, 4, 4)
    assert (judge.scales, judge.layers, judge.base, judge.most, judge.spectral) == (3, 4, 64, 512, False)
    assert (loss.name, loss.scales, loss.detach_content) == ("least_squares", "sum", False)
    assert (loss.adversarial, loss.image, loss.content, loss.style, loss.cycle) == (1, 10, 1, 1, 10)
    assert (loss.perceptual, loss.style_prior, loss.r1, loss.consistency) == (0, 0, 0, 0)
    for optimizer in (settings.generator_optimizer, settings.discriminator_optimizer):
        assert (optimizer.learning_rate, optimizer.betas) == (1e-4, (0.5, 0.999))
    assert (settings.crop, settings.schedule, settings.levels, settings.group(4)) == (None, None, 0, 1)


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_least_side_is_that_of_the_discriminator(scales: int, layers: int) -> None:
    judge = MultiScaleDiscriminator(scales=scales, layers=layers, base=2, most=4)
    least = least_side(scales, layers)
    assert least == judge.least_side()
    judge(torch.zeros(1, 3, least, least))
    with pytest.raises(ValueError, match=str(least)):
        judge(torch.zeros(1, 3, least - 1, least - 1))


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"crop": 18}, ("crop is 18", "multiple of 2^generator.content_downs, 4")),
    ({"crop": 64}, ("crop is 64", "resolution of 32")),
    ({"crop": 4}, ("crop is 4", "need 8", "generator.content_downs")),
    ({"crop": 16, "schedule": {"start_resolution": 16}}, ("crop and schedule", "set one to null")),
    ({"discriminator": JUDGE | {"scales": 3, "layers": 4}}, ("resolution is 32", "need 61", "discriminator.scales")),
    ({"generator": GENERATOR | {"style_downs": 6}}, ("resolution is 32", "need 64", "generator.style_downs")),
    (
        {"generator": GENERATOR | {"content_downs": 5, "most": 64}},
        ("resolution is 32", "need 64", "generator.content_downs"),
    ),
    ({"generator": GENERATOR | {"most": 6}}, ("6 channels", "generator.most", "multiple of 4")),
    ({"schedule": {"start_resolution": 8}}, ("start_resolution is 8", "generator.content_downs is 2", "allows 1")),
    (
        {"schedule": {"start_resolution": 8}, "generator": GENERATOR | {"content_downs": 3}},
        ("start_resolution is 8", "generator.style_downs is 2", "allows 1"),
    ),
    (
        {"schedule": {"start_resolution": 16}, "discriminator": JUDGE | {"scales": 1}},
        ("start_resolution is 16", "discriminator.scales is 1", "allows 0"),
    ),
    ({"schedule": {"start_resolution": 64}}, ("start_resolution is 64", "at most resolution, 32")),
    (
        {"schedule": {"start_resolution": 16}, "generator_optimizer": {"learning_rate": {32: 0.1}}},
        ("generator_optimizer.learning_rate", "add an entry for 16"),
    ),
    (
        {"schedule": {"start_resolution": 16}, "discriminator_optimizer": {"learning_rate": {32: 0.1}}},
        ("discriminator_optimizer.learning_rate", "add an entry for 16"),
    ),
    ({"loss": {"perceptual": 1}, "crop": 16}, ("loss.perceptual is 1", "relu5_3", "images of 16")),
    ({"loss": {"perceptual": 1}, "schedule": {"start_resolution": 16}}, ("relu5_3", "images of 16")),
    (
        {"loss": {"perceptual": 2, "perceptual_layer": "relu4_3"}, "crop": 8},
        ("loss.perceptual is 2", "relu4_3", "images of 8"),
    ),
    ({"loss": {"adversarial": 0}}, ("loss.adversarial", "greater than 0")),
    ({"loss": {"style_prior_decay": 1}}, ("loss.style_prior_decay", "less than 1")),
    ({"loss": {"cycle": -1}}, ("loss.cycle", "greater than or equal to 0")),
    ({"loss": {"name": "wgan_gp"}}, ("loss.name", "'hinge'")),
    ({"loss": {"recon": 1}}, ("loss.recon", "Extra inputs")),
    ({"generator_optimizer": {"halve_kimg": 0}}, ("generator_optimizer.halve_kimg", "greater than 0")),
    ({"resolution": 48}, ("resolution", "48 is no resolution")),
]


@pytest.mark.parametrize(("block", "words"), REFUSED, ids=lambda one: str(one)[:60])
def test_what_does_not_fit_is_refused_by_name(block: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        settings_of(**block)
    for word in words:
        assert word in str(error.value)


def test_all_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as error:
        settings_of(crop=18, generator=GENERATOR | {"most": 6}, loss={"perceptual": 1})
    for word in ("crop is 18", "6 channels", "relu5_3"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "block",
    [
        {"crop": 8},
        {"crop": 12},
        {"crop": 32},
        {"schedule": {"start_resolution": 16}},
        {"schedule": {"start_resolution": 32}, "crop": 16},
        {"loss": {"perceptual": 1}},
        {"loss": {"perceptual": 1, "perceptual_layer": "relu3_3"}, "crop": 8},
        {"loss": {"perceptual": 1, "perceptual_layer": "relu4_3"}, "crop": 16},
        {"resolution": 8},
        {"resolution": 8, "generator": GENERATOR | {"style_downs": 3}, "schedule": {"start_resolution": 4}},
    ],
    ids=str,
)
def test_what_is_just_large_enough_works(block: dict[str, Any]) -> None:
    """The networks take images of every resolution that the schedule has, in fades as well."""
    settings = settings_of(**block)
    side = settings.crop or settings.resolution
    model = Munit(settings, 1, torch.float32, 0, DOMAINS)
    own, judge = model.generator.generator("cat"), model.discriminator.discriminator("cat")
    for number in range(settings.levels + 1):
        for alpha in (1.0, 0.5) if number < settings.levels else (1.0,):
            level = Level(number, alpha)
            image = torch.rand(1, 3, side >> number, side >> number)
            content, style = own.encode(image, level=level)
            judge(own.decode(content, style, level=level), level)


def test_levels_are_the_doublings_from_the_first_resolution() -> None:
    settings = settings_of(**GROWING)
    assert (settings.first_resolution, settings.levels) == (16, 2)
    assert (settings_of().first_resolution, settings_of().levels) == (32, 0)


ONCE = {"generator": GENERATOR | {"content_downs": 1, "style_downs": 1}, "discriminator": JUDGE | {"layers": 1}}


@pytest.mark.parametrize(
    "block",
    [
        {"resolution": 8, "crop": 4} | ONCE,
        {"resolution": 8, "schedule": {"start_resolution": 4}},
        {"resolution": 4} | ONCE,
    ],
    ids=["crop", "schedule", "resolution"],
)
def test_consistency_of_images_too_small_to_be_moved_is_refused(block: dict[str, Any]) -> None:
    """What moves them wants 8 pixels."""
    assert settings_of(**block)
    with pytest.raises(ValidationError, match=r"loss.consistency is"):
        settings_of(**block, loss={"consistency": 1.0})


def test_fp16_is_refused() -> None:
    """At 1024x1024 a pixel's part of the image term's gradient lies among fp16's smallest numbers."""
    blocks = {
        "run": {"name": "first", "total_kimg": 1},
        "data": {"domains": {"a": "one", "b": "other"}},
        "recipe": {"name": "munit", "resolution": 64},
        "batch": {"size": 1},
    }
    assert Configuration.model_validate(blocks | {"precision": "bf16"}).recipe.translates
    with pytest.raises(ValidationError, match=r"precision is fp16, whose range .* munit; bf16, fp32 and fp64"):
        Configuration.model_validate(blocks | {"precision": "fp16"})


def test_styles_of_samples_are_for_translations_alone() -> None:
    blocks = {
        "run": {"name": "first", "total_kimg": 1},
        "data": {"shards": "one"},
        "recipe": {"name": "progressive", "resolution": 64},
        "samples": {"styles": 3},
    }
    with pytest.raises(
        ValidationError, match=r"samples\.styles is 3, but progressive makes images from latents; set it "
    ):
        Configuration.model_validate(blocks)
