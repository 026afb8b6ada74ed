"""A run's folder: its lock, its resolved configuration, and `status.json` for whoever watches from outside."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Literal

from hires_gan.errors import Failure, UsageError

State = Literal["running", "finished", "failed", "preempted"]


class RunFolder:
    """`<run.dir>/<run.name>`, held by one process at a time.

    The lock is `fcntl.lockf`'s: it ends with the process that took it, also after a kill, and is not inherited.

    Args:
        path: The folder; made if it is not there.

    Raises:
        UsageError: If another process trains in it.
        Failure: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        except OSError:
            raise UsageError(
                f"{path} is in use by another run; wait for it to end, or choose another run.name"
            ) from None

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

    def discard_if_new(self) -> None:
        """Let go of the lock and, if this process made the folder, remove it: the run never began."""
        if self._new:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
