"""What all measurements have: options, and what a number means nothing without."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hires_gan.code import code_digest
from hires_gan.errors import UsageError
from hires_gan.progress import say

UNKNOWN = "unknown"
NAME_THE_COMMIT = "set HIRES_GAN_COMMIT to what `git describe --always --abbrev=40 --dirty` says in its checkout"
"""Where the code was copied without it."""


def identity(bench: str) -> dict[str, Any]:
    """When, which code, on what: the head of every result.

    `git.commit` and `git.dirty` are `UNKNOWN` where there is no checkout, and HIRES_GAN_COMMIT names no commit;
    `code.digest` is of the package's files as they are now, whatever the commit says.

    Args:
        bench: The name of the measurement.
    """
    from hires_gan.tracking.machine import machine_tags

    wanted = ("git.", "version.", "cpu.", "memory.", "gpu.")
    tags = {name: value for name, value in machine_tags().items() if name.startswith(wanted)}
    code = {"git.commit": UNKNOWN, "git.dirty": UNKNOWN, "code.digest": code_digest()}
    return {"bench": bench, "date": now(), **code, **tags, "cpu.model": _model()}


def now() -> str:
    """The time to the second, in UTC, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def say_unknown_commit(head: Mapping[str, Any]) -> None:
    """Say, before anything is measured, that a later call cannot go on with what this one leaves."""
    if head["git.commit"] == UNKNOWN:
        say(f"which commit this is is not known, so that a later call cannot go on with this one: {NAME_THE_COMMIT}")


def _model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def require_least(options: Mapping[str, tuple[int | None, int]]) -> None:
    """Refuse options whose value is too small.

    Args:
        options: By option, its value, None where it was not given, and the least that is allowed.

    Raises:
        UsageError: Names the first of them.
    """
    for option, (value, least) in options.items():
        if value is not None and value < least:
            raise UsageError(f"{option} is {value}; a whole number of {least} or more is allowed")
