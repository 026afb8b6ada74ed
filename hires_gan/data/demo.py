"""`demo:NAME` shard sets: made on first use, from photographs that scikit-image brings along, in the user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.manifest import IMAGE, MANIFEST, Manifest
from hires_gan.data.pictures import DEFAULT_MAX_PIXELS, encode, normalise, open_picture, resize
from hires_gan.data.writer import ShardWriter, disk_failure, write_manifest
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar

PREFIX = "demo:"
_VERSION = 2
"""Part of the folder's name: a changed recipe makes a new set instead of reusing the old one."""
_RESOLUTION = 64
_SCALES = (1.0, 0.85, 0.7, 0.55)
_STRIDE = 0.12
_SETS = {
    "photographs": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "motorcycle_left.png",
    ),
}


def resolve_shards(reference: str) -> Path:
    """Turn what `data.shards` says into a folder: a path stays one, `demo:NAME` is made if need be.

    Raises:
        UsageError: There is no such demo set.
        Failure: It cannot be made.
    """
    if reference.startswith(PREFIX):
        return demo_shards(reference.removeprefix(PREFIX))
    return Path(reference).expanduser()


def demo_shards(name: str) -> Path:
    """Return the folder of a demo set, making it on first use; several processes may ask at once.

    Args:
        name: `photographs`: overlapping square crops of colourful photographs, at 64x64.

    Raises:
        UsageError: There is no such set.
        Failure: scikit-image is missing, or the cache cannot be written.
    """
    if name not in _SETS:
        raise UsageError(f"there is no demo set '{name}': the demo sets are {', '.join(PREFIX + one for one in _SETS)}")
    folder = cache_folder() / "demo" / f"{name}-v{_VERSION}"
    if (folder / MANIFEST).is_file():
        return folder
    photographs = _photographs(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(photographs, partial)
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise disk_failure(folder.parent, None, error) from None
    return folder


def cache_folder() -> Path:
    """Return where this program keeps what it can make again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hires_gan"


def _photographs(name: str) -> list[Image.Image]:
    """Decode the photographs of a set from the installed scikit-image; nothing is fetched."""
    try:
        data = resources.files("skimage") / "data"
    except ModuleNotFoundError:
        raise Failure(
            f"{PREFIX}{name} is made from scikit-image's photographs, which is not installed: "
            "pip install 'hires-gan[demo]'"
        ) from None
    try:
        files = [(data / file).read_bytes() for file in _SETS[name]]
    except FileNotFoundError as error:
        raise Failure(
            f"the installed scikit-image does not bring {error.filename}, which {PREFIX}{name} is made from: "
            "pip install 'hires-gan[demo]'"
        ) from None
    return [normalise(open_picture(file, DEFAULT_MAX_PIXELS), Counter()) for file in files]


def _write(photographs: list[Image.Image], folder: Path) -> None:
    """Write the set, one shard."""
    with (
        ShardWriter(folder, 0, (IMAGE,), labelled=False, first_row=0) as writer,
        ProgressBar("making the demo photographs", None) as bar,
    ):
        for photograph in photographs:
            for crop in overlapping_crops(photograph):
                array = np.asarray(resize(crop, _RESOLUTION, "lanczos"))
                writer.write({IMAGE: encode(array, "png")}, None)
                bar.advance()
        entry = writer.finish()
    manifest = Manifest(
        resolution=_RESOLUTION, count=entry.samples, columns=(IMAGE,), filter="lanczos", shards=(entry,)
    )
    write_manifest(folder, manifest)


def overlapping_crops(photograph: Image.Image) -> Iterator[Image.Image]:
    """Cut squares of several sizes at evenly spaced places, neighbours about an eighth of their side apart."""
    for scale in _SCALES:
        side = round(min(photograph.size) * scale)
        for top in _places(photograph.height - side, side):
            for left in _places(photograph.width - side, side):
                yield photograph.crop((left, top, left + side, top + side))


def _places(room: int, side: int) -> list[int]:
    """Spread crops evenly over `room` pixels, both ends included."""
    steps = -(-room // round(side * _STRIDE))
    return [round(step * room / steps) for step in range(steps + 1)] if steps else [0]


def _publish(partial: Path, folder: Path) -> None:
    """Move a finished set into its place, unless another process was faster."""
    partial.chmod(0o755)  # mkdtemp's folders are private
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / MANIFEST).is_file():
            raise
