"""The hidden folder in which an unfinished `prepare` keeps its records: of one process, or of the ranks of one command.

A process that works alone holds a lock in it, which protects it from a second one on the same machine (and on others,
where the file system's locks reach so far). Ranks take no lock: a lost machine could not give it back. What keeps two
different commands apart is the record of the command, which is created exclusively.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hires_gan.data.writer import PARTIAL, unique
from hires_gan.errors import Failure

WORK = ".prepare"
BEGUN = "command.json"
"""Once this file is in the folder, there is something to continue."""


@contextlib.contextmanager
def working_folder(out: Path, alone: bool = True) -> Iterator[Path]:
    """Make `.prepare` in the output folder; if nothing was begun, an error leaves nothing behind.

    Args:
        out: The shard folder.
        alone: Whether to hold the folder against any other process that works alone.

    Raises:
        Failure: Another process holds it, or it cannot be made or locked.
    """
    work = out / WORK
    with _locked(work) if alone else _shared(work):
        try:
            yield work
        except BaseException:
            if alone and not (work / BEGUN).exists():
                shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            for folder in (work, out):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only if it is empty


def clear(out: Path) -> None:
    """Remove what a finished set needs no more, and what killed processes left."""
    for partial in out.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)
    shutil.rmtree(out / WORK, ignore_errors=True)


def look_afresh(folder: Path) -> None:
    """Make a network file system forget which names it believes not to be in a folder: change the folder."""
    probe = folder / f".{unique()}{PARTIAL}"
    probe.touch()
    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _shared(work: Path) -> Iterator[None]:
    _make(work)
    yield


def _make(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{work.parent} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold a lock that dies with this process."""
    while True:
        _make(work)
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
