"""Every command and the Python example of docs/translating.md run as they stand there, on a small checkpoint."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from munit_checkpoints import write_munit_checkpoint
from PIL import Image

from hires_gan import cli
from hires_gan.config import load_configuration

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "translating.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 3
    write_munit_checkpoint(tmp_path / "runs" / "munit-demo", 32, ("snapshots", "prints"))
    random = np.random.default_rng(0)
    for folder in ("my-images", "my-prints"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            pixels = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.jpg")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))  # without ffmpeg
    monkeypatch.chdir(tmp_path)
    for command in commands:
        monkeypatch.setattr(sys, "argv", [*command, *(["--frames", "2"] if "--interpolate" in command else [])])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, command
    assert len(list(Path("translated").glob("*_style*.png"))) == 2 * 4
    assert len(list(Path("guided").glob("*_by_*.png"))) == 2
    assert len(list(Path("film").glob("*/frame*.png"))) == 4 * 2
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    assert names["prints"].shape == (4, 3, 64, 96)


def test_the_keys_of_the_table_are_there() -> None:
    """Each key in the table is one of the configuration for faces, which lists them all with their defaults."""
    plan = load_configuration(ROOT / "configs" / "munit_faces1024.yaml").model_dump()
    named = re.findall(r"^\| `(recipe\.[\w.]+)`((?:, `\.\w+`)*)", TEXT, re.MULTILINE)
    assert len(named) >= 9
    for first, others in named:
        path = first.split(".")
        block = plan
        for key in path[:-1]:
            block = block[key]
        for key in (path[-1], *re.findall(r"\.(\w+)", others)):
            assert key in block, (first, key)
