"""The whole augmentation: nothing at p = 0, each sample by itself, twice differentiable, the same numbers twice."""

from __future__ import annotations

import pytest
import torch
from augment_literal import ALL, choice, noise, only, source
from torch import Tensor

from hires_gan.augment.draws import NUMBERS, Draws, draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.settings import PRESETS, AugmentSettings
from hires_gan.randomness import Purpose, RandomSource, SampleRandom

EVERYTHING = AugmentSettings(preset="bgcfnc")


def drawn(x: Tensor, settings: AugmentSettings = EVERYTHING, first: int = 0) -> Draws:
    return draw(source(x.shape[0], first=first), Purpose.AUGMENT_REAL, settings, x.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [0, 0.0, torch.tensor(0.0)], ids=["int", "float", "tensor"])
def test_at_p_0_the_images_come_back_bit_for_bit(p: Tensor | float, dtype: torch.dtype) -> None:
    x = noise(4, 3, 9, 9, dtype=dtype)
    assert torch.equal(augment(x, drawn(x), p, EVERYTHING), x)


@pytest.mark.parametrize("name", ALL)
def test_with_the_strength_0_a_transformation_is_not_there(name: str) -> None:
    x = noise(8, 3, 8, 8)
    assert torch.equal(augment(x, drawn(x), 1.0, only()), x)
    assert not torch.equal(augment(x, drawn(x, only(name)), 1.0, only(name)), x)


def test_an_image_to_which_nothing_is_applied_comes_back_bit_for_bit() -> None:
    x = noise(64, 3, 8, 8)
    settings = AugmentSettings(preset="geom")
    happens = torch.stack([choice(settings, 64, 0.2).happens(name) for name in ("scale", "aniso", "xfrac")]).any(0)
    each = 1 - 0.8**0.5
    turns = [choice(settings, 64, 0.2).uniform("rotate", place) < each for place in (0, 2)]
    happens = happens | turns[0] | turns[1]
    same = (augment(x, drawn(x, settings), 0.2, settings) == x).flatten(1).all(1)
    assert torch.equal(same, ~happens)
    assert 10 < happens.sum() < 54


def test_a_number_and_a_tensor_are_the_same_probability() -> None:
    x = noise(16, 3, 8, 8)
    found = [augment(x, drawn(x), p, EVERYTHING) for p in (0.3, torch.tensor(0.3, dtype=torch.float64))]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_sample_is_augmented_alike_in_any_batch(dtype: torch.dtype, tolerance: float) -> None:
    x = noise(12, 3, 16, 16, dtype=dtype)
    x[3] *= 100  # what a neighbour holds does not matter either
    draws = drawn(x)
    together = augment(x, draws, 0.8, EVERYTHING)
    for first, size in ((0, 1), (1, 3), (4, 8)):
        part = x[first : first + size]
        alone = augment(part, drawn(part, first=first), 0.8, EVERYTHING)
        torch.testing.assert_close(alone, together[first : first + size], atol=tolerance, rtol=tolerance)


def test_gradients_are_those_of_any_batch() -> None:
    x = noise(6, 3, 8, 8).requires_grad_()
    (together,) = torch.autograd.grad(augment(x, drawn(x), 1.0, EVERYTHING).sin().sum(), x)
    for first in range(0, 6, 2):
        part = x.detach()[first : first + 2].requires_grad_()
        loss = augment(part, drawn(part, first=first), 1.0, EVERYTHING).sin().sum()
        torch.testing.assert_close(torch.autograd.grad(loss, part)[0], together[first : first + 2])


def test_another_transformation_does_not_move_the_draws_of_the_first() -> None:
    x = noise(4, 3, 8, 8)
    assert torch.equal(drawn(x, only("xflip")).numbers, drawn(x).numbers)
    assert drawn(x, only("xflip")).noise is None


def test_the_noise_shares_no_word_of_the_generator_with_the_decisions() -> None:
    x = noise(4, 1, 8, 8)
    longer = RandomSource(7).normal(Purpose.AUGMENT_REAL, torch.arange(4), (64 + 64,))
    assert torch.equal(drawn(x).noise, longer[:, 64:])  # the uniforms are words 0 to 40 of the same positions
    assert NUMBERS == 41


