"""From a network's output to pixels, grids and PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from hires_gan.inference.files import write_whole

Pixels = npt.NDArray[np.uint8]


def to_uint8(images: Tensor) -> Tensor:
    """`[n, 3, r, r]` in [-1, 1] -> uint8, rounded to nearest; what lies outside is clipped."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 `[n, 3, r, r]` -> the same in [-1, 1], in a type of floating point, on their device and in their layout."""
    return images.to(dtype).div_(127.5).sub_(1.0)


def finite(images: Tensor) -> Tensor:
    """Which images have no value that is infinite or NaN, which bytes cannot say: bool `[n]`, on their device.

    Args:
        images: `[n, 3, r, r]`, as a network gives them.
    """
    return images.isfinite().all(dim=(1, 2, 3))


def enlarge(images: Tensor, resolution: int) -> Tensor:
    """`[n, 3, r, r]` -> `[n, 3, resolution, resolution]` by nearest neighbour; resolution is a multiple of r."""
    factor = resolution // images.shape[-1]
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def grid(images: Tensor) -> Pixels:
    """Lay images out in rows, in a block about as wide as it is high.

    Args:
        images: uint8 `[n, 3, r, r]`.

    Returns:
        uint8 `[rows * r, columns * r, 3]`; places that are left over are black.
    """
    n, c, h, w = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    padded = torch.zeros(rows * columns, c, h, w, dtype=torch.uint8)
    padded[:n] = images.cpu()
    block = padded.reshape(rows, columns, c, h, w).permute(0, 3, 1, 4, 2)
    pixels: Pixels = block.reshape(rows * h, columns * w, c).numpy()
    return pixels


def limit_side(pixels: Pixels, most: int = 4096) -> Pixels:
    """Reduce a picture by the smallest whole factor at which no side is longer than `most`, with box averages.

    Args:
        pixels: uint8 `[h, w, 3]`.
        most: Pixels, at least 1.

    Returns:
        uint8 `[ceil(h / factor), ceil(w / factor), 3]`; the picture itself if it is small enough.
    """
    factor = math.ceil(max(pixels.shape[:2]) / most)
    return pixels if factor == 1 else np.array(Image.fromarray(pixels).reduce(factor))


def save_png(path: Path, pixels: Pixels) -> None:
    """Write a PNG file, whole or not at all; its folder is made if it is not there.

    Raises:
        Failure: If it cannot be written.
    """
    write_whole(path, lambda partial: Image.fromarray(pixels).save(partial, format="PNG", compress_level=1))


def pixels_of(images: Tensor) -> Pixels:
    """uint8 `[1, 3, r, r]` -> uint8 `[r, r, 3]`."""
    pixels: Pixels = images[0].permute(1, 2, 0).cpu().numpy()
    return pixels


class Table:
    """A picture of cells in rows and columns, of which no more is in memory than it shows.

    Args:
        rows: How many.
        columns: How many.
        side: Of a cell's image, in pixels.
        most: The longest side of the picture; images are reduced by the smallest whole factor at which it fits.

    Attributes:
        pixels: uint8 `[rows * cell, columns * cell, 3]`; cells that are not set are white.
    """

    def __init__(self, rows: int, columns: int, side: int, most: int = 4096) -> None:
        self.factor = min(side, math.ceil(max(rows, columns) * side / most))
        self.cell = math.ceil(side / self.factor)
        self.pixels: Pixels = np.full((rows * self.cell, columns * self.cell, 3), 255, np.uint8)

    def put(self, row: int, column: int, pixels: Pixels) -> None:
        """Set one cell to an image, uint8 `[side, side, 3]`."""
        small = pixels if self.factor == 1 else np.asarray(Image.fromarray(pixels).reduce(self.factor))
        top, left = row * self.cell, column * self.cell
        self.pixels[top : top + self.cell, left : left + self.cell] = small
