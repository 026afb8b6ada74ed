"""The hidden folder in which an unfinished `prepare` keeps its records: one process at a time holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hires_gan.errors import Failure

WORK = ".prepare"
BEGUN = "command.json"
"""Once this file is in the folder, there is something to continue."""


@contextlib.contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Hold `.prepare` in the output folder, alone; if nothing was begun, an error leaves nothing behind.

    Raises:
        Failure: Another process holds it, or it cannot be made or locked.
    """
    work = out / WORK
    with _locked(work):
        try:
            yield work
        except BaseException:
            if not (work / BEGUN).exists():
                shutil.rmtree(work)
            raise
        else:
            shutil.rmtree(work)
        finally:
            with contextlib.suppress(OSError):
                out.rmdir()  # only if it is empty


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold a lock that dies with this process."""
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"{work.parent} cannot be written: {error.strerror}") from None
        try:
            file = (work / "lock").open("wb")
        except FileNotFoundError:
            continue  # the other process cleared up in between
        except OSError as error:
            raise Failure(f"{work.parent} cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: somebody else holds it
                raise Failure(f"{work.parent} is being prepared by another process: wait for it, or end it") from None
            except OSError as error:
                raise Failure(
                    f"{work}/lock cannot be locked ({error.strerror}): choose an output folder on a file system with "
                    "locks, such as a local disk"
                ) from None
            if not _is_same(file.fileno(), work / "lock"):
                continue  # what was locked is the other process's deleted file
            yield
            return


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
