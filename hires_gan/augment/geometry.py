"""Pixel blitting and general geometric transformations (appendix B).

Flips, right-angled rotations and whole translations copy pixels. Where an image is scaled, rotated or moved by a
fraction of a pixel as well, its translations join in one affine map, and it is resampled once: enlarged by 2 with an
orthogonal wavelet filter, sampled bilinearly, reduced by 2 with the same filter, flipped.

The border reflects, without end. An endlessly reflected image repeats itself every 2 (s - 1) pixels, and so does the
enlarged one: one period of it is all that is ever sampled, wherever a map leads. A margin as wide as the maps at hand
reach would be set by the other images of the batch, and has no bound.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hires_gan.augment.blit import translated, translation, turned
from hires_gan.augment.draws import Choice
from hires_gan.augment.matrices import product, rotate2d, scale2d, translate2d
from hires_gan.augment.reflection import reflected
from hires_gan.augment.warp import Frame, warp
from hires_gan.augment.wavelets import SYM6, centre_of_mass, resampling
from hires_gan.ops import downsample2d, upsample2d

_REACH = len(SYM6) // 2
"""Pixels of the enlarged image that the filter reaches to either side, the middle ones included."""

_LEAD = (len(SYM6) - 1) / 2 - centre_of_mass(SYM6)
"""By how much what the filter makes of a pixel lies before the middle of its taps, in enlarged pixels.

The images are turned about their centre as it is, not as it were with a symmetric filter (0.2 pixels beside it).
"""

_AT_ONCE = 2**20
"""Pixels of images that are resampled together: a period enlarged is 16 times as large. Bounds the memory."""


def moved(x: Tensor, choice: Choice) -> Tensor:
    """Blit and transform: `[n, c, s, s]` -> the same; an image that nothing is applied to comes back bit for bit."""
    x = turned(x, choice)
    whole = translation(choice, x.shape[3])
    copied = translated(x, whole) if choice.settings.any_of("xint") else x
    if not choice.settings.any_of("scale", "rotate", "aniso", "xfrac"):
        return copied
    resamples, inverse = general(choice, whole, x.shape[3])
    some = max(1, _AT_ONCE // x.shape[3] ** 2)
    pieces = zip(torch.split(x, some), torch.split(inverse, some), strict=True)
    result = torch.cat([resampled(images, maps) for images, maps in pieces])
    return torch.where(resamples[:, None, None, None], result, copied)


def general(choice: Choice, whole: tuple[Tensor, Tensor], side: int) -> tuple[Tensor, Tensor]:
    """The affine maps of scaling, rotation and translation.

    Args:
        choice: The decisions.
        whole: Whole pixels along x and y that come first, float64 `[n]` each.
        side: The images' side in pixels.

    Returns:
        bool `[n]`, whether there is more to do than the whole translation; and float64 `[n, 3, 3]`, from positions in
        the result to positions in the image, in pixels from the centre.
    """
    scales, scale = _power_of_two(choice, "scale", choice.settings.scale_std)
    stretches, stretch = _power_of_two(choice, "aniso", choice.settings.aniso_std)
    turns, (before, behind) = _angles(choice)
    moves = choice.happens("xfrac")
    spread = choice.settings.xfrac_std * side
    x, y = (torch.where(moves, choice.normal("xfrac", place) * spread, 0) for place in (1, 2))
    inverse = translate2d(-whole[0], -whole[1])  # the inverses, the first transformation outermost
    for step in (
        scale2d(1 / scale, 1 / scale),
        rotate2d(-before),
        scale2d(1 / stretch, stretch),
        rotate2d(-behind),
        translate2d(-x, -y),
    ):
        inverse = product(inverse, step)
    return scales | turns | stretches | moves, inverse


def _power_of_two(choice: Choice, name: Literal["scale", "aniso"], std: float) -> tuple[Tensor, Tensor]:
    """Whether it is applied, bool `[n]`, and a log-normal factor `[n]`, 1 where it is not."""
    happens = choice.happens(name)
    return happens, torch.where(happens, torch.exp2(choice.normal(name, 1) * std), 1)


def _angles(choice: Choice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Whether there is a rotation, bool `[n]`, and its angles before and behind the anisotropic scaling.

    Either comes with the probability 1 - sqrt(1 - p), so that there is one with the probability p.
    """
    each = 1 - (1 - choice.probability("rotate")).sqrt()
    first, second = (choice.happens("rotate", place, each) for place in (0, 2))
    most = math.pi * choice.settings.rotate_max
    before = torch.where(first, choice.centred("rotate", 1) * most, 0)
    behind = torch.where(second, choice.centred("rotate", 3) * most, 0)
    return first | second, (before, behind)


def resampled(x: Tensor, inverse: Tensor) -> Tensor:
    """Transform by an affine map, reflecting at the borders: `[n, c, s, s]` -> the same.

    Args:
        x: float32 or float64.
        inverse: float64 `[n, 3, 3]`, from positions in the result to positions in the image, in pixels from the centre.
    """
    side, taps = x.shape[3], resampling(x.device)
    before, reach = (side - 1) // 2, _REACH // 2
    for dim in (2, 3):
        x = reflected(x, dim, before + reach, side - 1 - before + reach)
    # A pass per axis: on the CPU, the gradient of both at once, 144 taps a pixel, takes several times as long.
    x = upsample2d(x, taps[None, :], up=(2, 1), padding=(-2 * reach, 0))
    x = upsample2d(x, taps[:, None], up=(1, 2), padding=(0, -2 * reach))
    out = 2 * side + 2 * (_REACH - 1)
    centre, out_centre = 2 * before + side - 0.5 - _LEAD, (out - 1) / 2 - _LEAD
    frame = Frame(side=x.shape[3], centre=centre, period=4 * (side - 1), out=out, out_centre=out_centre)
    finer = torch.cat((inverse[:, :2, :2], 2 * inverse[:, :2, 2:]), dim=2)  # translations in enlarged pixels
    x = warp(x, finer, frame)
    x = downsample2d(x, taps[None, :], down=(2, 1), padding=(1 - _REACH, 0), flip_filter=True)
    return downsample2d(x, taps[:, None], down=(1, 2), padding=(0, 1 - _REACH), flip_filter=True)
