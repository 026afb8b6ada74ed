"""A set that several ranks prepare, for the tests of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hires_gan.data.claims import Claims
from hires_gan.data.prepare import PrepareOptions, PrepareReport, prepare
from hires_gan.data.ranks import Rank
from hires_gan.data.shard_records import Records

IMAGES, PER_SHARD, SHARDS = 30, 4, 8
ARGUMENTS = ["--resolution", "16", "--shard-images", str(PER_SHARD), "--processes", "1", "--levels", "8"]
LAUNCHED = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "JOB_COMPLETION_INDEX", "HIRES_GAN_WORLD_SIZE")


def make_source(folder: Path, count: int = IMAGES, size: int = 24) -> str:
    """Images of noise in two classes; a few of them, and all of the second shard, are no images."""
    for number in range(count):
        path = folder / f"{'ab'[number >= count // 2]}/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if number in (2, 17) or number // PER_SHARD == 1:
            path.write_bytes(b"no image")
    return str(folder)


def options(**changes) -> PrepareOptions:
    given = {"resolution": 16, "processes": 1, "shard_images": PER_SHARD, "levels": (8,), "labels": "folders"}
    return PrepareOptions(**given | {"max_rejected": 0.5} | changes)


def contents(out: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def made_by_one(source: str, out: Path) -> dict[str, bytes]:
    """What one process makes."""
    prepare([source], out, options())
    found = contents(out)
    assert len(found) == 3 * (SHARDS - 1) + 3  # the second shard holds no sample
    return found


def run(source: str, out: Path, number: int, world: int, **changes) -> PrepareReport:
    return prepare([source], out, options(**changes), Rank(number, world))


def start(source: str, out: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    command = [sys.executable, "-m", "hires_gan", "prepare", source, "--out", str(out), *ARGUMENTS]
    command += ["--labels", "folders", "--max-rejected", "0.5", *arguments]
    return subprocess.Popen(command, env=clean | (environment or {}), stderr=subprocess.PIPE, text=True)


def ranked(number: int, world: int) -> list[str]:
    return ["--rank", str(number), "--world-size", str(world)]


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return errors


def leave_claim(out: Path, number: int, world: int, shards: list[int]) -> None:
    """What a killed rank leaves."""
    (out / ".prepare").mkdir(parents=True, exist_ok=True)
    claims = Claims(out / ".prepare", Rank(number, world))
    assert all(claims.take(shard) for shard in shards)


def at_commit(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], after: bool = False) -> None:
    """Do something, once, before or after a process settles its first shard."""
    add = Records.add
    waiting = [action]

    def patched(self: Records, number: int, record: object) -> bool:
        act = waiting.pop() if waiting else lambda: None
        if after:
            added = add(self, number, record)
            act()
            return added
        act()
        return add(self, number, record)

    monkeypatch.setattr(Records, "add", patched)