def test_draws_differ_between_purposes_samples_and_seeds() -> None:
    x = noise(2, 3, 8, 8)
    found = [
        draw(SampleRandom(RandomSource(seed), torch.tensor([0, 1])), purpose, EVERYTHING, x.shape).numbers
        for seed in (0, 1)
        for purpose in (Purpose.AUGMENT_REAL, Purpose.AUGMENT_FAKE, Purpose.AUGMENT_GENERATOR)
    ]
    rows = torch.cat(found)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize("preset", ["blit", "geom", "color", "filter", "noise", "cutout"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_group_is_differentiable_twice(preset: str, channels: int) -> None:
    settings = AugmentSettings(preset=preset)
    x = noise(1, channels, 8, 8).requires_grad_()
    draws = drawn(x, settings)

    def squashed(x: Tensor) -> Tensor:
        """Few outputs, which keeps the numerical Jacobian small, and with a curvature."""
        return augment(x, draws, 1.0, settings).sin().unfold(2, 4, 4).unfold(3, 4, 4).sum((1, 4, 5))

    assert torch.autograd.gradcheck(squashed, x)
    assert torch.autograd.gradgradcheck(squashed, x)


def test_r1_through_the_augmentation_has_the_gradient_of_finite_differences() -> None:
    x, weight = noise(2, 3, 8, 8).requires_grad_(), noise(3, 8, 8, seed=5).requires_grad_()

    def penalty(weight: Tensor) -> Tensor:
        score = (augment(x, drawn(x), 1.0, EVERYTHING) * weight).sin().sum()
        return torch.autograd.grad(score, x, create_graph=True)[0].square().sum()

    (gradient,) = torch.autograd.grad(penalty(weight), weight)
    direction, step = noise(3, 8, 8, seed=6), 1e-5
    slope = (penalty(weight + step * direction) - penalty(weight - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_twice_the_same_numbers(deterministic: bool) -> None:
    x = noise(3, 3, 16, 16, dtype=torch.float32).requires_grad_()

    def once() -> list[Tensor]:
        y = augment(x, drawn(x), 0.9, EVERYTHING)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [y, first, *torch.autograd.grad(first.square().sum(), x)]

    torch.use_deterministic_algorithms(deterministic)
    try:
        assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = noise(4, 3, 16, 16, dtype=dtype)
    assert torch.equal(augment(x, drawn(x), 1.0, EVERYTHING), augment(x.float(), drawn(x), 1.0, EVERYTHING).to(dtype))


def test_float32_is_near_float64() -> None:
    x = noise(8, 3, 32, 32) / 3
    single = augment(x.float(), drawn(x), 1.0, EVERYTHING)
    torch.testing.assert_close(single.double(), augment(x, drawn(x), 1.0, EVERYTHING), atol=3e-4, rtol=1e-4)


def test_channels_last_images_are_images() -> None:
    x = noise(4, 3, 8, 8)
    turned = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(turned, drawn(x), 1.0, EVERYTHING), augment(x, drawn(x), 1.0, EVERYTHING))


def test_an_empty_batch_stays_empty() -> None:
    x = torch.zeros(0, 3, 8, 8)
    assert augment(x, drawn(x), 0.5, EVERYTHING).shape == x.shape


def test_what_was_first_used_without_gradients_has_gradients_later() -> None:
    """The filters are kept; torch refuses to save those that were made in inference mode."""
    from hires_gan.augment import wavelets

    wavelets.resampling.cache_clear()
    wavelets.splitting.cache_clear()
    x = noise(1, 3, 8, 8)
    with torch.inference_mode():
        augment(x, drawn(x), 1.0, EVERYTHING)
    x.requires_grad_()
    augment(x, drawn(x), 1.0, EVERYTHING).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8), r"images has the shape \[2, 3, 8\]; square images"),
        ((2, 2, 8, 8), r"\[n, 3 or 1, s, s\] are allowed"),
        ((2, 3, 8, 9), "square images"),
        ((2, 3, 4, 4), "4 pixels wide; augmentation wants at least 8"),
    ],
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment(torch.zeros(shape), Draws(torch.zeros(2, NUMBERS)), 0.5, EVERYTHING)


def test_other_mistakes_are_refused() -> None:
    x = noise(2, 3, 8, 8)
    with pytest.raises(ValueError, match="dtype int64; float64, float32, float16 and bfloat16 are allowed"):
        augment(x.long(), drawn(x), 0.5, EVERYTHING)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="a probability in \\[0, 1\\] is allowed"):
            augment(x, drawn(x), p, EVERYTHING)
    with pytest.raises(ValueError, match=r"numbers of the shape \[1, 41\]; \[2, 41\] is wanted"):
        augment(x, drawn(x[:1]), 0.5, EVERYTHING)
    with pytest.raises(ValueError, match=r"noise of the shape None; \[2, 192\] is wanted"):
        augment(x, drawn(x, only("xflip")), 0.5, EVERYTHING)


def test_presets_are_the_published_groups() -> None:
    assert PRESETS["bg"] == ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac")
    assert PRESETS["bgc"] == (*PRESETS["bg"], "brightness", "contrast", "lumaflip", "hue", "saturation")
    assert PRESETS["bgcfnc"] == (*PRESETS["bgc"], "bands", "noise", "cutout")
    assert PRESETS["bgcf"] == (*PRESETS["bgc"], "bands")
    assert PRESETS["bgcfn"] == (*PRESETS["bgcf"], "noise")
    assert (PRESETS["noise"], PRESETS["cutout"], PRESETS["filter"]) == (("noise",), ("cutout",), ("bands",))


def test_a_strength_that_is_set_takes_the_presets_place() -> None:
    settings = AugmentSettings.model_validate({"preset": "blit", "xflip": 0, "hue": 0.5})
    assert {name: settings.strength(name) for name in ALL if settings.strength(name)} == {
        "rotate90": 1,
        "xint": 1,
        "hue": 0.5,
    }
    for wrong in ({"hue": 1.5}, {"xint_max": 0.6}, {"preset": "all"}, {"flip": 1}):
        with pytest.raises(ValueError):
            AugmentSettings.model_validate(wrong)
