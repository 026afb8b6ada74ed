"""Every command and the Python example of docs/using.md run as they stand there, on a small checkpoint."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from style_checkpoints import write_style_checkpoint

from hires_gan import cli

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.slow
def test_the_page_is_true(tmp_path, monkeypatch):
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 9
    for name in ("mine", "styled"):
        write_style_checkpoint(tmp_path / "runs" / name, side=64)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))  # without ffmpeg
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # without weights
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for command in commands:
        short = ["--steps", "2"] if command[1] == "project" else []
        short += ["--frames", "2"] if "--interpolate" in command else []
        short += ["run.total_kimg=0.032", "evaluation.count=8", "samples.count=4"] if command[1] == "train" else []
        monkeypatch.setattr(sys, "argv", [*command, *short])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, command
    assert sorted(path.name for path in Path("found").iterdir()) == sorted(
        re.findall(r"^\| `(projected\.\w+|comparison\.png)`", TEXT, re.MULTILINE)
    )
    assert len(list(Path("film/interpolation").iterdir())) == 6
    assert len(list(Path("morph/interpolation").iterdir())) == 3
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    assert (names["images"].shape, names["image"].shape) == ((4, 3, 64, 64), (1, 3, 64, 64))
