"""Images on their way to MLflow: kept as they are, at the disk's speed, and made PNG beside the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hires_gan.errors import Failure

LARGEST_SIDE = 4096
"""Larger images are reduced before they are logged."""
_THUMBNAIL = 256

Picture = npt.NDArray[np.uint8]


def keep(image: Picture, raw: Path) -> None:
    """Write an image without encoding it: a grid of 4096x4096 takes seconds to encode, which no step has to wait for.

    Args:
        image: uint8 [H, W, 3].
        raw: the file, in NumPy's own format.

    Raises:
        Failure: it cannot be written; nothing of it is left.
    """
    try:
        with raw.open("wb") as file:
            np.save(file, image, allow_pickle=False)
    except OSError as problem:
        raw.unlink(missing_ok=True)
        raise Failure(f"cannot write to {raw} ({problem}): free space there and run again") from problem


def encode(raw: Path, full: Path, thumbnail: Path) -> None:
    """Make the files of MLflow's slider of an image that was kept, and remove that one when they are whole.

    Args:
        raw: what `keep` wrote.
        full: the image, above 4096 pixels a side averaged over boxes of a whole size.
        thumbnail: the same in at most 256 pixels.
    """
    picture = Image.fromarray(np.load(raw, allow_pickle=False))
    factor = -(-max(picture.size) // LARGEST_SIDE)
    if factor > 1:
        picture = picture.reduce(factor)
    picture.save(full, compress_level=1)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(thumbnail)
    raw.unlink()
