"""What all measurements have: options, what a number means nothing without, and the file that it is written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hires_gan.errors import Failure, UsageError


def identity(bench: str) -> dict[str, Any]:
    """When, which code, on what: the head of every result.

    Args:
        bench: The name of the measurement.
    """
    from hires_gan.tracking.machine import machine_tags

    wanted = ("git.", "version.", "cpu.", "memory.", "gpu.")
    tags = {name: value for name, value in machine_tags().items() if name.startswith(wanted)}
    return {"bench": bench, "date": datetime.now(UTC).isoformat(timespec="seconds"), **tags, "cpu.model": _model()}


def _model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write a result as JSON.

    Raises:
        Failure: If the file cannot be written.
    """
    try:
        out.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}") from None


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
