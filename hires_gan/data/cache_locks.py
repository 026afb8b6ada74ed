"""Locks on files of a cache that processes and the threads of each of them share.

`fcntl.lockf` ends with its process, however that ends; but it knows processes only: a second thread would get the lock
as well, and closing any descriptor of the file would drop it. So a process keeps a list of what its threads hold.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hires_gan.data.folder_lock import lock

_GUARD = threading.Lock()
_HELD: set[str] = set()
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.2


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock.

    Args:
        path: Its file; made if it is not there, and left there.
        waiting: Called again and again while another holds it.

    Yields:
        Whether another held it first.
    """
    pause = _FIRST_WAIT
    descriptor = _take(path)
    had_to_wait = descriptor is None
    while descriptor is None:
        waiting()
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT)
        descriptor = _take(path)
    try:
        yield had_to_wait
    finally:
        _give(path, descriptor)


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does; yields whether it is held."""
    descriptor = _take(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _give(path, descriptor)


def _take(path: Path) -> int | None:
    with _GUARD:
        if str(path) in _HELD:
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locked = lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if not locked:
            os.close(descriptor)
            return None
        _HELD.add(str(path))
        return descriptor


def _give(path: Path, descriptor: int) -> None:
    with _GUARD:
        os.close(descriptor)
        _HELD.discard(str(path))
