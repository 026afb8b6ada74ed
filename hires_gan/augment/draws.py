"""The random numbers that an augmentation is made of: a fixed place for each, so that settings never move another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hires_gan.augment.settings import AugmentSettings, Transformation
from hires_gan.randomness import Purpose, SampleRandom

_WIDTHS: dict[Transformation, int] = {
    "xflip": 2,
    "rotate90": 2,
    "xint": 3,
    "scale": 2,
    "rotate": 4,
    "aniso": 2,
    "xfrac": 3,
    "brightness": 2,
    "contrast": 2,
    "lumaflip": 2,
    "hue": 2,
    "saturation": 2,
    "bands": 8,
    "noise": 2,
    "cutout": 3,
}
"""How many numbers a transformation takes; both the order and the widths keep their meaning for ever."""

_FIRST = {name: sum(list(_WIDTHS.values())[:place]) for place, name in enumerate(_WIDTHS)}

NUMBERS = sum(_WIDTHS.values())
"""Uniform numbers per sample."""

_RESERVED = 64
"""The counter's positions that are kept for the uniforms: the noise takes the ones behind, and shares none of them."""


@dataclass(frozen=True)
class Draws:
    """All that is random in the augmentation of some images.

    Attributes:
        numbers: float `[n, NUMBERS]`, uniform in [0, 1).
        noise: float `[n, c * h * w]` from N(0, 1); None where the noise transformation is off.
    """

    numbers: Tensor
    noise: Tensor | None = None


def draw(random: SampleRandom, purpose: Purpose, settings: AugmentSettings, shape: Sequence[int]) -> Draws:
    """The draws for images of this shape: a pure function of (seed, purpose, sample), whatever else is in the batch.

    Args:
        random: The randomness of the `n` samples.
        purpose: AUGMENT_REAL, AUGMENT_FAKE or AUGMENT_GENERATOR.
        settings: Only the strength of the noise matters here.
        shape: That of the images, `[n, c, h, w]`.
    """
    numbers = random.uniform(purpose, NUMBERS)
    if not settings.any_of("noise"):
        return Draws(numbers)
    return Draws(numbers, random.normal(purpose, _RESERVED + math.prod(shape[1:]))[:, _RESERVED:])


class Choice:
    """The draws, read as decisions and as the distributions that the transformations want.

    Args:
        draws: The numbers of n samples.
        p: The probability, a float64 tensor without dimensions on the device of the draws.
        settings: The strengths.
    """

    def __init__(self, draws: Draws, p: Tensor, settings: AugmentSettings) -> None:
        self.settings = settings
        self._numbers = draws.numbers.to(torch.float64)
        self._p = p

    def probability(self, name: Transformation, share: float = 1.0) -> Tensor:
        """The probability of a transformation, a float64 tensor without dimensions."""
        return self._p * (self.settings.strength(name) * share)

    def happens(self, name: Transformation, place: int = 0, probability: Tensor | None = None) -> Tensor:
        """Whether the transformation is applied, bool `[n]`: the number at `place` is below the probability."""
        return self.uniform(name, place) < (self.probability(name) if probability is None else probability)

    def uniform(self, name: Transformation, place: int) -> Tensor:
        """float64 `[n]` in [0, 1)."""
        return self._numbers[:, _FIRST[name] + place]

    def centred(self, name: Transformation, place: int) -> Tensor:
        """float64 `[n]` in [-1, 1)."""
        return self.uniform(name, place) * 2 - 1

    def normal(self, name: Transformation, place: int) -> Tensor:
        """float64 `[n]` from N(0, 1): the quantile of the uniform number, moved into the middle of its step."""
        quantile: Tensor = torch.special.ndtri(self.uniform(name, place) + 2.0**-25)
        return quantile
