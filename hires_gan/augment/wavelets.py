"""Daubechies' symlets (Daubechies 1992, table 6.3): orthogonal lowpass filters, and the bank of bands made of one.

A filter h has the sum sqrt(2), and is perpendicular to itself shifted by any even number of taps.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

SYM2 = tuple((a + b * math.sqrt(3.0)) / (4 * math.sqrt(2.0)) for a, b in ((1, 1), (3, 1), (3, -1), (1, -1)))

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)


def centre_of_mass(taps: tuple[float, ...]) -> float:
    """Where a filter puts what goes through it, in taps from the first: its delay at low frequencies."""
    return sum(place * tap for place, tap in enumerate(taps)) / sum(taps)


def halfband() -> list[float]:
    """The zero-phase lowpass H(z) H(1/z) / 2 of sym2: 7 taps with the sum 1, the middle one 1/2, its next but one 0."""
    return [
        sum(SYM2[k] * SYM2[k - shift] for k in range(len(SYM2)) if 0 <= k - shift < len(SYM2)) / 2
        for shift in range(1 - len(SYM2), len(SYM2))
    ]


def spread(taps: list[float], step: int) -> list[float]:
    """H(z^step): zeros between the taps."""
    wide = [0.0] * ((len(taps) - 1) * step + 1)
    wide[::step] = taps
    return wide


@lru_cache
def resampling(device: torch.device) -> Tensor:
    """sym6 with the sum 1, float64 `[12]`: enlarges by 2, and, flipped, reduces by 2."""
    with torch.inference_mode(False):  # a later call may want gradients through what is filtered
        return torch.tensor(SYM6, dtype=torch.float64, device=device) / math.sqrt(2.0)


@lru_cache
def splitting(device: torch.device, step: int) -> Tensor:
    """The half-band filter with a step of 1, 2 or 4 between its taps, float64 `[6 * step + 1]`."""
    with torch.inference_mode(False):
        return torch.tensor(spread(halfband(), step), dtype=torch.float64, device=device)
