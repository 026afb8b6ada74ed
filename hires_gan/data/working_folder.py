"""The hidden folder in which an unfinished `prepare` keeps its records: of one process, or of the ranks of one command.

A process that works alone holds a lock in it, which protects it from a second one on the same machine (and on others,
where the file system's locks reach so far). Ranks take no lock: a lost machine could not give it back. What keeps two
different commands apart is the record of the command, which is created exclusively.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from hires_gan.data import folder_lock
from hires_gan.data.writer import PARTIAL, unique

WORK = ".prepare"
BEGUN = "command.json"
"""Once this file is in the folder, there is something to continue."""
_TASK = "prepared"
_ELSEWHERE = "choose an output folder on a file system with locks, such as a local disk"


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
    with folder_lock.held(work, _TASK, _ELSEWHERE) if alone else _shared(work):
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
    folder_lock.make(work, _TASK)
    yield
