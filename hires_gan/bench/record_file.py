"""The JSON file of a measurement: whole at any moment, and gone on with by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hires_gan.data.folder_lock import is_at
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.files import cannot_write, write_whole


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write a result as JSON; what was there stays until the new one is whole.

    Raises:
        Failure: If the file cannot be written.
    """
    place, text = _place(out), json.dumps(record, indent=1) + "\n"
    if not _is_special(place):
        write_whole(place, lambda partial: partial.write_text(text))
        return
    try:
        place.write_text(text)
    except OSError as error:
        raise cannot_write(out, error) from None


def require_writable(path: Path) -> None:
    """See, before anything is measured, that a result can be written; what is there stays as it is.

    Raises:
        Failure: If the file cannot be written.
    """
    place = _place(path)
    try:
        new = not path.exists()
        path.open("ab").close()
        if new:
            place.unlink()
        if not _is_special(place):
            beside = _beside(place, "probe")
            beside.open("wb").close()
            beside.unlink()
    except OSError as error:
        raise Failure(
            f"{path} cannot be written: {error.strerror}; name a file in a folder that is there and can be written to"
        ) from None


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Let no other process go on with a file meanwhile, whose rows this one would write over.

    Raises:
        UsageError: Another one does.
    """
    lock = _beside(_place(out), "lock")
    while True:
        with lock.open("wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(file.fileno(), out)
            if is_at(lock, file.fileno()):  # else it is the deleted file of one that has ended since
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: somebody else holds it
        raise UsageError(
            f"--out is {out}, which another process goes on with: wait for it, or name another file"
        ) from None


def _place(path: Path) -> Path:
    """Where a link points to, so that the link stays."""
    return Path(os.path.realpath(path))


def _is_special(place: Path) -> bool:
    """Whether it is a device or a pipe, in whose place no file may be moved."""
    return place.exists() and not place.is_file()


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{ending}")
