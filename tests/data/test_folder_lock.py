"""The lock on a working folder: one holder at a time, also where the holder before removes the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hires_gan.data.folder_lock import LOCK, held, make
from hires_gan.errors import Failure

TRIES = """
import sys
from pathlib import Path
from hires_gan.data.folder_lock import held
from hires_gan.errors import Failure
try:
    with held(Path(sys.argv[1]), "mended", "go elsewhere"):
        print("held")
except Failure as failure:
    print(failure)
"""


def another(work: Path) -> str:
    """What another process gets."""
    done = subprocess.run([sys.executable, "-c", TRIES, work], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_one_process_holds_it(tmp_path):
    work = tmp_path / "set" / ".work"
    with held(work, "mended", "go elsewhere"):
        assert another(work) == f"{tmp_path}/set is being mended by another process: wait for it, or end it"
    assert another(work) == "held"


def test_a_holder_that_removes_the_folder_leaves_the_next_one_a_lock_of_its_own(tmp_path, monkeypatch):
    """What is locked first is the deleted file of the one before; a third process would not meet it."""
    work, lock, removed = tmp_path / ".work", fcntl.lockf, []

    def lockf(*arguments: object) -> None:
        lock(*arguments)
        if not removed:
            removed.append(os.stat(work / LOCK).st_ino)
            shutil.rmtree(work)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with held(work, "mended", "go elsewhere"):
        assert (work / LOCK).exists()
        assert "is being mended by another process" in another(work)
    assert removed


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    named = rf"^{tmp_path}/\.work/lock cannot be locked \(No locks available\): go elsewhere$"
    with pytest.raises(Failure, match=named), held(tmp_path / ".work", "mended", "go elsewhere"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    named = rf"^{tmp_path}/file cannot be mended: it cannot be written \(Not a directory\)$"
    with pytest.raises(Failure, match=named):
        make(tmp_path / "file" / ".work", "mended")
    with pytest.raises(Failure, match=named), held(tmp_path / "file" / ".work", "mended", "go elsewhere"):
        pass
