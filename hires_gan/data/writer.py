"""Writing shards: one tar with its index and labels at a time, visible only when whole, and the manifest last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, NamedTuple, Self

import numpy as np

from hires_gan.data.manifest import (
    INDEX_ROW,
    LABEL,
    MANIFEST,
    Manifest,
    ShardEntry,
    ending_of,
    files_of,
    index_name,
    key,
    labels_name,
)
from hires_gan.errors import Failure

_OWNER = "hires-gan"
_BLOCK = 512
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
PARTIAL = ".partial"
"""The ending of what is still being written; such a file's name begins with a dot."""


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

    What is written has names of its own until `publish_shard`, so that several may write one shard at a time. Leaving
    the `with` block without publishing takes everything back.

    Args:
        folder: The shard folder; it exists.
        number: Of the shard.
        columns: What each sample holds, whole pictures before their levels.
        labelled: Whether each sample has a label.
        first_row: The number that keys count from where `write` is given none.

    Attributes:
        count: Samples written so far.
        attempt: What tells this writer's files from those of any other.
    """

    def __init__(self, folder: Path, number: int, columns: Sequence[str], labelled: bool, first_row: int) -> None:
        # webdataset imports torch, which takes seconds that the rest of `prepare` and its workers need not wait for
        from webdataset.writer import TarWriter

        self.folder, self.name, self.columns, self.labelled = folder, shard_name(number), tuple(columns), labelled
        self.first_row, self.attempt = first_row, unique()
        self._rows: list[tuple[int, int, int]] = []
        self._labels: list[int] = []
        self.count = 0
        self._file = _HashingFile(self._partial(self.name).open("wb"))
        self._tar = TarWriter(self._file, user=_OWNER, group=_OWNER, mtime=0, encoder=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        for name in files_of(self.name, self.labelled):
            self._partial(name).unlink(missing_ok=True)

    def write(self, files: Mapping[str, Encoded], label: int | None, sample_key: str | None = None) -> None:
        """Append a sample: the file of every column, its label in a labelled set, its key if it is not the row."""
        members = {ending_of(column, files[column].extension): files[column].data for column in self.columns}
        if self.labelled:
            assert label is not None
            self._labels.append(label)
            members["cls"] = str(label).encode()
        offsets = _data_offsets(self._tar.tarstream.offset, members)
        self._tar.write({"__key__": sample_key or key(self.first_row + self.count), **members})
        for column in self.columns:
            data = files[column].data
            self._rows.append((offsets[ending_of(column, files[column].extension)], len(data), zlib.crc32(data)))
        self.count += 1

    def finish(self) -> ShardEntry:
        """Make the shard durable and visible, the tar last, and return its entry for the manifest."""
        entry = self.seal()
        publish_shard(self.folder, self.name, self.labelled, self.attempt)
        return entry

    def seal(self) -> ShardEntry:
        """Make the shard durable, still under its own names, and return its entry for the manifest."""
        self._tar.close()
        self._file.sync()
        entry = ShardEntry(
            name=self.name, samples=self.count, bytes=self._file.size, sha256=self._file.sha256.hexdigest()
        )
        _write_synced(self._partial(index_name(self.name)), np.array(self._rows, INDEX_ROW).tobytes())
        if self.labelled:
            _write_synced(self._partial(labels_name(self.name)), np.array(self._labels, LABEL).tobytes())
        return entry

    def _partial(self, name: str) -> Path:
        return partial_path(self.folder / name, self.attempt)


def publish_shard(folder: Path, name: str, labelled: bool, attempt: str) -> None:
    """Give the files of a sealed shard their names, the tar last; somebody else may be doing, or have done, the same.

    Args:
        folder: The shard folder.
        name: File name of the shard.
        labelled: Whether it has labels.
        attempt: Of the writer that sealed it.
    """
    for file in reversed(files_of(name, labelled)):
        with contextlib.suppress(FileNotFoundError):  # it has its name already
            partial_path(folder / file, attempt).replace(folder / file)
    sync_folder(folder)


def unique() -> str:
    """Return a word that nobody else, on whatever machine, has in a file's name."""
    return uuid.uuid4().hex


def partial_path(path: Path, attempt: str) -> Path:
    """Return the name under which one attempt writes a file before it is whole."""
    return path.with_name(f".{path.name}.{attempt}{PARTIAL}")


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
    """Write a file so that it is there whole or not at all, and survives a power cut; the last of several stays."""
    partial = partial_path(path, unique())
    try:
        _write_synced(partial, data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_whole(path: Path, data: bytes) -> bool:
    """Write a file that must not be there yet, whole, so that of several machines that try exactly one succeeds.

    A hard link to a finished file is what NFS, too, makes at once or not at all; its answer may get lost and a repeated
    request find the link made, which the file's own count of links tells. Where the file system knows no hard links,
    the file is opened exclusively and then written: then a kill in between can leave it cut short.

    Returns:
        Whether it was this call that made it.
    """
    partial = partial_path(path, unique())
    try:
        _write_synced(partial, data)
        try:
            os.link(partial, path)
        except FileExistsError:
            return partial.stat().st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_exclusively(path, data)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _create_exclusively(path: Path, data: bytes) -> bool:
    try:
        _write_synced(path, data, "xb")
    except FileExistsError:
        return False
    sync_folder(path.parent)
    return True


def _write_synced(path: Path, data: bytes, mode: Literal["wb", "xb"] = "wb") -> None:
    with path.open(mode) as file:
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
