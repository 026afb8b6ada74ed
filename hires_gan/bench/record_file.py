"""The JSON file of a measurement: whole at any moment, and gone on with by one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hires_gan.data.folder_lock import is_at, lock
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.files import cannot_write, write_whole


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write a result as JSON; what was there stays until the new one is whole.

    Raises:
        Failure: If the file cannot be written.
    """
    text = json.dumps(record, indent=1) + "\n"
    if not _is_special(out):
        write_whole(_place(out), lambda partial: partial.write_text(text))
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise cannot_write(out, error) from None


def require_writable(path: Path) -> None:
    """See, before anything is measured, that a result can be written; what is there stays as it is.

    Raises:
        Failure: If the file cannot be written.
    """
    try:
        new = not path.exists()
        path.open("ab").close()
        if _is_special(path):
            return
        place = _place(path)
        if new and not place.stat().st_size:
            place.unlink()
        beside = _beside(place, f"{os.getpid()}.probe")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Let no other process go on with a file meanwhile, whose rows this one would write over.

    Raises:
        UsageError: Another one does.
        Failure: The file's folder cannot be written to.
    """
    if _is_special(out):
        yield
        return
    name = _beside(_place(out), "lock")
    while True:
        try:
            file = name.open("wb")
        except OSError as error:
            raise _unwritable(out, error) from None
        with file:
            _lock(file.fileno(), out)
            if is_at(name, file.fileno()):  # else it is the deleted file of one that has ended since
                try:
                    yield
                finally:
                    name.unlink(missing_ok=True)
                return


def _lock(descriptor: int, out: Path) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        if not lock(descriptor):
            raise UsageError(f"--out is {out}, which another process goes on with: wait for it, or name another file")


def _place(path: Path) -> Path:
    """Where a link points to, so that the link stays."""
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, in whose place no file may be moved."""
    return path.exists() and not path.is_file()


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{ending}")


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(
        f"{path} cannot be written: {error.strerror}; name a file in a folder that is there and can be written to"
    )
