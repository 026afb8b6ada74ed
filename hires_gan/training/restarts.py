"""A worker that its launcher has started again, though the launch was asked to stop.

Launchers take the exit code of a run that a signal stopped for a failure: `torchrun --max-restarts` starts it again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def launch_identity() -> str:
    """What is the same for all workers that one launcher starts on this machine, restarts included, and for no other.

    It is the launcher's process, with the time of its start: run ids are `none` with some rendezvous, and a queue that
    starts a job again gives it the same one.

    Returns:
        Host, process id and start; empty where no launcher starts workers again.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return ""
    parent = os.getppid()
    return f"{socket.gethostname()}:{parent}:{_start_of(parent)}"


def _start_of(process: int) -> str:
    """In ticks since the machine started, the 22nd field; the second one, the name, may have blanks and brackets."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return fields[22 - 3]


def restart_count() -> int:
    """How often the launcher has started its workers again because one failed; not, because a machine came or went."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def stopped_by_this_launch(status: Mapping[str, Any]) -> bool:
    """Whether a signal has stopped the run in this very launch, which now has started it again.

    Args:
        status: What `status.json` says; `launches` are the identities of the launchers whose workers were stopped, each
            with their restart count.
    """
    before = status.get("launches", {}).get(launch_identity())
    return status.get("state") == "preempted" and before is not None and restart_count() > before
