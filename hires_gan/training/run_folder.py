"""A run's folder: its lock, its resolved configuration, and `status.json` for whoever watches from outside."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Literal

from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

State = Literal["running", "finished", "failed", "preempted"]


class RunFolder:
    """`<run.dir>/<run.name>`, held by one process at a time.

    The lock is `fcntl.lockf`'s: it ends with the process that took it, also after a kill, and is not inherited.

    Args:
        path: The folder; made if it is not there.
        held: Whether this process holds it; others of the same run only read in it.

    Raises:
        UsageError: If another process trains in it.
        Failure: If it cannot be written.
    """

    def __init__(self, path: Path, held: bool = True) -> None:
        self.path = path
        self._new = False
        self._lock: IO[str] | None = None
        if held:
            self._hold(path)

    def _hold(self, path: Path) -> None:
        self._new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise Failure(
                f"cannot write to the run's folder {path}: {error.strerror}; choose another run.dir"
            ) from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UsageError(
                f"{path} is in use by another run; wait for it to end, or choose another run.name"
            ) from None
        except OSError as error:
            raise Failure(
                f"cannot lock {path / '.lock'}: {error.strerror}; put run.dir on a file system with POSIX locks"
            ) from error

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where the grids are."""
        return self.path / "samples"

    def write_config(self, text: str) -> Path:
        """Keep the resolved configuration beside the run."""
        path = self.path / "config.yaml"
        _replace(path, text)
        return path

    def write_status(self, state: State, nimg: int, message: str = "") -> None:
        """Say in `status.json` how the run stands."""
        content = {"state": state, "nimg": nimg, "message": message, "process": os.getpid(), "time": time.time()}
        _replace(self.path / "status.json", json.dumps(content, indent=1) + "\n")

    def begin_again(self, config: str) -> None:
        """Start from nothing where an attempt wrote no checkpoint.

        With the same configuration it repeats that attempt, whose MLflow run goes on; with another one it is a run of
        its own, and must not hide behind what was recorded of the other.
        """
        recorded, before = self.path / "tracking", self.path / "config.yaml"
        if recorded.is_dir() and not (before.is_file() and before.read_text(encoding="utf-8") == config):
            say(f"{self.path} has no checkpoint to go on from: the run begins anew, under a new MLflow run")
            shutil.rmtree(recorded)

    def discard_if_new(self) -> None:
        """Let go of the lock and, if this process made the folder, remove it: the run never began."""
        if self._new:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        raise Failure(
            f"cannot write {path}: {error.strerror or error}; the checkpoints are untouched: make room and run the "
            f"same command again, which goes on from the latest one"
        ) from error
