"""What `make demo` promises, by running it: the networks grow to 64x64 and the distance to the photographs halves."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_halves_the_distance_to_the_photographs(tmp_path):
    command = [sys.executable, "-m", "hires_gan", "train", str(ROOT / "configs" / "demo.yaml"), f"run.dir={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}  # a user's
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "demo"
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = store.execute("select step, value from metrics where key = 'evaluation/swd' order by step").fetchall()
    assert rows[0][0] == 0
    assert rows[-1][1] <= rows[0][1] / 2, rows
    last = np.asarray(Image.open(sorted((folder / "samples").glob("*.png"))[-1]))
    assert last.shape == (512, 512, 3)
    assert f"grid:       {sorted((folder / 'samples').glob('*.png'))[-1]}" in done.stderr
    assert "checkpoint: " in done.stderr
    assert "mlflow ui --backend-store-uri sqlite:///" in done.stderr
