"""Rows of `bench levers` without steps: what a row's process leaves behind, and what it was called with."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hires_gan.bench.children import Ended
from hires_gan.bench.identity import identity
from hires_gan.bench.levers import Request, bench_levers
from hires_gan.bench.levers_rows import LEVERS
from hires_gan.config import load_configuration
from hires_gan.tracking import machine

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
NAMES = [lever.name for lever in LEVERS]


@functools.cache
def machine_of(git: str | None, commit: str | None) -> dict[str, Any]:
    """What a row's process says of the code and the machine, which takes a while to find out."""
    return identity("train")


def told(
    images_per_s: float,
    out: Path,
    seconds: float | None = None,
    remarks: Sequence[str] = (),
) -> Ended:
    """What `bench train` leaves behind."""
    compiled = {} if seconds is None else {"generator phase": seconds - 2.0, "discriminator phase": 2.0}
    result = {
        "images_per_s": images_per_s,
        "average_ms_per_step": 1000 / images_per_s,
        "memory": {"reserved": 2**30, "allocated": 2**29, "resident": None},
        "compiled": {"seconds": compiled, "refused": {}},
        "remarks": list(remarks),
    }
    head = machine_of(machine.shutil.which("git"), os.environ.get("HIRES_GAN_COMMIT"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    out.write_text(json.dumps(head | {"settings": {"device": device}, "results": [result]}))
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
