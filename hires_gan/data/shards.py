"""Reading shards: any sample's bytes by its row, checked. The format is described in `manifest`."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hires_gan.data.manifest import IMAGE, Manifest, ShardEntry, files_of, key, read_manifest, sizes_of
from hires_gan.data.shard_cache import ShardCache
from hires_gan.data.shard_files import CachedFiles, FolderFiles, ShardFiles, vanished
from hires_gan.data.store import Address, remedy
from hires_gan.data.tar_walk import BLOCK, Member, is_key, parse_header
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

__all__ = ["IMAGE", "CorruptSample", "Location", "Manifest", "ShardEntry", "ShardSet", "key", "read_manifest"]


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
    """A folder of shards, or one elsewhere whose shards are fetched, opened for reading samples by their row.

    Opening reads the manifest and compares the files' sizes with it, and says once in a process which other tars lie in
    the folder; the index of a shard is mapped when a sample of it is first asked for. Files stay open per process, the
    least recently used are closed. A set may be used by several threads, survives a fork, and is cheap to hand to
    another process.

    Args:
        folder: The folder that `hires-gan prepare` wrote.

    Raises:
        UsageError: There is no such folder, or it holds no shard set.
        Failure: The manifest cannot be read or is newer than this program, or a file is missing or has another size.

    Attributes:
        folder: Where the set is, for people; a path, or what stands for one.
        manifest: What the shards are.
        cache: Where the shards of a streamed set are kept; None for a folder.
    """

    def __init__(self, folder: Path) -> None:
        folder = Path(folder)
        manifest = read_manifest(folder)
        self._adopt(folder, manifest, FolderFiles(folder, manifest))
        for shard in self.manifest.shards:
            _check_sizes(folder, manifest, shard)
        with contextlib.suppress(PermissionError):  # a folder that may be entered but not listed
            _mention_strangers(folder, tuple(strangers(folder, manifest, (".tar",))))

    @classmethod
    def through(cls, cache: ShardCache) -> ShardSet:
        """Open a streamed set: a shard is fetched into the cache when a sample of it is first asked for.

        Args:
            cache: Of the set.
        """
        shards = cls.__new__(cls)
        shards._adopt(Address(cache.store.address), cache.manifest, CachedFiles(cache), cache)
        return shards

    def _adopt(
        self, folder: Path | Address, manifest: Manifest, files: ShardFiles, cache: ShardCache | None = None
    ) -> None:
        self.folder, self.manifest, self.cache, self._files = folder, manifest, cache, files
        self._starts = list(itertools.accumulate((shard.samples for shard in manifest.shards), initial=0))
        self._columns = {column: number for number, column in enumerate(manifest.columns)}

    def __reduce__(self) -> tuple[Callable[..., ShardSet], tuple[object, ...]]:
        if self.cache is not None:
            return ShardSet.through, (self.cache,)
        return _reopened, (self.folder, self.manifest.model_dump_json())

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def streamed(self) -> bool:
        """Whether the set is elsewhere, and its shards are fetched when they are needed."""
        return self.cache is not None

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
        row_of_index = self._files.row(shard, within * len(self._columns) + number)
        return Location(self._files.path(shard), *row_of_index)

    def read(self, row: int, column: str = IMAGE) -> bytes:
        """Return the encoded bytes of a sample's column, after their crc32 was compared with the index.

        Args:
            row: Number of the sample, 0 to len - 1.
            column: One of the manifest's columns.

        Raises:
            CorruptSample: The bytes are not those that were written; of a streamed set not even in the store.
            UsageError: The set has no such column.
            Failure: The shard cannot be fetched.
        """
        shard, _ = self._find(row)
        copy = self._files.copy(shard)
        try:
            return self._read(row, column)
        except (CorruptSample, OSError):
            if not self._files.renew(shard, copy):
                raise
        return self._read(row, column)

    def _read(self, row: int, column: str) -> bytes:
        location = self.locate(row, column)
        shard, _ = self._find(row)
        if location.offset + location.size > self.manifest.shards[shard].bytes:
            raise self._corrupt(row, column, "its index points behind the end of the shard")
        if location.size == 0:  # as in a row of zeros, whose crc32 would be right
            raise self._corrupt(row, column, "its index says that it has no bytes")
        data = self._files.read(shard, location.offset, location.size)
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
        return self._files.read(self._find(row)[0], location.offset, min(size, location.size))

    def close_files(self) -> None:
        """Let go of every open file: the next read opens it anew. Whoever reads one at the moment still can."""
        self._files.close()

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
            header = self._files.read(shard, offset, BLOCK) if offset >= 0 else b""
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
        return int(self._files.labels(shard)[within])

    @functools.cached_property
    def label_counts(self) -> np.ndarray | None:
        """How many samples each class has: int64 [classes], or None for a set without labels."""
        if self.manifest.label_names is None:
            return None
        classes = len(self.manifest.label_names)
        counts = np.zeros(classes, np.int64)
        self._files.prepare_labels()
        for shard in range(len(self.manifest.shards)):
            counts += np.bincount(self._files.labels(shard), minlength=classes)
        return counts

    def _find(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and the row's place in that shard."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a set of {len(self)} samples")
        shard = bisect.bisect_right(self._starts, row) - 1
        return shard, row - self._starts[shard]

    def _need_labels(self) -> None:
        if self.manifest.label_names is None:
            raise UsageError(f"{self.folder} has no labels: prepare the images again with --labels")

    def _corrupt(self, row: int, column: str, found: str) -> CorruptSample:
        shard, key = self.manifest.shards[self._find(row)[0]].name, self.key_of(row)
        return CorruptSample(
            f"{self.folder / shard}, sample {key}, column '{column}': {found}; the shard was changed or damaged since "
            f"it was made: {remedy(str(self.folder))}",
            shard,
            row,
            column,
            key,
        )


def _check_sizes(folder: Path, manifest: Manifest, shard: ShardEntry) -> None:
    for name, size in sizes_of(manifest, shard).items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise vanished(folder / name, error) from None
        if found != size:
            raise Failure(
                f"{folder / name} has {found} bytes where its manifest says {size}: it was cut short or "
                "changed; copy it again, or prepare the images again"
            )


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
    checked = Manifest.model_validate_json(manifest)
    shards._adopt(folder, checked, FolderFiles(folder, checked))
    return shards
