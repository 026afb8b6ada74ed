"""The shard format: what `manifest.json` says, and the names and layouts of the files beside it.

A shard set is a folder:

    manifest.json            what the shards are: resolution, columns, label names, and each shard's size and sha256
    shard-000000.tar         members 000000123.jpg (or .png), 000000123.64.png (a level), 000000123.cls (a label);
                             of pairs 000000123.a.jpg and 000000123.b.png, with levels 000000123.a.64.png
    shard-000000.index       one row of (offset, size, crc32) per sample and column, little-endian, memory-mapped
    shard-000000.labels      one little-endian int32 per sample, if the set has labels

A sample holds one picture, `image`, or several that belong together and have names of their own, `a` and `b`. Each
is a column of the index, and so is each of its levels: `image.64`, `a.64`.

A row is a sample's number in the whole set. The key of its members is a number of nine digits (more if needed), unique
and ascending within the set, and not always the row: a repair drops samples, and those that stay keep their keys.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from hires_gan.errors import Failure, UsageError
from hires_gan.settings import Settings

VERSION = 1
MANIFEST = "manifest.json"
IMAGE = "image"
INDEX_ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
LABEL = np.dtype("<i4")
IMAGE_ENDINGS = ("jpg", "png")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
_COLUMN_NAME = re.compile(r"[A-Za-z_]\w*(\.[1-9]\d*)?", re.ASCII)


class ShardEntry(Settings):
    """One shard as the manifest describes it."""

    name: str
    """File name of the tar."""
    samples: int = Field(ge=1)
    """How many samples it holds."""
    bytes: int = Field(ge=1)
    """Size of the tar."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the tar."""


class Manifest(Settings):
    """What `manifest.json` says: the shards, and nothing about who made them or when."""

    format: Literal["hires_gan shards"] = "hires_gan shards"
    version: int = VERSION
    """Of the format; a reader refuses a newer one."""
    resolution: int = Field(ge=1)
    """Height and width of the images in pixels."""
    count: int = Field(ge=1)
    """Samples in the whole set."""
    columns: tuple[str, ...] = Field(min_length=1)
    """What each sample holds: `image` (or `a` and `b`, for pairs), and `image.64` for a level of 64x64."""
    filter: str
    """The filter that resized the images."""
    label_names: tuple[str, ...] | None = None
    """The classes, in the order of their numbers; null for a set without labels."""
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    """In the order of their rows."""

    def digest(self) -> str:
        """Return the sha256 that identifies the data: equal digests are equal samples in equal order."""
        identity = [self.resolution, self.columns, self.label_names, [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).hexdigest()


def key(number: int) -> str:
    """Return the webdataset key of the sample with this number: the stem of its members' names."""
    return f"{number:09d}"


def side(column: str, resolution: int) -> int:
    """Return the side in pixels of the images in a column: 64 in `image.64`, the set's resolution in `image`."""
    _, _, level = column.partition(".")
    return int(level) if level else resolution


def pictures_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a sample's pictures, in order: `image` alone, or the names of a pair's."""
    return tuple(dict.fromkeys(column.partition(".")[0] for column in columns))


def ending_of(column: str, extension: str) -> str:
    """Return what follows the key in a member's name: `jpg` for `image`, `64.png` for its level, `a.64.png` for a's."""
    return f"{column}.{extension}".removeprefix(f"{IMAGE}.")


def column_of(ending: str) -> str | None:
    """Return the column of a member by what follows the key in its name, or None if that is the name of no picture."""
    stem, _, extension = ending.rpartition(".")
    if extension not in IMAGE_ENDINGS:
        return None
    return f"{IMAGE}.{stem}" if stem.isdecimal() else stem or IMAGE


def index_name(shard: str) -> str:
    """Return the file name of a shard's index."""
    return shard.removesuffix(".tar") + ".index"


def labels_name(shard: str) -> str:
    """Return the file name of a shard's labels."""
    return shard.removesuffix(".tar") + ".labels"


def files_of(shard: str, labelled: bool) -> tuple[str, ...]:
    """Return the names of a shard's files: the tar, the index, and the labels if the set has them."""
    return (shard, index_name(shard), labels_name(shard)) if labelled else (shard, index_name(shard))


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a shard folder.

    Raises:
        UsageError: There is no such folder, or it holds no shard set.
        Failure: The manifest cannot be read, is newer than this program, or contradicts itself.
    """
    manifest = parse_manifest(folder)
    _check_total(folder / MANIFEST, manifest, f"look closer with `hires-gan shards check {folder}`")
    return manifest


def manifest_from(place: str, data: bytes) -> Manifest:
    """Check a manifest that lies somewhere else than in a folder.

    Args:
        place: Where it was found, for people.
        data: What was found.

    Raises:
        Failure: As `read_manifest`.
    """
    manifest = _parse(place, data)
    _check_total(place, manifest, "upload the set anew")
    return manifest


def _check_total(place: Path | str, manifest: Manifest, remedy: str) -> None:
    total = samples_of(manifest)
    if total != manifest.count:
        raise Failure(
            f"{place} says that there are {manifest.count} samples, but its shards add up to {total}: "
            f"copy it again, or {remedy}"
        )


def sizes_of(manifest: Manifest, shard: ShardEntry) -> dict[str, int]:
    """Return the names of a shard's files, the tar first, with the bytes that each of them has."""
    sizes = (
        shard.bytes,
        shard.samples * len(manifest.columns) * INDEX_ROW.itemsize,
        shard.samples * LABEL.itemsize,
    )
    return dict(zip(files_of(shard.name, manifest.label_names is not None), sizes, strict=False))


def samples_of(manifest: Manifest) -> int:
    """Return how many samples the shards of a manifest add up to."""
    return sum(shard.samples for shard in manifest.shards)


def parse_manifest(folder: Path) -> Manifest:
    """Read a manifest whose count may contradict its shards; see `read_manifest`."""
    if not folder.is_dir():
        raise UsageError(f"there is no shard folder {folder}: make it with `hires-gan prepare SRC --out {folder}`")
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder} is no finished shard set (it has no {MANIFEST}): make one with `hires-gan prepare`, or run the "
            "interrupted `prepare` command again to finish it"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _parse(path, data)


