"""`launch/slurm.sbatch`, run by bash: its tasks, a signal ahead of the limit, and the way back into the queue."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import LAUNCH, SHORT, Launched, latest, launch, nimg_of, status_of

SCRIPT = LAUNCH / "slurm.sbatch"
JOB = os.getpid()
"""The script makes a port of it: one for each process that runs tests."""


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with SLURM's programs, which write there what they do."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("srun", "scancel", "scontrol"):
        program = Path(__file__).with_name("fake_slurm.py")
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" {name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def submitted(slurm: Path, *arguments: str) -> Launched:
    """The batch shell of a job of two tasks on one node, as SLURM would start it."""
    path = f"{slurm}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": str(JOB), "SLURM_JOB_NODELIST": "localhost,other", "SLURM_NTASKS": "2"}
    return launch(["bash", str(SCRIPT), *arguments], slurm / "log", PATH=path, SLURM_FAKE=str(slurm), **job)


def requeued(slurm: Path) -> list[str]:
    return (slurm / "requeued").read_text().split() if (slurm / "requeued").exists() else []


def test_the_options_of_a_job_that_is_to_come_back() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"].startswith("B:TERM@")
    grace = re.search(r"backend.grace=(\d+)", SCRIPT.read_text())
    assert grace is not None
    assert int(options["signal"].partition("@")[2]) >= int(grace[1]) + 10
    assert {"requeue", "open-mode", "gpus-per-node", "ntasks-per-node"} <= options.keys()
    assert options["open-mode"] == "append"
    assert options["gpus-per-node"] == options["ntasks-per-node"]


@pytest.mark.slow
def test_a_job_that_ends_is_not_queued_again(settings: dict[str, Any], write_config: Any, slurm: Path) -> None:
    settings["evaluation"]["every_kimg"] = None
    said = submitted(slurm, str(write_config(settings)), SHORT).succeeded()
    assert "as the first of 2 processes" in said
    assert latest(settings, "small").state["world_size"] == 2
    assert requeued(slurm) == []


def test_a_job_that_fails_by_itself_is_not_queued_again(slurm: Path) -> None:
    run = submitted(slurm, "absent.yaml")
    assert run.ended() == 2, run.said
    assert requeued(slurm) == []


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["limit", "preemption"])
def test_a_signal_ends_in_a_checkpoint_and_in_the_queue(
    settings: dict[str, Any], write_config: Any, slurm: Path, cause: str
) -> None:
    """Ahead of the limit SLURM signals the batch shell alone; a job that has to make room, its tasks."""
    settings["evaluation"]["every_kimg"] = None
    settings["run"]["total_kimg"] = 50
    config = str(write_config(settings))
    folder = Path(settings["run"]["dir"]) / "small"
    run = submitted(slurm, config)
    run.wait_for(lambda: nimg_of(folder) > 60)
    pids = [int(pid) for pid in (slurm / "pids").read_text().split()] if cause == "preemption" else [run.process.pid]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert run.ended() == -signal.SIGKILL, "queueing a job again ends its batch shell"
    assert requeued(slurm) == [str(JOB)], run.said
    assert "backend.grace is 100" not in run.said, "no launcher here kills before"
    assert f"stopped with exit code 75: job {JOB} is queued again" in run.said
    status = status_of(folder)
    assert (status["state"], latest(settings, "small").nimg) == ("preempted", status["nimg"])
    submitted(slurm, config, f"run.total_kimg={status['nimg'] / 1000 + 0.05}").succeeded()
    assert f"going on from {folder}" in run.said
    assert requeued(slurm) == [str(JOB)]


@pytest.mark.slow
def test_a_signal_before_there_is_a_trainer_to_take_it_is_no_failure(
    settings: dict[str, Any], write_config: Any, slurm: Path
) -> None:
    """While Python still imports, a signal ends the tasks without a checkpoint."""
    run = submitted(slurm, str(write_config(settings)))
    run.wait_for((slurm / "pids").exists)
    run.process.send_signal(signal.SIGTERM)
    run.ended()
    assert requeued(slurm) == [str(JOB)], run.said
