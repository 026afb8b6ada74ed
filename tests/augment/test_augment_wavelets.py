"""The symlets' published taps against what defines them, and against their derivation from scratch."""

from __future__ import annotations

import itertools
import math
from math import comb

import numpy as np
import pytest

from hires_gan.augment.wavelets import SYM2, SYM6, halfband, spread


@pytest.mark.parametrize("taps", [SYM2, SYM6], ids=["sym2", "sym6"])
def test_a_symlet_is_orthogonal_to_its_even_shifts_and_has_its_vanishing_moments(taps: tuple[float, ...]) -> None:
    h, size = np.array(taps), len(taps)
    assert h.sum() == pytest.approx(math.sqrt(2.0), abs=1e-12)
    for shift in range(0, size, 2):
        assert h[shift:] @ h[: size - shift] == pytest.approx(float(shift == 0), abs=1e-12)
    signs = (-1.0) ** np.arange(size)
    for moment in range(size // 2):
        powers = (np.arange(size) / size) ** moment
        assert (signs * powers) @ h == pytest.approx(0, abs=1e-10)


def factored(order: int) -> list[np.ndarray]:
    """Every filter of 2 * order taps with that many vanishing moments, by factoring Daubechies' polynomial."""
    roots_y = np.roots([comb(order - 1 + k, k) for k in reversed(range(order))])
    pairs = [np.roots([1, 4 * y - 2, 1]) for y in roots_y]  # y = (2 - z - 1/z) / 4
    filters = []
    for picks in itertools.product((0, 1), repeat=order - 1):
        zeros = [pair[pick] for pair, pick in zip(pairs, picks, strict=True)]
        taps = np.poly(zeros + [-1.0] * order)
        if np.abs(taps.imag).max() < 1e-9:
            filters.append(taps.real * math.sqrt(2.0) / taps.real.sum())
    return filters


def asymmetry(h: np.ndarray) -> float:
    """How far the phase is from that of a symmetric filter, where the filter lets anything through."""
    omega = np.linspace(0.01, 0.8 * np.pi, 200)
    phase = np.unwrap(np.angle(np.exp(-1j * np.outer(omega, np.arange(len(h)))) @ h))
    slope = (omega @ phase) / (omega @ omega)
    return float(np.abs(phase - slope * omega).max())


@pytest.mark.parametrize("taps", [SYM2, SYM6], ids=["sym2", "sym6"])
def test_a_symlet_is_the_least_asymmetric_of_all_such_filters(taps: tuple[float, ...]) -> None:
    found = min(factored(len(taps) // 2), key=asymmetry)
    difference = min(np.abs(found - taps).max(), np.abs(found[::-1] - taps).max())
    assert difference < 1e-8


def test_the_half_band_filter_is_symmetric_and_complements_its_mirror_in_frequency() -> None:
    taps = np.array(halfband())
    assert taps == pytest.approx(taps[::-1])
    assert taps == pytest.approx(np.array([-1, 0, 9, 16, 9, 0, -1]) / 32, abs=1e-15)
    assert taps * (-1.0) ** np.arange(-3, 4) + taps == pytest.approx([0, 0, 0, 1, 0, 0, 0], abs=1e-15)


def test_spreading_puts_zeros_between_the_taps() -> None:
    assert spread([1.0, 2.0, 3.0], 2) == [1, 0, 2, 0, 3]
    assert spread([1.0, 2.0], 4) == [1, 0, 0, 0, 2]
