"""The pictures to be translated: found, named, read, resized, and padded to what the network takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.pictures import DEFAULT_MAX_PIXELS
from hires_gan.data.rejection import Rejected
from hires_gan.data.sources import EXTENSIONS
from hires_gan.errors import UsageError
from hires_gan.inference.images import Pixels
from hires_gan.inference.target import read_upright
from hires_gan.progress import say


class Remarks:
    """What is done to pictures: said when it is first done, and counted.

    Args:
        kind: What the pictures are called, in the plural.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._counts: Counter[str] = Counter()

    def note(self, name: str, done: str, detail: str = "") -> None:
        """Something was done to a picture.

        Args:
            name: The picture's.
            done: What, as it can be said of any picture.
            detail: More about this one.
        """
        if not self._counts[done]:
            say(f"{name}: {done}{detail}")
        self._counts[done] += 1

    def sum_up(self, total: int) -> None:
        """Say how often each thing was done that was done more than once.

        Args:
            total: How many pictures there were.
        """
        for done, count in self._counts.items():
            if count > 1:
                say(f"{count} of {total} {self._kind}: {done}")


def list_pictures(places: Iterable[Path], argument: str) -> list[Path]:
    """The files, and all pictures that lie directly in the folders, these sorted by name; each once.

    Args:
        places: Files and folders.
        argument: As what they were given, for messages.

    Raises:
        UsageError: If one is not there, or a folder holds no picture.
    """
    found: dict[Path, Path] = {}
    for place in places:
        for path in _pictures_in(place, argument) if place.is_dir() else [place]:
            if not path.exists():
                raise UsageError(f"{argument} is {path}, which is not there; give a picture, or a folder of pictures")
            found.setdefault(path.resolve(), path)
    if not found:
        raise UsageError(f"no {argument} is given; give pictures, or folders of pictures")
    return list(found.values())


def _pictures_in(folder: Path, argument: str) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{argument} is {folder}, which cannot be read ({reason}); give another folder") from None
    pictures = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not pictures:
        endings = " ".join(sorted(EXTENSIONS))
        raise UsageError(
            f"{argument} is {folder}, which holds no pictures directly in it; what counts is {endings}: give a folder "
            "that does"
        )
    if len(pictures) < len(files):
        say(f"{folder}: passed over, since their endings are not those of pictures: {len(files) - len(pictures)} files")
    return pictures


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The files' names without endings; those of several files get the endings too, and a number if that is not enough.

    Names that differ in upper and lower case alone are taken for equal, as some file systems do.
    """
    stems = Counter(path.stem.lower() for path in paths)
    names = [path.stem if stems[path.stem.lower()] == 1 else path.name.replace(".", "_") for path in paths]
    taken: set[str] = set()
    for number, name in enumerate(names):
        free, count = name, 1
        while free.lower() in taken:
            count += 1
            free = f"{name}_{count}"
        taken.add(free.lower())
        names[number] = free
    renamed = [(path, name) for path, name in zip(paths, names, strict=True) if name != path.stem]
    if renamed:
        path, name = renamed[0]
        say(
            f"{len(renamed)} pictures share their names with others: {path} becomes {name} in names of files, and so on"
        )
    return names


def read_picture(path: Path, side: int | None, remarks: Remarks) -> Pixels:
    """Read a picture, upright and in sRGB, and resize it with an antialiasing filter (Lanczos).

    Args:
        path: The file.
        side: What the shorter side becomes, in pixels; None to leave them.
        remarks: Is told what was done.

    Returns:
        uint8 `[h, w, 3]`.

    Raises:
        OSError: If it cannot be read.
        Rejected: If it is no usable picture.
        MemoryError: If there is not enough memory for it.
    """
    picture, done = read_upright(path)
    for line in done:
        remarks.note(path.name, line)
    size = picture.size if side is None else scaled(picture.size, side / min(picture.size))
    if size[0] * size[1] > DEFAULT_MAX_PIXELS:
        raise Rejected(f"at the size that is asked for it would have {size[0]}x{size[1]} pixels, which is too many")
    if size != picture.size:
        how = f"resized with the Lanczos filter, the shorter side to {side} pixels"
        remarks.note(path.name, how, f" (from {picture.width}x{picture.height} to {size[0]}x{size[1]})")
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.array(picture)


def reason(error: BaseException) -> str:
    """Why a picture cannot be used of which `read_picture` raised an error."""
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror or error})"
    return "there is not enough memory for it" if isinstance(error, MemoryError) else str(error)


def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Width and height times a factor, rounded, at least one pixel."""
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


def padded(pixels: Pixels, multiple: int, least: int) -> Pixels:
    """Continue a picture to the right and below until its sides fit the network.

    Args:
        pixels: uint8 `[h, w, 3]`.
        multiple: Of which the sides have to be one.
        least: The least side; a multiple of `multiple`.

    Returns:
        uint8; by reflection, or with copies of the last row or column where the picture is too small to be reflected.
        The picture itself if it fits.
    """
    for axis in (0, 1):
        side = pixels.shape[axis]
        more = max(least, -(-side // multiple) * multiple) - side
        if more:
            width = [(0, more if number == axis else 0) for number in range(3)]
            pixels = np.pad(pixels, width, "reflect" if more < side else "edge")
    return pixels
