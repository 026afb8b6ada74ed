"""How many processor cores this process may keep busy."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """The cores that this process may run on, but no more than its container's CPU quota pays for.

    Args:
        cgroup: Where the control groups, version 2 or 1, are mounted.

    Returns:
        Whole cores, at least 1; of a quota of 2.5 cores, 2.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _quota(cgroup: Path) -> float | None:
    """How many cores a container may keep busy; None if nothing limits it, or if that cannot be read."""
    try:
        words = _read_quota(cgroup).split()
        quota, period = int(words[0]), int(words[1])  # version 2 writes "max" for none, version 1 writes -1
        return quota / period if quota > 0 and period > 0 else None
    except (OSError, ValueError, IndexError):
        return None


def _read_quota(cgroup: Path) -> str:
    """Quota and period in microseconds, a blank between them."""
    version_2 = cgroup / "cpu.max"
    if version_2.is_file():
        return version_2.read_text(encoding="ascii")
    return " ".join((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
