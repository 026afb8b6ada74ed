"""Listing what zip and tar archives hold, and reading single members by offset. Nothing is ever extracted."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from hires_gan.data.rejection import Rejected
from hires_gan.errors import Failure

LARGEST_FILE = 2**30
"""Bytes of one image file: more is a mistake or an attack."""
_STORED, _DEFLATED, _ENCRYPTED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, -1
_LOCAL_HEADER = 30
_PACKED_TARS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


class Reference(NamedTuple):
    """Where an image's bytes are; any process can read them from this alone."""

    path: str
    """The image file, or the archive that holds it."""
    name: str
    """Within its source, with forward slashes."""
    shown: str
    """For people: the archive as they named it, and the name."""
    size: int
    """Of the image file in bytes."""
    offset: int | None = None
    """In the archive: of the data in a tar, of the local header in a zip; None for a plain file."""
    packed: int | None = None
    """Bytes that a zip member takes in the archive; None outside of zips."""
    method: int = _STORED
    """How a zip member is compressed."""
    crc32: int | None = None
    """Of the image file, if the archive knows it."""


def read_bytes(reference: Reference) -> bytes:
    """Read one image file.

    Raises:
        Rejected: It cannot be read, is absurdly large, or is not what the archive says.
    """
    if reference.size > LARGEST_FILE:
        raise Rejected(f"the file claims to have {reference.size} bytes, more than any image")
    try:
        with Path(reference.path).open("rb") as file:
            data = _read_member(file, reference)
    except OSError as error:
        raise Rejected(f"the file cannot be read: {error.strerror}") from None
    if len(data) != reference.size:
        raise Rejected(f"the file has {len(data)} bytes instead of {reference.size}: it was cut short or changed")
    if reference.crc32 is not None and zlib.crc32(data) != reference.crc32:
        raise Rejected("the file is damaged: its checksum is not the one in the archive")
    return data


def _read_member(file: IO[bytes], reference: Reference) -> bytes:
    if reference.offset is None:
        return file.read(reference.size + 1)
    file.seek(reference.offset)
    if reference.packed is None:
        return file.read(reference.size)
    return _read_packed(file, reference.packed, reference)


def _read_packed(file: IO[bytes], packed: int, reference: Reference) -> bytes:
    """Read a zip member; `file` stands at its local header, which may be longer than the directory tells."""
    if reference.method not in (_STORED, _DEFLATED):
        kind = "encrypted" if reference.method == _ENCRYPTED else f"compressed by method {reference.method}"
        raise Rejected(f"the file is {kind} inside the zip: only stored and deflated members can be read")
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise Rejected("the zip is damaged where the file should begin")
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
    data = file.read(min(packed, LARGEST_FILE))
    if reference.method == _STORED:
        return data
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, reference.size + 1)
    except zlib.error as error:
        raise Rejected(f"the file is damaged inside the zip: {error}") from None


def list_zip(path: Path) -> list[Reference]:
    """List the files in a zip.

    Raises:
        Failure: It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Failure(
            f"{path} cannot be read as a zip ({error}): it is damaged or incomplete, fetch it again"
        ) from None
    return [
        Reference(
            path=str(path),
            name=member.filename,
            shown=f"{path}/{member.filename}",
            size=member.file_size,
            offset=member.header_offset,
            packed=member.compress_size,
            method=_ENCRYPTED if member.flag_bits & 1 else member.compress_type,
            crc32=member.CRC,
        )
        for member in members
    ]


def list_tar(path: Path, scratch: Path) -> list[Reference]:
    """List the regular files in a tar; a compressed one is decompressed into `scratch` first, once.

    Raises:
        Failure: It cannot be read.
    """
    plain = _decompressed(path, scratch)
    try:
        with tarfile.open(plain, "r:") as archive:
            return list(_regular_files(path, plain, archive))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise Failure(
            f"{path} cannot be read as a tar ({error}): it is damaged or incomplete, fetch it again"
        ) from None


def _regular_files(path: Path, plain: Path, archive: tarfile.TarFile) -> Iterator[Reference]:
    while (member := archive.next()) is not None:
        if member.isreg() and not member.issparse():
            name = member.name.removeprefix("./")
            yield Reference(str(plain), name, f"{path}/{name}", size=member.size, offset=member.offset_data)
        archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps a kilobyte per member
    # tarfile takes a damaged header for the end of the archive; the true end is zeros, or the end of the file
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise Failure(f"{path} is damaged at byte {archive.offset}: what follows cannot be read, fetch it again")


def is_tar(path: Path) -> bool:
    """Tell whether a file looks like a tar, compressed or not."""
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    return start[257:262] == b"ustar" or _packing(start) is not None


def _packing(start: bytes) -> str | None:
    """Tell by its first bytes how a tar is compressed, if it is."""
    return next((name for magic, name in _PACKED_TARS.items() if start.startswith(magic)), None)


def _unpacked(path: Path, packing: str) -> IO[bytes]:
    opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[packing]
    stream: IO[bytes] = opener(path, "rb")
    return stream


def _decompressed(path: Path, scratch: Path) -> Path:
    """Return the tar itself if it is plain, else a decompressed copy in `scratch`, made now or by an earlier start."""
    with path.open("rb") as file:
        packing = _packing(file.read(8))
    if packing is None:
        return path
    status = path.stat()
    identity = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = scratch / f"{identity}.tar"
    if not copy.exists():
        partial = copy.with_suffix(f".{uuid.uuid4().hex}.partial")  # another machine may be making the same copy
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            with _unpacked(path, packing) as packed, partial.open("wb") as plain:
                _copy(path, packed, plain)
            partial.replace(copy)
        finally:
            partial.unlink(missing_ok=True)
    return copy


def _copy(path: Path, packed: IO[bytes], plain: IO[bytes]) -> None:
    try:
        shutil.copyfileobj(packed, plain, 2**20)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise Failure(f"{path} cannot be decompressed ({error}): it is damaged or incomplete, fetch it again") from None
    except OSError as error:
        if error.errno is not None:  # the disk's word, not the decompressor's
            raise
        raise Failure(f"{path} cannot be decompressed ({error}): it is damaged or incomplete, fetch it again") from None
