"""A pipe as a store: a shell command that writes one file of the set to its standard output."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from hires_gan.data import waiting
from hires_gan.data.store_errors import Passing, without_secrets
from hires_gan.errors import Failure, UsageError

PREFIX = "pipe:"
_PLACE = "{}"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PIECE = 1 << 20
_GRACE = 10.0
"""Seconds that a command gets to end behind its last byte."""
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


_VARIABLE = re.compile(r"[A-Za-z_]\w*=[^$`(]*", re.ASCII | re.DOTALL)
_PROGRAM = re.compile(r"[A-Za-z0-9_./+-]+")


class PipeStore:
    """A command in which {} stands for a file's name, run by /bin/sh for every file.

    Args:
        command: What is run.
        allowed: Whether the configuration allows it.

    Raises:
        UsageError: It is not allowed, or does not say where the name goes.
    """

    def __init__(self, command: str, allowed: bool) -> None:
        if not allowed:
            raise UsageError(
                "data.shards is a pipe, which runs a shell command with your rights each time that a file is needed: "
                "a configuration from somebody else could run anything; set data.stream.allow_pipe to true if you "
                "trust it"
            )
        if _PLACE not in command:
            raise UsageError(
                "data.shards is a pipe without {}: put it where the file's name goes, such as "
                "`pipe:aws s3 cp s3://bucket/set/{} -`"
            )
        self._command = command

    @property
    def address(self) -> str:
        """The program's name, if it is clear; all else may hold what nobody else should read."""
        name = _program(self._command)
        return f"{PREFIX}{name} ..." if name else f"{PREFIX}..."

    def size(self, name: str, alive: Callable[[], None]) -> None:
        """A command does not say how much it is going to write."""

    def pieces(self, name: str, alive: Callable[[], None]) -> Iterator[bytes]:
        """As `Store.pieces`."""
        if not _NAME.fullmatch(name):
            raise Failure(f"a file of a set cannot be called {name!r}: letters, digits, '.', '_' and '-' are allowed")
        line = self._command.replace(_PLACE, shlex.quote(name))
        with tempfile.TemporaryFile() as said, _started(line, said) as process:
            yield from _read(process, alive)
            _check_end(process, said, name)


@contextlib.contextmanager
def _started(line: str, said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own, which is gone behind this."""
    process = subprocess.Popen(  # noqa: S603 - a shell by intent, behind data.stream.allow_pipe
        ["/bin/sh", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=said,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def _read(process: subprocess.Popen[bytes], alive: Callable[[], None]) -> Iterator[bytes]:
    assert process.stdout is not None
    descriptor, last = process.stdout.fileno(), time.monotonic()
    ready = select.poll()
    ready.register(descriptor)
    while True:
        alive()
        if not ready.poll(round(waiting.SLICE * 1000)):
            if time.monotonic() - last > waiting.STALL:
                raise Passing(f"the command wrote nothing for {waiting.STALL:g} s")
            continue
        data = os.read(descriptor, _PIECE)
        if not data:
            return
        yield data
        last = time.monotonic()


def _check_end(process: subprocess.Popen[bytes], said: IO[bytes], name: str) -> None:
    try:
        code = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        raise Passing(f"the command has not ended {_GRACE:g} s behind its last byte") from None
    if code == 0:
        return
    said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
    lines = said.read().decode(errors="replace").strip().splitlines()
    last = f": {without_secrets(lines[-1])}" if lines else ", and said nothing"
    if code in (_NOT_EXECUTABLE, _NOT_FOUND):
        raise UsageError(f"the pipe in data.shards cannot be run (exit code {code}){last}")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise Passing(f"the command for {name} {how}{last}")


def _program(command: str) -> str:
    """The base name of what a command runs first, behind plain variables; empty where that is not plain to see."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    word = next((word for word in words if not _VARIABLE.fullmatch(word)), "")
    return word.rpartition("/")[2] if _PROGRAM.fullmatch(word) else ""
