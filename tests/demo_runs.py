"""Demos, trained whole as a user would: once in a session of tests, whichever files ask for them."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMOS = ("stylegan", "stylegan2")


@dataclass(frozen=True)
class DemoRun:
    """A run that has ended, with whatever result."""

    root: Path
    folder: Path
    done: subprocess.CompletedProcess[str]

    @property
    def grids(self) -> list[Path]:
        """The grids of the fixed latents, the last one last."""
        return sorted((self.folder / "samples").glob("*.png"))

    def metric(self, name: str) -> list[tuple[int, float]]:
        """(nimg, value) of every point in MLflow's store."""
        with sqlite3.connect(self.root / "mlflow.db") as store:
            return store.execute("select step, value from metrics where key = ? order by step", (name,)).fetchall()


def hires_gan(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with as many threads as a user's would have."""
    own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | environment
    command = [sys.executable, "-m", "hires_gan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=own)


def trained(demo: str, folders: pytest.TempPathFactory) -> DemoRun:
    """The run of `configs/DEMO_demo.yaml`; what failed is not tried again.

    Where tests run in several processes, one of them trains, and the others wait for it.
    """
    shared = folders.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else folders.getbasetemp()
    root = shared / f"demo-{demo}"
    root.mkdir(exist_ok=True)
    ended = root / "ended.json"
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ended.is_file():
            done = hires_gan("train", ROOT / "configs" / f"{demo}_demo.yaml", f"run.dir={root}")
            ended.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    return DemoRun(root, root / f"{demo}-demo", subprocess.CompletedProcess(*json.loads(ended.read_text())))
