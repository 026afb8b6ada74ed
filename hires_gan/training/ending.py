"""How a run ended, for the script that started its launcher: launchers make 1 of every exit code."""

from __future__ import annotations

import os
from pathlib import Path

ENDINGS = "HIRES_GAN_ENDINGS"
"""The environment variable that names the file; in a pod its termination log, which `kubectl describe pod` shows."""
_LONGEST = 1000
"""Characters of a message: Kubernetes shows the last 4096 bytes, of all processes of a pod."""


def tell_end(code: int, message: str) -> None:
    """Append the line `exit code 2: MESSAGE` to the file that HIRES_GAN_ENDINGS names; do nothing where it is not set.

    Args:
        code: The exit code.
        message: Why; for people.

    Raises:
        OSError: If the file cannot be written.
    """
    name = os.environ.get(ENDINGS)
    if name:
        with Path(name).open("a", encoding="utf-8") as file:  # one write each: lines of several processes stay whole
            file.write(f"exit code {code}: {' '.join(message.split())[:_LONGEST]}\n")
