"""A lock on a hidden working folder, of `prepare` or of a repair: it dies with its process and goes with its folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from hires_gan.errors import Failure

LOCK = "lock"
"""The file in the working folder that is locked."""


def make(work: Path, task: str) -> None:
    """Make a working folder, if it is not there.

    Args:
        work: The folder.
        task: What is done to the folder above it, as a participle: prepared, repaired.

    Raises:
        Failure: It cannot be made.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(work, task, error) from None


@contextlib.contextmanager
def held(work: Path, task: str, elsewhere: str) -> Iterator[None]:
    """Make a working folder, and hold it against every other process that does; its holder may remove it.

    Args:
        work: The folder.
        task: As for `make`.
        elsewhere: What to do where the file system has no locks.

    Raises:
        Failure: Another process holds it, or it cannot be made or locked.
    """
    while True:
        make(work, task)
        try:
            file = (work / LOCK).open("wb")
        except FileNotFoundError:
            continue  # its holder removed it in between
        except OSError as error:
            raise _unwritable(work, task, error) from None
        with file:
            _lock(file.fileno(), work, task, elsewhere)
            if is_at(work / LOCK, file.fileno()):  # else what was locked is the deleted file of an earlier holder
                yield
                return


def _lock(descriptor: int, work: Path, task: str, elsewhere: str) -> None:
    try:
        locked = lock(descriptor)
    except OSError as error:
        raise Failure(f"{work / LOCK} cannot be locked ({error.strerror}): {elsewhere}") from None
    if not locked:
        raise Failure(f"{work.parent} is being {task} by another process: wait for it, or end it")


def lock(descriptor: int) -> bool:
    """Lock an open file until its process ends or closes it; False if another process has it.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: somebody else holds it
        return False
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unwritable(work: Path, task: str, error: OSError) -> Failure:
    return Failure(f"{work.parent} cannot be {task}: it cannot be written ({error.strerror})")
