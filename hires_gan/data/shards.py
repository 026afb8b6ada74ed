"""Reading shards: any sample's bytes by its row, checked. The format is described in `manifest`."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import mmap
import os
import resource
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hires_gan.data.manifest import (
    IMAGE,
    LABEL,
    Manifest,
    ShardEntry,
    files_of,
    index_name,
    key,
    labels_name,
    read_manifest,
)
from hires_gan.data.tar_walk import BLOCK, Member, is_key, parse_header
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

__all__ = ["IMAGE", "CorruptSample", "Location", "Manifest", "ShardEntry", "ShardSet", "key", "read_manifest"]

_ROW = struct.Struct("<QII")


class CorruptSample(Failure):
    """A sample's bytes are not those that were written.

    Attributes:
        shard: File name of the shard.
        row: Number of the sample in the set.
        column: The column that was read.
        key: Of the sample; see `ShardSet.key_of`.
    """

    def __init__(self, message: str, shard: str, row: int, column: str, key: str) -> None:
        super().__init__(message)
        self.shard, self.row, self.column, self.key = shard, row, column, key

    def __reduce__(self) -> tuple[type[CorruptSample], tuple[str, str, int, str, str]]:
        return type(self), (str(self), self.shard, self.row, self.column, self.key)


class Location(NamedTuple):
    """Where the bytes of one column of one sample lie."""

    path: Path
    """The shard."""
    offset: int
    """First byte in the shard."""
    size: int
    """Length in bytes."""
    crc32: int
    """Of these bytes."""


class ShardSet:
    """A folder of shards, opened for reading samples by their row.

    Opening reads the manifest and compares the files' sizes with it, and says once in a process which other tars lie in
    the folder; the index of a shard is mapped when a sample of it is first asked for. Files stay open per process, the
    least recently used are closed. A set may be used by several threads, survives a fork, and is cheap to hand to
    another process.

    Args:
        folder: The folder that `hires-gan prepare` wrote.

    Raises:
        UsageError: There is no such folder, or it holds no shard set.
        Failure: The manifest cannot be read or is newer than this program, or a file is missing or has another size.
    """

    def __init__(self, folder: Path) -> None:
        self._adopt(Path(folder), read_manifest(Path(folder)))
        for shard in self.manifest.shards:
            self._check_sizes(shard)
        with contextlib.suppress(PermissionError):  # a folder that may be entered but not listed
            _mention_strangers(self.folder, tuple(strangers(self.folder, self.manifest, (".tar",))))

    def _adopt(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._paths = [folder / shard.name for shard in manifest.shards]
        self._starts = list(itertools.accumulate((shard.samples for shard in manifest.shards), initial=0))
        self._columns = {column: number for number, column in enumerate(manifest.columns)}
        names = [shard.name for shard in manifest.shards]
        indexes = [folder / index_name(name) for name in names]
        labels = [folder / labels_name(name) for name in names]
        classes = len(manifest.label_names or ())
        limit = _open_files_limit()
        self._index: Callable[[int], mmap.mmap] = functools.lru_cache(limit)(functools.partial(_map_index, indexes))
        self._file: Callable[[int], _OpenFile] = functools.lru_cache(limit)(functools.partial(_open_file, self._paths))
        self._labels: Callable[[int], np.ndarray] = functools.cache(functools.partial(_read_labels, labels, classes))

    def __reduce__(self) -> tuple[Callable[[Path, str], ShardSet], tuple[Path, str]]:
        return _reopened, (self.folder, self.manifest.model_dump_json())

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def resolution(self) -> int:
        """Height and width of the images in pixels."""
        return self.manifest.resolution

    def locate(self, row: int, column: str = IMAGE) -> Location:
        """Return where the bytes of a sample's column lie.

        Args:
            row: Number of the sample, 0 to len - 1.
            column: One of the manifest's columns.

        Raises:
            UsageError: The set has no such column.
        """
        shard, within = self._find(row)
        number = self._columns.get(column)
        if number is None:
            raise UsageError(
                f"{self.folder} has no column '{column}', only {', '.join(self._columns)}: "
                "prepare the images again with the --levels that are wanted"
            )
        position = (within * len(self._columns) + number) * _ROW.size
        return Location(self._paths[shard], *_ROW.unpack_from(self._index(shard), position))

    def read(self, row: int, column: str = IMAGE) -> bytes:
        """Return the encoded bytes of a sample's column, after their crc32 was compared with the index.

        Args:
            row: Number of the sample, 0 to len - 1.
            column: One of the manifest's columns.

        Raises:
            CorruptSample: The bytes are not those that were written.
            UsageError: The set has no such column.
        """
        location = self.locate(row, column)
        shard, _ = self._find(row)
        if location.offset + location.size > self.manifest.shards[shard].bytes:
            raise self._corrupt(row, column, "its index points behind the end of the shard")
        data = self._file(shard).read(location.offset, location.size)
        if len(data) < location.size:
            raise self._corrupt(row, column, f"the file ends after {len(data)} of its {location.size} bytes")
        found = zlib.crc32(data)
        if found != location.crc32:
            raise self._corrupt(row, column, f"its crc32 is {found:08x}, the index says {location.crc32:08x}")
        return data

    def read_start(self, row: int, column: str, size: int) -> bytes:
        """Return the first bytes of a sample's column, unchecked: enough to tell what kind of file it is.

        Args:
            row: Number of the sample, 0 to len - 1.
            column: One of the manifest's columns.
            size: How many bytes; fewer come back from a shorter file.

        Raises:
            UsageError: The set has no such column.
        """
        location = self.locate(row, column)
        return self._file(self._find(row)[0]).read(location.offset, min(size, location.size))

    def key_of(self, row: int) -> str:
        """Return the key by which a person finds a sample in its tar.

        Args:
            row: Number of the sample, 0 to len - 1.

        Returns:
            The key as the header before the image says, such as `000000123`; `row 123` where that cannot be read.
        """
        shard, _ = self._find(row)
        try:
            offset = self.locate(row, self.manifest.columns[0]).offset - BLOCK
            header = self._file(shard).read(offset, BLOCK) if offset >= 0 else b""
        except (OSError, OverflowError, Failure):
            return f"row {row}"
        found = parse_header(header, offset)
        return found.key if isinstance(found, Member) and is_key(found.key) else f"row {row}"

    def label(self, row: int) -> int:
        """Return the number of a sample's class.

        Raises:
            UsageError: The set has no labels.
        """
        self._need_labels()
        shard, within = self._find(row)
        return int(self._labels(shard)[within])

    @functools.cached_property
    def label_counts(self) -> np.ndarray | None:
        """How many samples each class has: int64 [classes], or None for a set without labels."""
        if self.manifest.label_names is None:
            return None
        classes = len(self.manifest.label_names)
        counts = np.zeros(classes, np.int64)
        for shard in range(len(self._paths)):
            counts += np.bincount(self._labels(shard), minlength=classes)
        return counts

    def _find(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and the row's place in that shard."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a set of {len(self)} samples")
        shard = bisect.bisect_right(self._starts, row) - 1
        return shard, row - self._starts[shard]

    def _check_sizes(self, shard: ShardEntry) -> None:
        expected = {shard.name: shard.bytes, index_name(shard.name): shard.samples * len(self._columns) * _ROW.size}
        if self.manifest.label_names is not None:
            expected[labels_name(shard.name)] = shard.samples * LABEL.itemsize
        for name, size in expected.items():
            try:
                found = (self.folder / name).stat().st_size
            except OSError as error:
                raise _vanished(self.folder / name, error) from None
            if found != size:
                raise Failure(
                    f"{self.folder / name} has {found} bytes where its manifest says {size}: it was cut short or "
                    "changed; copy it again, or prepare the images again"
                )

    def _need_labels(self) -> None:
        if self.manifest.label_names is None:
            raise UsageError(f"{self.folder} has no labels: prepare the images again with --labels")

    def _corrupt(self, row: int, column: str, found: str) -> CorruptSample:
        shard, key = self.manifest.shards[self._find(row)[0]].name, self.key_of(row)
        return CorruptSample(
            f"{self.folder / shard}, sample {key}, column '{column}': {found}; the shard was changed or damaged since "
            f"it was made: copy it again, or drop what is damaged with `hires-gan shards check {self.folder} --repair`",
            shard,
            row,
            column,
            key,
        )


class _OpenFile:
    """A file descriptor that is closed with its last reference: a thread may still read what the cache let go."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end of the file."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a network file system may answer in parts
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _map_index(paths: Sequence[Path], shard: int) -> mmap.mmap:
    try:
        with paths[shard].open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise _vanished(paths[shard], error) from None


