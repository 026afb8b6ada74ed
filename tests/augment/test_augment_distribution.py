"""How often each transformation happens and how it is spread: counted over many samples, with a fixed seed."""

from __future__ import annotations

import math

import pytest
import torch
from augment_literal import ALL, choice, noise, only, source
from torch import Tensor

from hires_gan.augment import bands, blit, colour, geometry
from hires_gan.augment.draws import NUMBERS, draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.settings import AugmentSettings, Transformation
from hires_gan.randomness import Purpose

COUNT = 40_000
P = 0.37


def near(share: Tensor, probability: float) -> bool:
    """Whether a share of COUNT samples lies within four standard deviations."""
    return abs(float(share.double().mean()) - probability) < 4 * math.sqrt(probability * (1 - probability) / COUNT)


def centred(values: Tensor) -> bool:
    return abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(values.numel())


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("rotate", "bands")])
def test_a_transformation_happens_with_its_probability(name: Transformation, strength: float) -> None:
    settings = AugmentSettings.model_validate({"preset": "bgcfnc", name: strength})
    assert near(choice(settings, COUNT, P).happens(name), P * strength)


def test_a_rotation_happens_with_its_probability_though_it_has_two_chances() -> None:
    picked = choice(only("rotate"), COUNT, P)
    happens, (before, behind) = geometry._angles(picked)
    assert near(happens, P)
    assert near(before != 0, 1 - math.sqrt(1 - P))
    assert near(behind != 0, 1 - math.sqrt(1 - P))
    angles = before[before != 0]
    assert centred(angles)
    assert float(angles.var()) == pytest.approx(math.pi**2 / 3, rel=0.05)


def test_at_p_1_everything_happens() -> None:
    picked = choice(AugmentSettings(preset="bgcfnc"), COUNT, 1.0)
    assert all(bool(picked.happens(name).all()) for name in ALL)
    assert bool(geometry._angles(picked)[0].all())


def test_each_band_is_amplified_with_its_probability() -> None:
    changes, gain = bands.gains(choice(only("bands"), COUNT, P))
    assert near(changes, 1 - (1 - P) ** 4)
    for band in range(4):
        alone = only("bands", bands_on=tuple(float(b == band) for b in range(4)))
        _, gain = bands.gains(choice(alone, COUNT, P))
        amplified = (gain != 1).any(1)
        assert near(amplified, P)
        assert centred((gain[amplified, band] / gain[amplified, (band + 1) % 4]).log2())


def test_flips_and_quarter_turns_are_evenly_spread() -> None:
    """Seen on images: a flip half as often as it is applied, each of the turns a quarter as often."""
    x = torch.arange(64, dtype=torch.float32).reshape(1, 1, 8, 8).expand(COUNT, 1, 8, 8)
    flipped = augment(x, draw(source(COUNT), Purpose.AUGMENT_REAL, only("xflip"), x.shape), P, only("xflip"))
    assert near(flipped[:, 0, 0, 0] != 0, P / 2)
    turned = augment(x, draw(source(COUNT), Purpose.AUGMENT_REAL, only("rotate90"), x.shape), P, only("rotate90"))
    for corner in (7, 63, 56):
        assert near(turned[:, 0, 0, 0] == corner, P / 4)


def test_whole_translations_are_spread_evenly_about_zero() -> None:
    x, y = blit.translation(choice(only("xint"), COUNT, 1.0), 64)
    for offset in (x, y):
        assert (offset == offset.round()).all()
        assert int(offset.min()) == -8
        assert int(offset.max()) == 8
        assert centred(offset)
        assert near(offset == 3, 1 / 16)
        assert near(offset == 8, 1 / 32)
    assert abs(float(torch.corrcoef(torch.stack((x, y)))[0, 1])) < 4 / math.sqrt(COUNT)


@pytest.mark.parametrize(("name", "std"), [("scale", 0.2), ("aniso", 0.2)])
def test_scales_are_log_normal(name: Transformation, std: float) -> None:
    _, inverse = geometry.general(choice(only(name), COUNT, 1.0), (torch.zeros(COUNT).double(),) * 2, 64)
    exponent = -inverse[:, 0, 0].log2()
    assert centred(exponent)
    assert float(exponent.std()) == pytest.approx(std, rel=0.03)


def test_fractional_translations_are_normal() -> None:
    _, inverse = geometry.general(choice(only("xfrac"), COUNT, 1.0), (torch.zeros(COUNT).double(),) * 2, 64)
    for offset in (inverse[:, 0, 2], inverse[:, 1, 2]):
        assert centred(offset)
        assert float(offset.std()) == pytest.approx(8, rel=0.03)


def test_colours_change_without_a_drift() -> None:
    _, brighter = colour.colours(choice(only("brightness"), COUNT, 1.0))
    assert centred(brighter[:, 0, 3])
    assert float(brighter[:, 0, 3].std()) == pytest.approx(0.2, rel=0.03)
    _, contrast = colour.colours(choice(only("contrast"), COUNT, 1.0))
    assert centred(contrast[:, 0, 0].log2())
    assert float(contrast[:, 0, 0].log2().std()) == pytest.approx(0.5, rel=0.03)
    _, vivid = colour.colours(choice(only("saturation"), COUNT, 1.0))
    factor = (vivid[:, 0, 0] - vivid[:, 0, 1]).log2()
    assert centred(factor)
    assert float(factor.std()) == pytest.approx(1.0, rel=0.03)
    flips, _ = colour.colours(choice(only("lumaflip"), COUNT, P))
    assert near(flips, P / 2)
    _, hue = colour.colours(choice(only("hue"), COUNT, 1.0))
    assert centred(hue[:, 0, 1] - hue[:, 1, 0])


def test_noise_has_no_mean_and_its_strength_the_half_normals() -> None:
    settings = only("noise")
    x = torch.zeros(2000, 1, 8, 8, dtype=torch.float64)
    added = augment(x, draw(source(2000), Purpose.AUGMENT_FAKE, settings, x.shape), 1.0, settings)
    assert centred(added)
    assert float(added.flatten(1).std(1).mean()) == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.05)


def test_the_numbers_of_a_sample_know_nothing_of_each_other() -> None:
    x = noise(1, 1, 8, 8).expand(COUNT, 1, 8, 8)
    draws = draw(source(COUNT), Purpose.AUGMENT_GENERATOR, only("noise"), x.shape)
    assert draws.noise is not None
    both = torch.cat((draws.numbers, draws.noise), dim=1).double().T
    correlation = torch.corrcoef(both)[:NUMBERS] - torch.eye(NUMBERS, both.shape[0], dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(COUNT)
