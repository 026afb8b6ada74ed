"""What the demo sets show: square crops of a photograph, and prints of them in two inks. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

_SCALES = (1.0, 0.85, 0.7, 0.55)
_WHEEL = np.array(
    [
        (222, 74, 64),
        (240, 130, 50),
        (246, 196, 64),
        (140, 184, 84),
        (52, 170, 140),
        (64, 160, 214),
        (96, 104, 206),
        (202, 90, 170),
    ]
)
"""Inks of a printer around the wheel of hues: red, orange, yellow, green, teal, blue, violet, pink."""
_BETWEEN = 256
"""Hues from one ink of the wheel to the next."""
HUES = len(_WHEEL) * _BETWEEN
_TONES = np.array([56, 96, 150, 196])
"""Where one of the five tones of a print ends and the next begins, in levels of grey."""
_HATCHING = 8
"""Pixels from one line to the next along an axis: a line is still there after two halvings."""


def overlapping_crops(photograph: Image.Image, stride: float) -> Iterator[Image.Image]:
    """Cut squares of several sizes at evenly spaced places.

    Args:
        photograph: Of any size and mode.
        stride: How far neighbours are apart at most, about, in sides of the square.
    """
    for scale in _SCALES:
        side = round(min(photograph.size) * scale)
        for top in _places(photograph.height - side, side, stride):
            for left in _places(photograph.width - side, side, stride):
                yield photograph.crop((left, top, left + side, top + side))


def _places(room: int, side: int, stride: float) -> list[int]:
    """Spread crops evenly over `room` pixels, both ends included."""
    steps = -(-room // round(side * stride))
    return [round(step * room / steps) for step in range(steps + 1)] if steps else [0]


def inks(numbers: np.random.PCG64) -> tuple[int, int]:
    """Draw the hues of a print's light and dark ink, at least a quarter of the wheel apart.

    Raw numbers of the bit generator are the same in every version of numpy; those of its distributions need not be.
    """
    light, apart = (int(number) for number in numbers.random_raw(2))
    return light % HUES, (light + HUES // 4 + apart % (HUES // 2)) % HUES


def two_ink_print(picture: Image.Image, light: int, dark: int) -> np.ndarray:
    """Print a picture in five tones: dark ink, hatched on light ink, light ink, hatched on paper, paper.

    The tones follow the picture's luminance alone. All arithmetic is that of integers.

    Args:
        picture: RGB.
        light: Hue of the light ink, which tints the paper too, from 0 up to `HUES`, not included.
        dark: Hue of the dark ink, likewise.

    Returns:
        uint8 [H, W, 3].
    """
    palette = np.stack([_ink(dark) * 90 // 256, _ink(light), 255 - (255 - _ink(light)) * 24 // 256])
    tones = np.searchsorted(_TONES, _tone(picture), side="right")
    rows, columns = np.indices(tones.shape)
    lines = (rows + columns) % _HATCHING >= _HATCHING // 2
    return palette[(tones + lines) // 2].astype(np.uint8)


def _ink(hue: int) -> np.ndarray:
    """Mix the two inks of the wheel that a hue lies between."""
    first, part = divmod(hue, _BETWEEN)
    mixed: np.ndarray = _WHEEL[first] * (_BETWEEN - part) + _WHEEL[(first + 1) % len(_WHEEL)] * part
    return mixed // _BETWEEN


def _tone(picture: Image.Image) -> np.ndarray:
    """Return how bright a pixel is among those of its picture, from 0 to 255: int64 [H, W].

    The mean of stretched and equalised luminance: stretched alone, dark photographs would make dark prints, and the
    tones of two sets would differ by what they show; equalised alone, small dark things would grow.
    """
    luminance = np.asarray(picture.convert("L")).astype(np.int64)
    counts = np.bincount(luminance.ravel(), minlength=256)
    not_brighter = counts.cumsum()
    equalised = (2 * not_brighter - counts) * 255 // (2 * luminance.size)
    low, high = not_brighter.searchsorted([luminance.size // 50, luminance.size * 49 // 50], side="right")
    stretched = ((np.arange(256) - low) * 255 // max(high - low, 1)).clip(0, 255)
    tone: np.ndarray = ((equalised + stretched) // 2)[luminance]
    return tone