def _open_file(paths: Sequence[Path], shard: int) -> _OpenFile:
    try:
        return _OpenFile(paths[shard])
    except OSError as error:
        raise _vanished(paths[shard], error) from None


def _read_labels(paths: Sequence[Path], classes: int, shard: int) -> np.ndarray:
    """Read a shard's labels: int32 [samples]. Four bytes a sample are not worth a file descriptor."""
    try:
        labels = np.fromfile(paths[shard], LABEL)
    except OSError as error:
        raise _vanished(paths[shard], error) from None
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise Failure(
            f"{paths[shard]} holds labels from {labels.min()} to {labels.max()}, the manifest names {classes} classes: "
            "the file was changed; copy it again, or prepare the images again"
        )
    return labels


def strangers(folder: Path, manifest: Manifest, endings: tuple[str, ...]) -> list[str]:
    """Return the names of the files with one of these endings that lie in a shard folder and do not belong to the set.

    Args:
        folder: The shard folder.
        manifest: Of the set.
        endings: Some of `.tar`, `.index` and `.labels`.
    """
    own = {name for shard in manifest.shards for name in files_of(shard.name, manifest.label_names is not None)}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(endings)]
    return sorted(name for name in names if name not in own and not name.startswith("."))


@functools.cache
def _mention_strangers(folder: Path, names: tuple[str, ...]) -> None:
    """Say, once in a process, that a folder holds tars that its manifest does not name."""
    if names:
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        say(
            f"warning: {folder} holds {few} beside the shards that its manifest names: left alone; move away what does "
            f"not belong there, or look closer with `hires-gan shards check {folder}`"
        )


def _reopened(folder: Path, manifest: str) -> ShardSet:
    """Rebuild a set in another process from what the first already checked."""
    shards = ShardSet.__new__(ShardSet)
    shards._adopt(folder, Manifest.model_validate_json(manifest))
    return shards


def _vanished(path: Path, error: OSError) -> Failure:
    return Failure(
        f"{path} belongs to the shard set but cannot be opened ({error.strerror}): "
        "copy it again, or prepare the images again"
    )


def _open_files_limit() -> int:
    """Shards and indexes to keep open each: together at most half of what the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(8, min(1024, soft // 4))
