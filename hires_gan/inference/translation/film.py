"""Ways from style to style, for films of one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hires_gan.inference.images import Pixels
from hires_gan.inference.interpolate import slerp
from hires_gan.inference.request import Film

_STEPS = 8


def frames_of(film: Film, styles: int) -> int:
    """How many frames lead through so many styles, two or more."""
    return film.frames * styles if film.loop else film.frames * (styles - 1) + 1


def steps_of(frames: int) -> list[int]:
    """The numbers of the frames that the grid shows: evenly spaced, the first and the last among them."""
    count = min(_STEPS, frames)
    return [round(step * (frames - 1) / (count - 1)) for step in range(count)]


def styles_between(styles: Sequence[Tensor], film: Film, drawn: bool) -> Iterator[Tensor]:
    """The style of each frame.

    Args:
        styles: `[1, style_size]` each, two or more; the film passes them in their order.
        film: How many frames there are from one to the next, and whether it returns to the first.
        drawn: Whether they are from N(0, 1). The way between such styles is part of a great circle (`slerp`), where
            all are as far from 0 as drawn ones are. Between encoded styles it is a straight line: they have no such
            distance, and what lies between two pictures' styles is a mixture of both.
    """
    between = slerp if drawn else torch.lerp
    stops = [*styles, styles[0]] if film.loop else styles
    for start, end in pairwise(stops):
        for step in range(film.frames):
            yield between(start, end, step / film.frames)
    if not film.loop:
        yield styles[-1]


def even(pixels: Pixels) -> Pixels:
    """A frame whose sides are even, as films need: the last row or column is doubled where they are not.

    Args:
        pixels: uint8 `[h, w, 3]`.
    """
    height, width = pixels.shape[:2]
    frame: Pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    return frame
