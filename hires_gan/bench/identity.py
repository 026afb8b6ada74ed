"""What a measured number means nothing without, and the file that it is written to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hires_gan.errors import Failure


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
