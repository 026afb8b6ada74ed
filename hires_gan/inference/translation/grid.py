"""The grid of a translation, laid out as the paper's figures are: a row for each input, and then its translations."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hires_gan.inference.images import Pixels, Table
from hires_gan.inference.translation.pictures import scaled
from hires_gan.progress import say

_SIDE = 4096
"""Most pixels a side."""
_CELL = 64
"""Pixels below which a cell shows nothing; a network's own images may be smaller."""


class Grid:
    """Square cells in rows and columns; only what is shown is in memory.

    Args:
        rows: How many pictures there are.
        columns: How many images each of them is shown with.
        resolution: Side of a cell, in pixels; less where that gives more than 4096 a side.
        header: Whether there is a row above, for what the columns stand for.
    """

    def __init__(self, rows: int, columns: int, resolution: int, header: bool = False) -> None:
        most = _SIDE // min(_CELL, resolution)
        self._first = int(header)
        self._rows, self._columns = min(rows, most - self._first), min(columns, most - 1)
        shape = self._first + self._rows, 1 + self._columns
        cell = min(resolution, _SIDE // max(shape))
        self._table, self._used = Table(*shape, cell, _SIDE), self._first
        for shown, total, what in ((self._rows, rows, "pictures"), (self._columns, columns, "styles")):
            if shown < total:
                say(f"the grid shows the first {shown} of {total} {what}: it is at most {_SIDE} pixels a side")

    def put(self, row: int, column: int, pixels: Pixels) -> None:
        """Show an image, uint8 `[h, w, 3]`, if there is a place for it.

        Args:
            row: The picture's number, from 0; -1 for the header.
            column: 0 for the picture itself, then its images.
            pixels: What is shown.
        """
        if row < self._rows and column <= self._columns:
            self._used = max(self._used, self._first + row + 1)
            self._table.put(self._first + row, column, fitted(pixels, self._table.cell))

    @property
    def pixels(self) -> Pixels:
        """uint8 `[rows * cell, columns * cell, 3]`, of the rows that are set."""
        return self._table.pixels[: self._used * self._table.cell]


def fitted(pixels: Pixels, side: int) -> Pixels:
    """A picture in the middle of a white square, as large as it fits.

    Args:
        pixels: uint8 `[h, w, 3]`.
        side: Of the square, in pixels.

    Returns:
        uint8 `[side, side, 3]`; the picture itself if it is such a square.
    """
    height, width = pixels.shape[:2]
    if height == width == side:
        return pixels
    wide, high = scaled((width, height), side / max(height, width))
    small = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.LANCZOS))
    square: Pixels = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - high) // 2, (side - wide) // 2
    square[top : top + high, left : left + wide] = small
    return square
