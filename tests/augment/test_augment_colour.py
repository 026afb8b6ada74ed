"""Colours against one pixel at a time, frequency bands against direct convolution, noise and cutout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from augment_literal import Array, chosen, mirrored, noise, number_of_normal, only
from numpy.typing import NDArray

from hires_gan.augment import bands
from hires_gan.augment.colour import colours
from hires_gan.augment.draws import Choice, Draws
from hires_gan.augment.pipe import augment
from hires_gan.augment.wavelets import halfband, spread

COLOURS = ("brightness", "contrast", "lumaflip", "hue", "saturation")
NUMBERS = {
    "brightness": [0, number_of_normal(1.5)],
    "contrast": [0, number_of_normal(-0.7)],
    "lumaflip": [0, 0.3],
    "hue": [0, 0.8],
    "saturation": [0, number_of_normal(0.9)],
}


def recoloured(pixel: Array, names: tuple[str, ...]) -> Array:
    """One pixel, changed in the published order, in terms of its part along the grey axis and the rest."""
    grey = np.ones(3) / math.sqrt(3.0)
    if "brightness" in names:
        pixel = pixel + 0.2 * 1.5
    if "contrast" in names:
        pixel = pixel * 2 ** (0.5 * -0.7)
    if "lumaflip" in names:
        pixel = pixel - 2 * grey * (grey @ pixel)
    if "hue" in names:
        angle, along = 0.6 * math.pi, grey * (grey @ pixel)
        across = pixel - along
        pixel = along + across * math.cos(angle) + np.cross(grey, across) * math.sin(angle)
    if "saturation" in names:
        along = grey * (grey @ pixel)
        pixel = along + (pixel - along) * 2**0.9
    return pixel


@pytest.mark.parametrize("names", [*((name,) for name in COLOURS), COLOURS], ids="+".join)
def test_colours_change_pixel_by_pixel(names: tuple[str, ...]) -> None:
    x = noise(2, 3, 8, 8)
    found = augment(x, chosen(2, **{name: NUMBERS[name] for name in names}), 1, only(*names))
    for image in range(2):
        for row in range(8):
            for column in range(8):
                expected = recoloured(x[image, :, row, column].numpy(), names)
                assert found[image, :, row, column].numpy() == pytest.approx(expected, abs=1e-8)


def test_a_grey_image_is_a_coloured_one_with_three_equal_channels() -> None:
    x, settings = noise(2, 1, 8, 8), only(*COLOURS)
    draws = chosen(2, **NUMBERS)
    coloured = augment(x.expand(2, 3, 8, 8), draws, 1, settings)
    torch.testing.assert_close(augment(x, draws, 1, settings), coloured.mean(1, keepdim=True))


def test_a_luma_flip_that_draws_its_other_half_changes_nothing() -> None:
    settings = only("lumaflip")
    changes, matrix = colours(Choice(chosen(1, lumaflip=[0, 0.7]), torch.tensor(1.0), settings))
    assert changes.tolist() == [False]
    assert torch.equal(matrix[0], torch.eye(4, dtype=torch.float64)[:3])


def bank() -> list[NDArray[np.float64]]:
    """The four bands' filters, the lowest first, each with 43 taps about the middle."""
    low = [np.array(spread(halfband(), step)) for step in (1, 2, 4)]
    high = []
    for taps in low:
        high.append(-taps)
        high[-1][len(taps) // 2] += 1
    raw = [
        np.convolve(np.convolve(low[0], low[1]), low[2]),
        np.convolve(np.convolve(low[0], low[1]), high[2]),
        np.convolve(low[0], high[1]),
        high[0],
    ]
    return [np.pad(taps, (43 - len(taps)) // 2) for taps in raw]


def test_the_bands_add_up_to_the_image() -> None:
    delta = np.zeros(43)
    delta[21] = 1
    assert sum(bank()) == pytest.approx(delta, abs=1e-15)


def test_each_band_lets_its_octave_through_and_little_of_the_others() -> None:
    middles = np.array([0.0, 3 / 16, 3 / 8, 1.0]) * np.pi
    response = np.array([np.exp(-1j * np.outer(middles, np.arange(-21, 22))) @ taps for taps in bank()])
    assert np.abs(response.imag).max() < 1e-12
    assert np.diag(response.real).min() > 0.7
    assert np.abs(response.real - np.diag(np.diag(response.real))).max() < 0.25


@pytest.mark.parametrize("side", [8, 30])  # 8: the filter reaches over several reflections
def test_filtering_is_that_of_direct_convolution(side: int) -> None:
    z = [0.8, -1.1, 0.4, 2.0]
    x = noise(1, 1, side, side)
    draws = chosen(1, bands=[value for number in z for value in (0, number_of_normal(number))])
    gain = np.ones(4)
    for band, number in enumerate(z):
        gains = np.ones(4)
        gains[band] = 2**number
        gain *= gains / math.sqrt((np.array([10, 1, 1, 1]) / 13) @ gains**2)
    taps = sum(g * band for g, band in zip(gain, bank(), strict=True))
    matrix = np.zeros((side, side))
    for row in range(side):
        for offset in range(-21, 22):
            matrix[row, mirrored(row + offset, side)] += taps[21 + offset]
    expected = matrix @ x[0, 0].numpy() @ matrix.T
    assert augment(x, draws, 1, only("bands"))[0, 0].numpy() == pytest.approx(expected, abs=1e-7)


def test_gains_keep_the_expected_power() -> None:
    settings = only("bands", bands_on=(0, 0, 1, 0))
    _, gain = bands.gains(Choice(chosen(1, bands=[0, 0.5, 0, 0.5, 0, 0.9, 0, 0.5]), torch.tensor(1.0), settings))
    assert (torch.tensor(bands.POWER) * gain[0] ** 2).sum() == pytest.approx(1)
    assert gain[0, 2] > gain[0, 0] == gain[0, 1] == gain[0, 3]


def test_a_constant_image_is_scaled_by_the_lowest_bands_gain_along_both_axes() -> None:
    settings = only("bands", bands_on=(1, 0, 0, 0))
    draws = chosen(1, bands=[0, number_of_normal(1)])
    _, gain = bands.gains(Choice(draws, torch.tensor(1.0), settings))
    found = augment(torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64), draws, 1, settings)
    torch.testing.assert_close(found, torch.full_like(found, 0.3) * gain[0, 0] ** 2)


def test_noise_is_added_with_a_half_normal_strength() -> None:
    x, added = noise(2, 3, 8, 8), noise(2, 3 * 8 * 8, seed=1)
    draws = Draws(chosen(2, noise=[0, number_of_normal(-1.3)]).numbers, added)
    found = augment(x, draws, 1, only("noise"))
    torch.testing.assert_close(found, x + 0.13 * added.reshape(x.shape))


@pytest.mark.parametrize(
    ("x", "y", "columns", "rows"),
    [
        (0.5, 0.5, (4, 12), (4, 12)),
        (0.0, 0.5, (0, 4), (4, 12)),
        (0.99, 0.0, (12, 16), (0, 4)),
        (0.3, 0.72, (1, 9), (8, 16)),
    ],
)
def test_cutout_sets_a_square_of_half_the_side_to_zero(
    x: float, y: float, columns: tuple[int, int], rows: tuple[int, int]
) -> None:
    image = noise(1, 3, 16, 16)
    expected = image.clone()
    expected[:, :, rows[0] : rows[1], columns[0] : columns[1]] = 0
    assert torch.equal(augment(image, chosen(1, cutout=[0, x, y]), 1, only("cutout")), expected)
