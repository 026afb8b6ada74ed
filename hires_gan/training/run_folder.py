"""A run's folder: its lock, its resolved configuration, and `status.json` for whoever watches from outside."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from hires_gan.data.folder_lock import lock
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say
from hires_gan.training.world import World

_STATUS = "status.json"
_NONE: Mapping[str, int] = {}
_LEASE = 120.0
"""Seconds after which file servers let go of what a machine that died had locked; NFS's takes 90."""
_DELAY = 10.0
"""Seconds after which a network file system shows on all machines what was written on one."""

State = Literal["running", "finished", "failed", "preempted"]


class RunFolder:
    """`<run.dir>/<run.name>`, held by one process at a time.

    The lock is `fcntl.lockf`'s: it ends with the process that took it, also after a kill, and is not inherited.

    Args:
        path: The folder; made if it is not there.
        held: Whether this process holds it; others of the same run only read in it.
        launches: Who has started the processes, and how often, for a worker that is started again.

    Raises:
        UsageError: If another process trains in it.
        Failure: If it cannot be written.
    """

    def __init__(self, path: Path, held: bool = True, launches: Mapping[str, int] = _NONE) -> None:
        self.path, self.launches = path, dict(launches)
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
            _lock(self._lock, path)
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

    @property
    def config(self) -> Path:
        """Where the resolved configuration is kept."""
        return self.path / "config.yaml"

    def write_config(self, text: str) -> Path:
        """Keep the resolved configuration beside the run."""
        _replace(self.config, text)
        return self.config

    def write_status(self, state: State, nimg: int, message: str = "") -> None:
        """Say in `status.json` how the run stands."""
        content = {"state": state, "nimg": nimg, "message": message, "process": os.getpid(), "time": time.time()}
        content["host"] = socket.gethostname()
        _replace(self.path / _STATUS, json.dumps(content | {"launches": self.launches}, indent=1) + "\n")

    def begin_again(self, config: str) -> None:
        """Start from nothing where an attempt wrote no checkpoint.

        With the same configuration it repeats that attempt, whose MLflow run goes on; with another one it is a run of
        its own, and must not hide behind what was recorded of the other.
        """
        recorded = self.path / "tracking"
        if recorded.is_dir() and not (self.config.is_file() and self.config.read_text(encoding="utf-8") == config):
            say(f"{self.path} has no checkpoint to go on from: the run begins anew, under a new MLflow run")
            shutil.rmtree(recorded)

    def discard_if_new(self) -> None:
        """Let go of the lock and, if this process made the folder, remove it: the run never began."""
        if self._new:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _lock(file: IO[str], path: Path) -> None:
    """Lock it; what a machine that died has locked on a network file system stays so for a while.

    Raises:
        UsageError: If another process has it.
        OSError: If it cannot be locked at all.
    """
    status = read_status(path) or {}
    elsewhere = status.get("state") == "running" and status.get("host") not in (None, socket.gethostname())
    deadline, told = time.monotonic() + (_LEASE if elsewhere else 0.0), False
    while True:
        if lock(file.fileno()):
            return
        if time.monotonic() >= deadline:
            raise UsageError(f"{path} is in use by another run; wait for it to end, or choose another run.name")
        if not told:
            say(f"{path} is locked by {status['host']}; if that has died, it will be free in a while: waiting for it")
            told = True
        time.sleep(0.5)


def read_status(folder: Path) -> dict[str, Any] | None:
    """What `status.json` of a run's folder says; None if there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / _STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is for whoever watches: one that cannot be read stops nothing
        return None
    return found


def check_shared(world: World, folder: Path, delay: float = _DELAY) -> None:
    """Make sure that all processes see the same folder: each of them reads and writes in it.

    Args:
        world: The processes; all of them have to ask.
        folder: The run's folder, which the first process has made.
        delay: Seconds for which the others look for what the first one has written.

    Raises:
        UsageError: On the first process, if another one does not see it.
        Failure: Likewise, if it cannot be written.
        Elsewhere: On the others.
    """
    if world.alone:
        return
    # A name that nobody has looked for yet: network file systems remember for a while what was not there.
    token = folder / f".shared-{world.from_first(secrets.token_hex(8))}"
    try:
        with world.together():
            if world.first:
                _touch(token)
        with world.together():
            if not world.first:
                _look_for(token, delay)
    finally:
        if world.first:
            token.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise Failure(
            f"cannot write to the run's folder {path.parent}: {error.strerror}; choose another run.dir"
        ) from error


def _look_for(path: Path, delay: float) -> None:
    deadline = time.monotonic() + delay
    while not path.exists():
        if time.monotonic() > deadline:
            raise UsageError(
                f"{socket.gethostname()} does not see what the first process has written to {path.parent.absolute()}: "
                "put run.dir where all machines see it"
            )
        time.sleep(0.2)


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
