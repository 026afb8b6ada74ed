"""The files of a shard set under their numbers: in a folder, kept open; or in a cache, opened anew for every read."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import resource
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from hires_gan.data.manifest import LABEL, Manifest, index_name, labels_name
from hires_gan.data.shard_cache import Copy, ShardCache
from hires_gan.data.store import Address
from hires_gan.errors import Failure

_ROW = struct.Struct("<QII")
_ATTEMPTS = 20
"""How often a shard is fetched that is gone again before it can be opened."""


class ShardFiles(Protocol):
    """Reads the files of a set, each shard by its number."""

    def path(self, shard: int) -> Path:
        """Where the tar lies."""

    def row(self, shard: int, number: int) -> tuple[int, int, int]:
        """Row `number` of the index: offset, size, crc32."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of the tar; fewer only at its end."""

    def labels(self, shard: int) -> np.ndarray:
        """The labels: int32 [samples]."""

    def prepare_labels(self) -> None:
        """Get ready for the labels of all shards."""

    def copy(self, shard: int) -> Copy | None:
        """Which copy of a shard is there now, if there can be several."""

    def renew(self, shard: int, copy: Copy | None) -> bool:
        """Whether it is worth reading a shard again in which something was wrong.

        Args:
            shard: Its number.
            copy: What `copy` said before it was read.
        """

    def close(self) -> None:
        """Close what is open, and believe nothing that was found out: what is read from now on is opened anew."""


class FolderFiles:
    """Files in a folder. They stay open per process, the least recently used are closed.

    Args:
        folder: Of the set.
        manifest: Of the set.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        names = [shard.name for shard in manifest.shards]
        self._paths = [folder / name for name in names]
        labels = [folder / labels_name(name) for name in names]
        classes = len(manifest.label_names or ())
        self._map = functools.partial(_map_index, [folder / index_name(name) for name in names])
        self._open = functools.partial(_open_file, self._paths)
        self._labels: Callable[[int], np.ndarray] = functools.cache(functools.partial(_read_labels, labels, classes))
        self.close()

    def close(self) -> None:
        """Close what is open; the labels are in memory."""
        limit = _open_files_limit()
        self._index: Callable[[int], mmap.mmap] = functools.lru_cache(limit)(self._map)
        self._file: Callable[[int], _OpenFile] = functools.lru_cache(limit)(self._open)

    def path(self, shard: int) -> Path:
        """Where the tar lies."""
        return self._paths[shard]

    def row(self, shard: int, number: int) -> tuple[int, int, int]:
        """Row `number` of the index: offset, size, crc32."""
        offset, size, crc32 = _ROW.unpack_from(self._index(shard), number * _ROW.size)
        return offset, size, crc32

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of the tar; fewer only at its end."""
        return self._file(shard).read(offset, size)

    def labels(self, shard: int) -> np.ndarray:
        """The labels: int32 [samples]."""
        return self._labels(shard)

    def prepare_labels(self) -> None:
        """They are there."""

    def copy(self, shard: int) -> None:
        """There is but one."""

    def renew(self, shard: int, copy: Copy | None) -> bool:
        """There is no other copy."""
        return False


