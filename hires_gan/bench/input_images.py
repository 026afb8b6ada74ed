"""The images that `bench input` decodes: photographs or a sample of a shard set, in every form that is read."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.domains import in_one_set
from hires_gan.data.manifest import IMAGE, Manifest
from hires_gan.data.pictures import encode, resize
from hires_gan.data.shards import ShardSet
from hires_gan.data.writer import Encoded, ShardWriter, write_manifest
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
_ROWS, _COLUMNS = 3, 4
"""Crops of each photograph; other crops would make other numbers."""
_PER_SHARD = 64
_PNG = b"\x89PNG"


@dataclass(frozen=True)
class Images:
    """The same files in every form.

    Attributes:
        tars: The shards, which webdataset and DALI read, too.
        indexes: What DALI's reader is told about each tar, in its own format.
        files: A file for each image.
        zip: All of them in one uncompressed zip file.
    """

    tars: tuple[str, ...]
    indexes: tuple[str, ...]
    files: tuple[str, ...]
    zip: str


def make_shards(folder: Path, resolution: int) -> Path:
    """Write crops of scikit-image's photographs, enlarged to the resolution, as JPEG of quality 95 with 4:4:4 chroma.

    Raises:
        Failure: If scikit-image is not installed.
    """
    try:
        import skimage.data
    except ModuleNotFoundError:
        raise Failure(
            "without --shards, images are made from scikit-image's photographs, which is not installed: "
            "pip install 'hires-gan[demo]', or name a shard folder with --shards"
        ) from None
    files = []
    with ProgressBar("making images", len(_PHOTOGRAPHS) * _ROWS * _COLUMNS) as bar:
        for name in _PHOTOGRAPHS:
            photograph = Image.fromarray(getattr(skimage.data, name)())
            for crop in _crops(photograph):
                files.append(encode(np.asarray(resize(crop, resolution, "lanczos")), "jpeg").data)
                bar.advance()
    return _write(folder, files, resolution, "lanczos")


def _crops(photograph: Image.Image) -> Iterator[Image.Image]:
    """Evenly spaced squares, each of four fifths of the photograph's shorter side."""
    side = min(photograph.size) * 4 // 5
    for row, column in itertools.product(range(_ROWS), range(_COLUMNS)):
        top = (photograph.height - side) * row // (_ROWS - 1)
        left = (photograph.width - side) * column // (_COLUMNS - 1)
        yield photograph.crop((left, top, left + side, top + side))


def stored(shards: ShardSet, resolution: int) -> tuple[str, int]:
    """The column that the loader reads for a resolution, and the side of the images in it.

    Raises:
        UsageError: The set holds pairs, or images smaller than that.
    """
    data = in_one_set(shards)
    if not data.is_plain:
        raise UsageError(f"{shards.folder} holds {', '.join(data.names)} in each sample; plain images are measured")
    if shards.resolution < resolution:
        raise UsageError(f"--resolution is {resolution}, but the images in {shards.folder} have {shards.resolution}")
    (column,), side = data.sources[0].stored(resolution)
    return column, side


def sample_of(shards: ShardSet, column: str, side: int, count: int, folder: Path) -> Path:
    """Write the files of one column of evenly spaced samples as a shard set of their own.

    Args:
        shards: Where they come from.
        column: Which of their files.
        side: Height and width of these.
        count: How many at most.
        folder: Where to write; it exists.
    """
    total = len(shards)
    rows = [row * total // min(count, total) for row in range(min(count, total))]
    return _write(folder, [shards.read(row, column) for row in rows], side, shards.manifest.filter)


def _write(folder: Path, files: list[bytes], side: int, resize_filter: str) -> Path:
    entries = []
    for number, first in enumerate(range(0, len(files), _PER_SHARD)):
        with ShardWriter(folder, number, (IMAGE,), labelled=False, first_row=first) as writer:
            for data in files[first : first + _PER_SHARD]:
                writer.write({IMAGE: Encoded(_extension(data), data)}, None)
            entries.append(writer.finish())
    manifest = Manifest(
        resolution=side, count=len(files), columns=(IMAGE,), filter=resize_filter, shards=tuple(entries)
    )
    write_manifest(folder, manifest)
    return folder


def in_every_form(shards: ShardSet, folder: Path) -> Images:
    """Write the images of a set, whose only column is `image`, as files, as a zip and with an index for DALI.

    Args:
        shards: The set.
        folder: Where to write; it exists.
    """
    files, archive = folder / "files", folder / "images.zip"
    files.mkdir()
    names = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for row in range(len(shards)):
            data = shards.read(row)
            path = files / f"{row:09d}.{_extension(data)}"
            path.write_bytes(data)
            packed.write(path, path.name)
            names.append(str(path))
    firsts = itertools.accumulate((shard.samples for shard in shards.manifest.shards[:-1]), initial=0)
    tars = tuple(str(shards.locate(row).path) for row in firsts)
    indexes = tuple(str(path) for path in _write_dali_indexes(shards, folder))
    return Images(tars, indexes, tuple(names), str(archive))


def _write_dali_indexes(shards: ShardSet, folder: Path) -> Iterator[Path]:
    """What DALI's own `wds2idx` writes: for each sample the ending, offset, size and name of its file."""
    row = 0
    for shard in shards.manifest.shards:
        lines = [f"v1.2 {shard.samples}"]
        for _ in range(shard.samples):
            place, extension = shards.locate(row), _extension(shards.read_start(row, IMAGE, len(_PNG)))
            lines.append(f"{extension} {place.offset} {place.size} {row:09d}.{extension}")
            row += 1
        path = folder / f"{shard.name}.idx"
        path.write_text("\n".join(lines) + "\n")
        yield path


def _extension(data: bytes) -> str:
    return "png" if data.startswith(_PNG) else "jpg"


def describe(shards: ShardSet, made: bool, column: str = IMAGE, side: int | None = None) -> str:
    """Say in one line what is decoded."""
    known = min(len(shards), 1000)
    size = sum(shards.locate(row, column).size for row in range(known)) / known
    shown = f"{side or shards.resolution}x{side or shards.resolution}"
    kind = "crops of scikit-image's photographs, enlarged, JPEG of quality 95 with 4:4:4 chroma" if made else "images"
    return f"{len(shards):,} {kind}, {shown}, {size / 1024:,.0f} KiB each" + ("" if made else f", from {shards.folder}")
