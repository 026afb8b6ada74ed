"""`demo:NAME` shard sets: made on first use, from photographs that scikit-image brings along, in the user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.demo_pictures import inks, overlapping_crops, two_ink_print
from hires_gan.data.manifest import IMAGE, MANIFEST, Manifest
from hires_gan.data.pictures import DEFAULT_MAX_PIXELS, encode, normalise, open_picture, resize
from hires_gan.data.writer import ShardWriter, disk_failure, write_manifest
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar
from hires_gan.settings import expanded

PREFIX = "demo:"
_RESOLUTION = 64
_SEED = 0


@dataclass(frozen=True)
class DemoSet:
    """How a demo set is made.

    Args:
        version: Part of the folder's name: a changed recipe makes a new set instead of reusing the old one.
        regions: What is cut up: files of scikit-image's, and left, top, right and bottom of a part of the photograph,
            or None for all of it.
        stride: How far neighbouring crops are apart at most, about, in their sides.
        printed: Whether the crops become prints in two inks.
    """

    version: int
    regions: tuple[tuple[str, tuple[int, int, int, int] | None], ...]
    stride: float
    printed: bool = False


_SETS = {
    "photographs": DemoSet(
        version=2,
        regions=(
            ("astronaut.png", None),
            ("chelsea.png", None),
            ("coffee.png", None),
            ("rocket.jpg", None),
            ("motorcycle_left.png", None),
        ),
        stride=0.12,
    ),
    # Two domains without a pixel in common: each has its own part of every photograph (all CC0 or public domain).
    "snapshots": DemoSet(
        version=1,
        regions=(
            ("astronaut.png", (0, 0, 400, 236)),
            ("chelsea.png", (0, 0, 226, 300)),
            ("coffee.png", (0, 0, 300, 400)),
            ("rocket.jpg", (290, 100, 640, 427)),
        ),
        stride=0.09,
    ),
    "prints": DemoSet(
        version=1,
        regions=(
            ("astronaut.png", (0, 236, 400, 512)),
            ("chelsea.png", (226, 0, 451, 300)),
            ("coffee.png", (300, 0, 600, 400)),
            ("rocket.jpg", (0, 100, 290, 427)),
        ),
        stride=0.09,
        printed=True,
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
    return expanded(Path(reference))


def demo_shards(name: str) -> Path:
    """Return the folder of a demo set, making it on first use; several processes may ask at once.

    Args:
        name: All are overlapping square crops of colourful photographs, at 64x64. `photographs`: of whole ones.
            `snapshots` and `prints`: of parts of them that have no pixel in common, two domains for the translation
            between unpaired images; each print is hatched in two inks of its own.

    Raises:
        UsageError: There is no such set.
        Failure: scikit-image is missing, or the cache cannot be written.
    """
    folder = demo_folder(name)
    if (folder / MANIFEST).is_file():
        return folder
    photographs = _photographs(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(name, photographs, partial)
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise disk_failure(folder.parent, None, error) from None
    return folder


def demo_folder(name: str) -> Path:
    """Return where a demo set is, or will be.

    Raises:
        UsageError: There is no such set.
        Failure: There is no cache.
    """
    if name not in _SETS:
        raise UsageError(f"there is no demo set '{name}': the demo sets are {', '.join(PREFIX + one for one in _SETS)}")
    return cache_folder() / "demo" / f"{name}-v{_SETS[name].version}"


def cache_folder() -> Path:
    """Return where this program keeps what it can make again.

    Raises:
        Failure: This user has no home folder, and XDG_CACHE_HOME is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "hires_gan"
    try:
        return Path.home() / ".cache" / "hires_gan"
    except RuntimeError:
        raise Failure(
            f"user {os.getuid()} has no home folder to keep the cache in: set XDG_CACHE_HOME to a folder that can be "
            "written"
        ) from None


def _photographs(name: str) -> list[Image.Image]:
    """Decode the photographs of a set from the installed scikit-image, cut to its regions; nothing is fetched."""
    try:
        data = resources.files("skimage") / "data"
    except ModuleNotFoundError:
        raise Failure(
            f"{PREFIX}{name} is made from scikit-image's photographs, which is not installed: "
            "pip install 'hires-gan[demo]'"
        ) from None
    try:
        files = [(data / file).read_bytes() for file, _ in _SETS[name].regions]
    except FileNotFoundError as error:
        raise Failure(
            f"the installed scikit-image does not bring {error.filename}, which {PREFIX}{name} is made from: "
            "pip install 'hires-gan[demo]'"
        ) from None
    photographs = [normalise(open_picture(file, DEFAULT_MAX_PIXELS), Counter()) for file in files]
    boxes = [box for _, box in _SETS[name].regions]
    return [photograph.crop(box) if box else photograph for photograph, box in zip(photographs, boxes, strict=True)]


def _write(name: str, photographs: list[Image.Image], folder: Path) -> None:
    """Write the set, one shard."""
    with (
        ShardWriter(folder, 0, (IMAGE,), labelled=False, first_row=0) as writer,
        ProgressBar(f"making the demo {name}", None) as bar,
    ):
        for array in _pictures(_SETS[name], photographs):
            writer.write({IMAGE: encode(array, "png")}, None)
            bar.advance()
        entry = writer.finish()
    manifest = Manifest(
        resolution=_RESOLUTION, count=entry.samples, columns=(IMAGE,), filter="lanczos", shards=(entry,)
    )
    write_manifest(folder, manifest)


def _pictures(demo: DemoSet, photographs: list[Image.Image]) -> Iterator[np.ndarray]:
    """Make the pictures of a set in their order: uint8 [64, 64, 3]."""
    numbers = np.random.PCG64(_SEED)
    for photograph in photographs:
        for crop in overlapping_crops(photograph, demo.stride):
            picture = resize(crop, _RESOLUTION, "lanczos")
            yield two_ink_print(picture, *inks(numbers)) if demo.printed else np.asarray(picture)


def _publish(partial: Path, folder: Path) -> None:
    """Move a finished set into its place, unless another process was faster."""
    partial.chmod(0o755)  # mkdtemp's folders are private
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / MANIFEST).is_file():
            raise
