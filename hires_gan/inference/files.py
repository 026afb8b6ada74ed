"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from hires_gan.errors import Failure


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let something be written beside its place, and moved there when it is whole; the folder is made.

    What could not be written to its end is deleted.

    Args:
        path: The file.
        write: Writes to the path that it is given.

    Raises:
        Failure: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there, before long work that ends in it.

    Raises:
        Failure: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> Failure:
    """The sentence on a file or folder that cannot be written."""
    return Failure(f"cannot write {path}: {error.strerror or error}; make room, or choose a folder that can be written")
