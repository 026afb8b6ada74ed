"""Rows of `bench levers` without steps: what a row's process leaves behind, and what it was called with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hires_gan.bench.children import Ended
from hires_gan.bench.levers import LEVERS, Request, bench_levers
from hires_gan.config import load_configuration

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
NAMES = [lever.name for lever in LEVERS]


def told(
    images_per_s: float,
    out: Path,
    refused: dict[str, str] | None = None,
    seconds: float | None = None,
    remarks: Sequence[str] = (),
) -> Ended:
    """What `bench train` leaves behind."""
    compiled = {} if seconds is None else {"generator phase": seconds - 2.0, "discriminator phase": 2.0}
    result = {
        "images_per_s": images_per_s,
        "average_ms_per_step": 1000 / images_per_s,
        "memory": {"reserved": 2**30, "allocated": 2**29, "resident": None},
        "compiled": {"seconds": compiled, "refused": refused or {}},
        "remarks": list(remarks),
    }
    out.write_text(json.dumps({"results": [result]}))
    return Ended(0, "")


def out_of(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("--out") + 1])


def overrides_of(arguments: list[str]) -> list[str]:
    return arguments[arguments.index("--out") + 2 :]


def without(arguments: list[str]) -> list[str]:
    return [after for before, after in itertools.pairwise(arguments) if before == "--without"]


def measure(name: str, *overrides: str, **request: Any) -> dict[str, Any]:
    config = CONFIGS / f"{name}.yaml"
    return bench_levers(lambda: load_configuration(config, overrides), config, overrides, Request(**request))


def rates_by_name(arguments: list[str]) -> Ended:
    """Ten more for each setting: the same row has the same rate in every call."""
    return told(10.0 * len(overrides_of(arguments)), out_of(arguments))


def rows_of(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    keys = ("name", "status", "overrides", "images_per_s", "gain", "over", "over_reference")
    return [tuple(row.get(key) for key in keys) for row in record["rows"]]
