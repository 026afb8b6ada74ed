"""From a network's output to pixels, grids and PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from hires_gan.errors import Failure

Pixels = npt.NDArray[np.uint8]


def to_uint8(images: Tensor) -> Tensor:
    """`[n, 3, r, r]` in [-1, 1] -> uint8, rounded to nearest; what lies outside is clipped."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


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
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(partial, format="PNG")
        partial.rename(path)
    except OSError as error:
        raise Failure(
            f"cannot write {path}: {error.strerror or error}; make room, or choose a folder that can be written"
        ) from error
