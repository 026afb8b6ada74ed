"""Promise 1 with real processes: kill -9 at any moment, the same command again, and the weights are bit-identical."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hires_gan import checkpoint


def start(config: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hires_gan", "train", str(config), *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


Process = subprocess.Popen[str]


def wait_for(condition: Callable[[Process], bool], process: Process) -> bool:
    """Whether the condition became true before the process ended."""
    while process.poll() is None:
        if condition(process):
            return True
        time.sleep(0.001)
    return False


def nimg(folder: Path, process: Process) -> int:
    """Where this process stands; -1 before it has said so, whatever one that was killed has left."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return -1
    return status["nimg"] if status["process"] == process.pid else -1


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=240)


@pytest.mark.slow
def test_kill_9_at_five_moments_changes_no_weight(settings, write_config, tmp_path):
    settings["run"]["total_kimg"] = 0.96
    settings["tracking"]["every_kimg"] = 0.016
    settings["data"]["workers"] = 1
    config = write_config(settings)
    finish(start(config, "run.name=whole"))
    folder = tmp_path / "runs" / "killed"
    writing = folder / "checkpoints"
    chance = random.Random(0)
    somewhere = chance.randrange(300, 600)
    moments: dict[str, Callable[[Process], bool]] = {
        "before the first step": lambda process: folder.exists(),
        "in the middle of a fade": lambda process: nimg(folder, process) >= 100,
        "while a checkpoint is being written": lambda process: (
            nimg(folder, process) >= 0 and any(writing.glob(".*.partial"))
        ),
        "at a random moment": lambda process: (
            nimg(folder, process) >= somewhere and not time.sleep(chance.random() * 0.2)
        ),
        "in the middle of a late step": lambda process: (
            nimg(folder, process) > 700 and not time.sleep(chance.random() * 0.05)
        ),
    }
    for moment, condition in moments.items():
        process = start(config, "run.name=killed")
        assert wait_for(condition, process), f"the run ended before it could be killed {moment}"
        kill(process)
    finish(start(config, "run.name=killed"))
    whole = checkpoint.latest(tmp_path / "runs" / "whole" / "checkpoints")
    killed = checkpoint.latest(writing)
    assert whole.nimg == killed.nimg == 960
    assert killed.state["files"] == whole.state["files"]  # sha256 of weights, average and optimizers
    assert_logged_once(tmp_path / "runs" / "mlflow.db", "killed")


def assert_logged_once(store: Path, name: str) -> None:
    """Every step of the killed run is in MLflow once, and the run is one run."""
    with sqlite3.connect(store) as database:
        runs = database.execute("select run_uuid from runs where name = ?", (name,)).fetchall()
        assert len(runs) == 1
        query = "select step from metrics where run_uuid = ? and key = 'loss/generator' order by step"
        steps = [row[0] for row in database.execute(query, runs[0])]
    assert steps == list(range(16, 961, 16))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_ends_with_a_checkpoint(settings, write_config, tmp_path, number):
    settings["run"]["total_kimg"] = 50
    settings["data"]["workers"] = 2
    config = write_config(settings)
    folder = tmp_path / "runs" / "small"
    command = [sys.executable, "-m", "hires_gan", "train", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert wait_for(lambda child: nimg(folder, child) > 60, process)
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)  # a second one does no harm
    _, said = process.communicate(timeout=240)
    assert process.returncode == 75, said
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "preempted"
    assert checkpoint.latest(folder / "checkpoints").nimg == status["nimg"]
    again = subprocess.run([*command, f"run.total_kimg={status['nimg'] / 1000 + 0.05}"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"going on from {folder}" in again.stderr


@pytest.mark.slow
def test_two_runs_cannot_share_a_folder(settings, write_config, tmp_path):
    settings["run"]["total_kimg"] = 50
    config = write_config(settings)
    first = start(config)
    try:
        assert wait_for(lambda child: nimg(tmp_path / "runs" / "small", child) >= 0, first)
        second = subprocess.run(
            [sys.executable, "-m", "hires_gan", "train", str(config)], capture_output=True, text=True, timeout=240
        )
        assert second.returncode == 2
        assert "is in use by another run" in second.stderr
    finally:
        kill(first)