class CachedFiles:
    """Files in a cache, fetched when they are needed.

    Nothing stays open: what the cache drops frees its room on the disk at once.

    Args:
        cache: Of the set.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._sound: dict[int, Copy | None] = {}
        self._labels: dict[int, np.ndarray] = {}

    def path(self, shard: int) -> Path:
        """Where the tar lies, once it is there."""
        return self._cache.path(shard)

    def row(self, shard: int, number: int) -> tuple[int, int, int]:
        """Row `number` of the index: offset, size, crc32.

        Raises:
            Failure: The shard cannot be fetched.
        """
        with self._open(shard, index_name) as descriptor:
            data = _pread(descriptor, number * _ROW.size, _ROW.size)
        # An index that was cut short behind our back points nowhere; the shard then counts as damaged.
        offset, size, crc32 = _ROW.unpack(data.ljust(_ROW.size, b"\xff"))
        return offset, size, crc32

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of the tar; fewer only at its end.

        Raises:
            Failure: The shard cannot be fetched.
        """
        with self._open(shard, str) as descriptor:
            return _pread(descriptor, offset, size)

    def labels(self, shard: int) -> np.ndarray:
        """The labels: int32 [samples]; kept in memory.

        Raises:
            Failure: They cannot be fetched, or are out of range.
        """
        known = self._labels.get(shard)
        if known is None:
            known = self._labels[shard] = self._read_labels(shard)
        return known

    def prepare_labels(self) -> None:
        """Read the labels of all shards, several at once."""
        with ThreadPoolExecutor(self._cache.downloads, "labels") as threads:
            for _ in threads.map(self.labels, range(len(self._cache.manifest.shards))):
                pass

    def copy(self, shard: int) -> Copy | None:
        """Which copy of a shard is there now."""
        return self._cache.copy(shard)

    def renew(self, shard: int, copy: Copy | None) -> bool:
        """Mend a shard's copy, unless it was found to be what the store has: then so is what is wrong in it."""
        if copy is not None and self._sound.get(shard) == copy:
            return False
        self._sound[shard] = self._cache.renew(shard, copy)
        return True

    def close(self) -> None:
        """Nothing is open; a copy that was found to be what the store has may be compared again."""
        self._sound.clear()

    def _read_labels(self, shard: int) -> np.ndarray:
        name = labels_name(self._cache.manifest.shards[shard].name)
        for _ in range(_ATTEMPTS):
            copy = self._cache.copy(shard)
            try:
                data = (self._cache.folder / name).read_bytes()
            except FileNotFoundError:
                self._cache.ensure_labels(shard)
                continue
            if not self._cache.is_as_fetched(shard, name, data):
                self._cache.renew(shard, copy)
                continue
            place = Address(self._cache.store.address) / name
            return checked_labels(place, np.frombuffer(data, LABEL), len(self._cache.manifest.label_names or ()))
        raise self._no_peace(shard)

    @contextlib.contextmanager
    def _open(self, shard: int, name_of: Callable[[str], str]) -> Iterator[int]:
        """Open a file of a shard, fetching it first if it is not there (any more)."""
        path = self._cache.folder / name_of(self._cache.manifest.shards[shard].name)
        for _ in range(_ATTEMPTS):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._cache.ensure(shard)
                continue
            try:
                self._cache.touch(shard)
                yield descriptor
            finally:
                os.close(descriptor)
            return
        raise self._no_peace(shard)

    def _no_peace(self, shard: int) -> Failure:
        return Failure(
            f"{self._cache.path(shard)} was fetched {_ATTEMPTS} times and dropped again before it could be read: the "
            "cache is too small for all that use it; raise data.stream.cache_gb, or make room on its disk"
        )


class _OpenFile:
    """A file descriptor that is closed with its last reference: a thread may still read what the cache let go."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end of the file."""
        return _pread(self._descriptor, offset, size)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # a network file system may answer in parts
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _map_index(paths: Sequence[Path], shard: int) -> mmap.mmap:
    try:
        with paths[shard].open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise vanished(paths[shard], error) from None


def _open_file(paths: Sequence[Path], shard: int) -> _OpenFile:
    try:
        return _OpenFile(paths[shard])
    except OSError as error:
        raise vanished(paths[shard], error) from None


def _read_labels(paths: Sequence[Path], classes: int, shard: int) -> np.ndarray:
    """Read a shard's labels. Four bytes a sample are not worth a file descriptor."""
    try:
        labels = np.fromfile(paths[shard], LABEL)
    except OSError as error:
        raise vanished(paths[shard], error) from None
    return checked_labels(paths[shard], labels, classes)


def checked_labels(place: Path | Address, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels, int32 [samples], if they are numbers of classes.

    Raises:
        Failure: They are not.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise Failure(
            f"{place} holds labels from {labels.min()} to {labels.max()}, the manifest names {classes} classes: "
            "the file was changed; copy it again, or prepare the images again"
        )
    return labels


def vanished(path: Path, error: OSError) -> Failure:
    """Put into a sentence that a file of a folder's set is not there."""
    return Failure(
        f"{path} belongs to the shard set but cannot be opened ({error.strerror}): "
        "copy it again, or prepare the images again"
    )


def _open_files_limit() -> int:
    """Shards and indexes to keep open each: together at most half of what the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(8, min(1024, soft // 4))
