"""The benchmark of an evaluation, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_an_evaluation_costs_is_recorded(tmp_path: Path) -> None:
    command = ["bench", "evaluate", "--resolution", "16", "--count", "64", "--rounds", "1", "--out", "costs.json"]
    done = subprocess.run(
        [sys.executable, "-m", "hires_gan", *command], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "costs.json").read_text())
    assert (record["count"], record["resolution"]) == (64, 16)
    assert record["share"] == min(record["whole"]) / min(record["alone"]) - 1
    assert "generator and feature network alone" in done.stdout
