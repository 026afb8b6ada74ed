"""Blitting and geometry: exact copies, a literal resampler, and the warp's derivatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from augment_literal import choice, chosen, mirrored, noise, number_of_normal, only, resampled, smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.augment import geometry
from hires_gan.augment.blit import translated
from hires_gan.augment.draws import Choice
from hires_gan.augment.matrices import product, rotate2d, scale2d, translate2d
from hires_gan.augment.pipe import augment
from hires_gan.augment.reflection import reflected
from hires_gan.augment.warp import Frame, adjoint, adjoint_in_order, positions, warp
from hires_gan.augment.wavelets import SYM6

ONE = torch.tensor(1.0, dtype=torch.float64)


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_flip_is_exact() -> None:
    x = noise(1, 3, 9, 9)
    assert torch.equal(augment(x, chosen(1, xflip=[0, 0.49]), 1, only("xflip")), x.flip(3))
    assert torch.equal(augment(x, chosen(1, xflip=[0, 0.51]), 1, only("xflip")), x)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_quarter_turns_are_exact_and_come_behind_the_flip(quarters: int, flip: bool) -> None:
    x = noise(1, 3, 8, 8)
    draws = chosen(1, xflip=[0, 0.2 if flip else 0.8], rotate90=[0, quarters / 4 + 0.1])
    expected = torch.rot90(x.flip(3) if flip else x, quarters, (2, 3))
    assert torch.equal(augment(x, draws, 1, only("xflip", "rotate90")), expected)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, -1.0), (-0.5, 0.7), (0.999, 0.3)])
def test_whole_translations_copy_pixels_and_reflect_at_the_border(x: float, y: float) -> None:
    side = 16
    image = noise(1, 3, side, side)
    moved = augment(image, chosen(1, xint=[0, (x + 1) / 2, (y + 1) / 2]), 1, only("xint"))
    by_x, by_y = round(x * 2), round(y * 2)  # an eighth of 16 pixels
    for row in range(side):
        for column in range(side):
            seen = image[0, :, mirrored(row - by_y, side), mirrored(column - by_x, side)]
            assert torch.equal(moved[0, :, row, column], seen)


@given(st.integers(8, 12), st.integers(-7, 7), st.integers(-7, 7), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_gradient_of_a_translation_is_its_adjoint(side: int, x: int, y: int, seed: int) -> None:
    image, other = noise(1, 2, side, side, seed=seed).requires_grad_(), noise(1, 2, side, side, seed=seed + 100)
    by = at(x), at(y)
    moved = translated(image, by)
    literal = torch.zeros_like(other)
    for row in range(side):
        for column in range(side):
            literal[0, :, mirrored(row - y, side), mirrored(column - x, side)] += other[0, :, row, column]
    (gradient,) = torch.autograd.grad((moved * other).sum(), image)
    torch.testing.assert_close(gradient, literal)


def transformation(name: str) -> Tensor:
    """From the result to the image, in pixels from the centre: `[1, 3, 3]`."""
    turn = rotate2d(at(0.5))
    return {
        "identity": scale2d(at(1), at(1)),
        "larger": scale2d(at(0.6), at(0.6)),
        "smaller": scale2d(at(2.3), at(2.3)),
        "turned": turn,
        "stretched between turns": product(product(turn, scale2d(at(0.7), at(1.4))), rotate2d(at(-2.0))),
        "moved": translate2d(at(1.3), at(-2.6)),
        "far away": product(translate2d(at(41.7), at(-30.2)), turn),
    }[name]


NAMES = ["identity", "larger", "smaller", "turned", "stretched between turns", "moved", "far away"]


@pytest.mark.parametrize("side", [8, 11])
@pytest.mark.parametrize("name", NAMES)
def test_resampling_is_that_of_the_literal_one(name: str, side: int) -> None:
    x, inverse = noise(1, 1, side, side, seed=side), transformation(name)
    expected = resampled(x[0, 0].numpy(), inverse[0].numpy(), np.array(SYM6))
    found = geometry.resampled(x, inverse)[0, 0].numpy()
    assert found == pytest.approx(expected, abs=1e-12)


def test_resampling_without_a_transformation_gives_the_image_back() -> None:
    """The filter's even shifts are orthogonal: enlarging and reducing is the identity."""
    x = noise(2, 3, 16, 16)
    torch.testing.assert_close(geometry.resampled(x, transformation("identity").expand(2, 3, 3)), x)


def test_resampling_at_a_whole_translation_copies_what_stays_inside() -> None:
    x = noise(1, 3, 24, 24)
    found = geometry.resampled(x, translate2d(at(-3), at(2)))  # the image moves by (3, -2)
    torch.testing.assert_close(found[..., 5:17, 8:18], x[..., 7:19, 5:15])


