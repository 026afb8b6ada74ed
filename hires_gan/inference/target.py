"""Pictures that are given to a trained network: any picture file -> what it could have been trained on."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.pictures import DEFAULT_MAX_PIXELS, FORMATS, crops, normalise, open_picture, resize
from hires_gan.data.rejection import Rejected
from hires_gan.errors import UsageError
from hires_gan.inference.images import Pixels
from hires_gan.progress import say

UNREADABLE = (OSError, Rejected, MemoryError)
"""What `read_upright` raises for a file that cannot be used."""

_REMARKS = {
    "first_frame": "the first frame of several is taken",
    "oriented": "turned upright, as its EXIF data says",
    "profile_converted": "converted to sRGB by its colour profile",
    "profile_ignored": "its colour profile cannot be used; the pixels are taken for sRGB",
    "alpha_flattened": "its transparent parts are laid over white",
}


def open_target(path: Path, side: int) -> Pixels:
    """Read a picture, upright and in sRGB, cut to its central square and resized; what was done is said.

    Args:
        path: The file, of any kind that `prepare` reads.
        side: Of the generator's images.

    Returns:
        uint8 `[side, side, 3]`.

    Raises:
        UsageError: If there is no such file, or it is no usable picture.
    """
    try:
        picture, remarks = read_upright(path)
    except UNREADABLE as error:
        raise unusable("IMAGE", path, error) from None
    square = next(crops(picture, "center", side))
    for line in [*remarks, *_cuts(picture, square, side)]:
        say(f"{path.name}: {line}")
    return np.array(resize(square, side, "lanczos"))


def read_upright(path: Path) -> tuple[Image.Image, list[str]]:
    """Read a picture, upright, in 8-bit sRGB and without alpha.

    Args:
        path: The file, of any kind that `prepare` reads.

    Returns:
        The picture, and what was done to it, for people.

    Raises:
        OSError: If it cannot be read.
        Rejected: If it is no usable picture.
        MemoryError: If there is not enough memory for it.
    """
    data = path.read_bytes()
    counts: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on odd metadata, which nothing here uses
        _refuse_a_giant(data)
        picture = normalise(open_picture(data, DEFAULT_MAX_PIXELS), counts)
    return picture, [line for name, line in _REMARKS.items() if counts[name]]


def unusable(argument: str, path: Path, error: BaseException) -> UsageError:
    """The sentence on a picture of which `read_upright` raised an error.

    Args:
        argument: As what it was given.
        path: The file.
        error: What was raised.
    """
    if isinstance(error, OSError):
        return UsageError(f"{argument} is {path}, which cannot be read ({error.strerror or error}); give a picture")
    if isinstance(error, MemoryError):
        return UsageError(f"{argument} is {path}, for which there is not enough memory; give a smaller picture")
    return UsageError(f"{argument} is {path}, which cannot be used: {error}; give another picture")


def _refuse_a_giant(data: bytes) -> None:
    """Refuse what is beyond Pillow's own limit, by the header alone; what else is wrong shows when it is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS):
            pass
    except Image.DecompressionBombError:
        raise Rejected(f"it has more than {DEFAULT_MAX_PIXELS} pixels") from None
    except Exception:  # the decoders raise any kind of error
        return


def _cuts(picture: Image.Image, square: Image.Image, side: int) -> list[str]:
    found = []
    if picture.width != picture.height:
        found.append(
            f"of {picture.width}x{picture.height} pixels, the central {square.width}x{square.height} are taken"
        )
    if square.width != side:
        how = "enlarged" if square.width < side else "reduced"
        found.append(f"{how} from {square.width}x{square.width} to the generator's {side}x{side}")
    return found
