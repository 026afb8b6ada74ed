"""The augmentation written from its definitions, in numpy and float64: slow, with nothing clever in it.

And what the tests share: draws with chosen outcomes, settings with one transformation alone.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hires_gan.augment.draws import NUMBERS, Choice, Draws
from hires_gan.augment.settings import PRESETS, AugmentSettings
from hires_gan.randomness import Purpose, RandomSource, SampleRandom

Array = NDArray[np.float64]

ALL = PRESETS["bgcfnc"]
PLACES = {  # of the first number, as documented: they keep their meaning for ever
    "xflip": 0,
    "rotate90": 2,
    "xint": 4,
    "scale": 7,
    "rotate": 9,
    "aniso": 13,
    "xfrac": 15,
    "brightness": 18,
    "contrast": 20,
    "lumaflip": 22,
    "hue": 24,
    "saturation": 26,
    "bands": 28,
    "noise": 36,
    "cutout": 38,
}


def only(*names: str, **others: Any) -> AugmentSettings:
    """Settings in which these transformations alone are on."""
    strengths = {name: float(name in names) for name in ALL}
    return AugmentSettings.model_validate(strengths | others)


def number_of_normal(z: float) -> float:
    """The uniform number that stands for a normal one."""
    return NormalDist().cdf(z) - 2.0**-25


def chosen(count: int, **numbers: list[float]) -> Draws:
    """Draws in which everything is applied at p = 1; the given transformations have these numbers, the gate's first."""
    values = torch.full((count, NUMBERS), 0.25, dtype=torch.float64)
    for name, given in numbers.items():
        first = PLACES[name]
        values[:, first : first + len(given)] = torch.tensor(given, dtype=torch.float64)
    return Draws(values)


def source(count: int, seed: int = 7, first: int = 0) -> SampleRandom:
    return SampleRandom(RandomSource(seed), torch.arange(first, first + count))


def choice(settings: AugmentSettings, count: int, p: float, seed: int = 7) -> Choice:
    numbers = source(count, seed).uniform(Purpose.AUGMENT_REAL, NUMBERS)
    return Choice(Draws(numbers), torch.tensor(p, dtype=torch.float64), settings)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smooth(side: int, channels: int = 3) -> Tensor:
    """Two slow waves per channel, with a slope: an image in which interpolation is nearly exact."""
    at = torch.arange(side, dtype=torch.float64) / side
    waves = [torch.sin(2 * at[None] + c) + torch.cos(3 * at[:, None] - c) for c in range(channels)]
    return torch.stack(waves)[None] / 2


def mirrored(place: int, size: int) -> int:
    """The pixel that is seen at `place` in the endless reflection of `size` pixels."""
    while not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place


def enlarging_matrix(h: Array, side: int, first: int, count: int) -> Array:
    """Row j: enlarged pixel `first + j` out of the reflected image's pixels. Its centre lies at (j - 1/2) / 2."""
    matrix = np.zeros((count, side))
    for row in range(count):
        j = row + first
        for tap in range(len(h)):
            k, odd = divmod(j + len(h) // 2 - 1 - tap, 2)
            if not odd:
                matrix[row, mirrored(k, side)] += math.sqrt(2.0) * h[tap]
    return matrix


def reducing_matrix(h: Array, side: int) -> Array:
    """Row m: pixel m out of the enlarged pixels from -(taps / 2 - 1) on."""
    matrix = np.zeros((side, 2 * side + len(h) - 2))
    for m in range(side):
        for tap in range(len(h)):
            matrix[m, 2 * m + tap] = h[tap] / math.sqrt(2.0)
    return matrix


def bilinear(image: Array, x: float, y: float) -> float:
    left, top = math.floor(x), math.floor(y)
    value = 0.0
    for row, of_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, of_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if of_x * of_y != 0:
                value += of_x * of_y * image[row, column]
    return value


def resampled(image: Array, inverse: Array, h: Array) -> Array:
    """`[s, s]`: reflect at the border, far, enlarge, sample bilinearly at `inverse` times each pixel, reduce."""
    side, padded = image.shape[0], 70
    enlarging = enlarging_matrix(h, side, -2 * padded, 2 * side + 4 * padded)
    enlarged = enlarging @ image @ enlarging.T
    margin = len(h) // 2 - 1
    out = 2 * side + 2 * margin
    sampled = np.zeros((out, out))
    centre = side - 0.5 - ((len(h) - 1) / 2 - np.arange(len(h)) @ h / h.sum())  # of what the filter makes of the image
    for row in range(out):
        for column in range(out):
            place = np.array([(column - margin - centre) / 2, (row - margin - centre) / 2, 1.0])
            x, y = 2 * (inverse @ place)[:2] + centre
            sampled[row, column] = bilinear(enlarged, x + 2 * padded, y + 2 * padded)
    reducing = reducing_matrix(h, side)
    return reducing @ sampled @ reducing.T