def test_resampling_a_quarter_turn_is_a_quarter_turn() -> None:
    x = smooth(32)
    found = geometry.resampled(x, rotate2d(at(math.pi / 2)))  # x of the result along y of the image
    inside = (..., slice(6, -6), slice(6, -6))  # away from the mirror's edge in the image
    torch.testing.assert_close(found[inside], torch.rot90(x, 1, (2, 3))[inside], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "numbers", "inverse"),
    [
        ("scale", [0, number_of_normal(1.5)], scale2d(at(2**-0.3), at(2**-0.3))),
        ("aniso", [0, number_of_normal(-1)], scale2d(at(2**0.2), at(2**-0.2))),
        ("rotate", [0, 0.75, 2, 0], rotate2d(at(-math.pi / 2))),
        ("rotate", [2, 0, 0, 0.25], rotate2d(at(math.pi / 2))),
        ("xfrac", [0, number_of_normal(1), number_of_normal(-2)], translate2d(at(-2), at(4))),
    ],
)
def test_each_transformation_has_its_magnitude_and_direction(name: str, numbers: list[float], inverse: Tensor) -> None:
    picked = Choice(chosen(1, **{name: numbers}), ONE, only(name))
    happens, found = geometry.general(picked, (at(0), at(0)), 16)
    assert happens.tolist() == [True]
    torch.testing.assert_close(found, inverse, atol=1e-9, rtol=0)


def test_the_transformations_are_composed_in_the_published_order() -> None:
    """On positions of the image: whole translation, scale, rotation, stretch, rotation, translation."""
    names = ("xint", "scale", "rotate", "aniso", "xfrac")
    z = number_of_normal
    draws = chosen(1, scale=[0, z(1)], rotate=[0, 0.6, 0, 0.7], aniso=[0, z(2)], xfrac=[0, z(0.5), z(-1)])
    _, inverse = geometry.general(Choice(draws, ONE, only(*names)), (at(2), at(-1)), 16)
    forward = translate2d(at(2), at(-1))
    for step in (
        scale2d(at(2**0.2), at(2**0.2)),
        rotate2d(at(0.2 * math.pi)),
        scale2d(at(2**0.4), at(2**-0.4)),
        rotate2d(at(0.4 * math.pi)),
        translate2d(at(1), at(-2)),
    ):
        forward = product(step, forward)
    torch.testing.assert_close(product(forward, inverse), torch.eye(3, dtype=torch.float64)[None], atol=1e-9, rtol=0)


def test_a_whole_translation_joins_in_the_resampling() -> None:
    """The image is moved before the border reflects it: nothing that leaves it on the way is lost."""
    x = noise(1, 3, 16, 16)
    draws = chosen(1, xint=[0, 0.999, 0.5], scale=[0, number_of_normal(-2)])
    found = augment(x, draws, 1, only("xint", "scale"))
    inverse = product(translate2d(at(-2), at(0)), scale2d(at(2**0.4), at(2**0.4)))
    torch.testing.assert_close(found, geometry.resampled(x, inverse))


@pytest.mark.parametrize("margin", [1, 7, 8, 30])
def test_reflection_repeats_until_the_margin_is_full(margin: int) -> None:
    x = noise(1, 1, 8, 5)
    found = reflected(x, 3, margin, 2 * margin)
    expected = [x[0, 0, :, mirrored(place, 5)] for place in range(-margin, 5 + 2 * margin)]
    assert torch.equal(found[0, 0], torch.stack(expected, dim=1))


FRAME = Frame(side=9, centre=3.5, period=8, out=15, out_centre=7.2)


def random_maps(count: int, seed: int) -> Tensor:
    """Maps that enlarge, reduce and turn by a lot: `[count, 2, 3]`."""
    return noise(count, 2, 3, seed=seed) * at(1, 1, 8)


@pytest.mark.parametrize("seed", range(5))
def test_both_adjoints_of_the_warp_are_its_transpose(seed: int) -> None:
    maps, x = random_maps(3, seed), noise(3, 2, 9, 9, seed=seed)
    y = noise(3, 2, 15, 15, seed=seed + 50)
    product_of_both = (warp(x, maps, FRAME) * y).sum((1, 2, 3))
    for way in (adjoint, adjoint_in_order):
        dx = way(y, positions(maps, FRAME, torch.float64), FRAME.side)
        torch.testing.assert_close((x * dx).sum((1, 2, 3)), product_of_both)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_warp_is_differentiable_twice(deterministic: bool) -> None:
    maps, x = random_maps(2, 3), noise(2, 1, 9, 9).requires_grad_()
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert torch.autograd.gradcheck(lambda x: warp(x, maps, FRAME), x)
        assert torch.autograd.gradgradcheck(lambda x: warp(x, maps, FRAME).sin(), x)
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_choose_the_ordered_adjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def ordered(dy: Tensor, grid: Tensor, side: int) -> Tensor:
        calls.append(True)
        return adjoint_in_order(dy, grid, side)

    monkeypatch.setattr("hires_gan.augment.warp.adjoint_in_order", ordered)
    x, maps = noise(2, 3, 9, 9, dtype=torch.float32).requires_grad_(), random_maps(2, 4)
    gradients = []
    for deterministic in (False, True, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            gradients += torch.autograd.grad(warp(x, maps, FRAME).square().sum(), x)
        finally:
            torch.use_deterministic_algorithms(False)
    assert len(calls) == 2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(gradients[1], gradients[2])


def test_images_are_resampled_a_few_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, picked = noise(5, 3, 8, 8), choice(only("scale", "rotate", "aniso", "xfrac"), 5, 1.0)
    whole = geometry.moved(x, picked)
    monkeypatch.setattr(geometry, "_AT_ONCE", 2 * 64)
    calls: list[int] = []
    original = geometry.resampled

    def counted(images: Tensor, maps: Tensor) -> Tensor:
        calls.append(len(images))
        return original(images, maps)

    monkeypatch.setattr(geometry, "resampled", counted)
    torch.testing.assert_close(geometry.moved(x, picked), whole)
    assert calls == [2, 2, 1]
