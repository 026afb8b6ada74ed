"""Writing shards: one tar with its index and labels at a time, visible only when whole, and the manifest last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np

from hires_gan.data.manifest import INDEX_ROW, LABEL, MANIFEST, Manifest, ShardEntry, index_name, key, labels_name
from hires_gan.errors import Failure

_OWNER = "hires-gan"
_BLOCK = 512
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Encoded(NamedTuple):
    """The file of one column of one sample."""

    extension: str
    """`jpg` or `png`."""
    data: bytes
    """The whole file."""


def shard_name(number: int) -> str:
    """Return the file name of the shard with this number."""
    return f"shard-{number:06d}.tar"


class ShardWriter:
    """Writes one shard; equal samples give equal bytes.

    Leaving the `with` block without `finish` takes everything back.

    Args:
        folder: The shard folder; it exists.
        number: Of the shard.
        columns: What each sample holds, `image` first.
        labelled: Whether each sample has a label.
        first_row: Row of the first sample in the whole set.

    Attributes:
        count: Samples written so far.
    """

    def __init__(self, folder: Path, number: int, columns: Sequence[str], labelled: bool, first_row: int) -> None:
        # webdataset imports torch, which takes seconds that the rest of `prepare` and its workers need not wait for
        from webdataset.writer import TarWriter

        self.folder, self.name, self.columns, self.labelled = folder, shard_name(number), tuple(columns), labelled
        self.first_row = first_row
        self._rows: list[tuple[int, int, int]] = []
        self._labels: list[int] = []
        self.count = 0
        self._file = _HashingFile(self._partial(self.name).open("wb"))
        self._tar = TarWriter(self._file, user=_OWNER, group=_OWNER, mtime=0, encoder=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        for name in self._names():
            self._partial(name).unlink(missing_ok=True)

    def write(self, files: Mapping[str, Encoded], label: int | None) -> None:
        """Append a sample: the file of every column, and its label in a labelled set."""
        members = {_member(column, files[column].extension): files[column].data for column in self.columns}
        if self.labelled:
            assert label is not None
            self._labels.append(label)
            members["cls"] = str(label).encode()
        offsets = _data_offsets(self._tar.tarstream.offset, members)
        self._tar.write({"__key__": key(self.first_row + self.count), **members})
        for column in self.columns:
            data = files[column].data
            self._rows.append((offsets[_member(column, files[column].extension)], len(data), zlib.crc32(data)))
        self.count += 1

    def finish(self) -> ShardEntry:
        """Make the shard durable and visible, the tar last, and return its entry for the manifest."""
        self._tar.close()
        self._file.sync()
        entry = ShardEntry(
            name=self.name, samples=self.count, bytes=self._file.size, sha256=self._file.sha256.hexdigest()
        )
        _write_synced(self._partial(index_name(self.name)), np.array(self._rows, INDEX_ROW).tobytes())
        if self.labelled:
            _write_synced(self._partial(labels_name(self.name)), np.array(self._labels, LABEL).tobytes())
        for name in self._names():
            self._partial(name).replace(self.folder / name)
        sync_folder(self.folder)
        return entry

    def _names(self) -> list[str]:
        labels = [labels_name(self.name)] if self.labelled else []
        return [index_name(self.name), *labels, self.name]

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial"


class _HashingFile:
    """A file that is only ever appended to, and knows the sha256 of what it holds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        if self._file.closed:  # the shard was given up; tarfile still flushes what it holds when it is collected
            return len(data)
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        # closing flushes: after a failed write it fails once more, and the first reason is the one to report
        with contextlib.suppress(OSError):
            self._file.close()


def _member(column: str, extension: str) -> str:
    """Return what follows the key in a member's name: `jpg` for `image`, `64.png` for `image.64`."""
    _, _, level = column.partition(".")
    return f"{level}.{extension}" if level else extension


def _data_offsets(start: int, members: Mapping[str, bytes]) -> dict[str, int]:
    """Return where each member's data will lie: webdataset writes them by name, a header block before each."""
    offsets = {}
    for name in sorted(members):
        offsets[name] = start + _BLOCK
        start = offsets[name] + -(-len(members[name]) // _BLOCK) * _BLOCK
    return offsets


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, which makes the folder a shard set."""
    write_atomically(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, and survives a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    _write_synced(partial, data)
    partial.replace(path)
    sync_folder(path.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_failure(folder: Path, needed: int | None, error: OSError) -> Failure:
    """Put into a sentence why a shard folder cannot be written: a full disk, quota or file size limit, or another.

    Args:
        folder: Where it was written.
        needed: Bytes that are still to be written, as far as that can be told.
        error: What the system said.
    """
    if error.errno not in _NO_SPACE:
        return Failure(f"{folder} cannot be prepared: {error.filename or folder}: {error.strerror or error}")
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    need = f"about {needed / 2**20:,.0f} MiB more are needed" if needed is not None else "more space is needed"
    return Failure(
        f"{folder} cannot take more data ({error.strerror}): {need}, {free / 2**20:,.0f} MiB are free; make room and "
        "run the same command again to continue"
    )
