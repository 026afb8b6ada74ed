"""Whether processes run that ought to have ended."""

from __future__ import annotations

import time
from collections.abc import Collection

import psutil


def wait_until_gone(pids: Collection[int], seconds: float = 60.0) -> list[int]:
    """Wait until no process of these numbers runs; return those that still do."""
    deadline = time.monotonic() + seconds
    while (alive := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