def _parse(path: Path | str, data: bytes) -> Manifest:
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise _unreadable(path, error) from None
    _check_version(path, raw)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Failure(f"{path} is no valid manifest: {where}: {first['msg']} (found {first['input']!r})") from None
    _check_contents(path, manifest)
    return manifest


def _unreadable(path: Path | str, error: Exception) -> Failure:
    return Failure(f"{path} cannot be read ({error}): copy it again, or prepare the images again")


def _check_version(path: Path | str, raw: object) -> None:
    if not isinstance(raw, dict) or raw.get("format") != "hires_gan shards":
        raise Failure(f'{path} is not the manifest of a shard set: it lacks "format": "hires_gan shards"')
    version = raw.get("version")
    if isinstance(version, int) and version > VERSION:
        raise Failure(
            f"{path} has version {version} of the shard format, this program reads up to {VERSION}: update hires-gan"
        )


def _check_contents(path: Path | str, manifest: Manifest) -> None:
    for shard in manifest.shards:
        if not _SHARD_NAME.fullmatch(shard.name):
            raise Failure(f"{path} names the shard {shard.name!r}: a plain file name that ends in .tar is allowed")
    for column in manifest.columns:
        if not _COLUMN_NAME.fullmatch(column):
            raise Failure(f"{path} names the column {column!r}: a name is allowed, and a level behind it: image.64")
    for kind, names in (("shard", [shard.name for shard in manifest.shards]), ("column", manifest.columns)):
        again = next((name for name, times in Counter(names).items() if times > 1), None)
        if again is not None:
            raise Failure(f"{path} names the {kind} {again!r} twice: once is allowed; copy it again")
