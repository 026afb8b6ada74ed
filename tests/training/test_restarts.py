"""A worker that its launcher starts again behind a signal ends again; any other goes on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hires_gan.training.restarts import launch_identity, stopped_by_this_launch

LIMIT = 120
"""Seconds that a launch may take, far more than it does."""


def test_a_restarted_worker_knows_the_launch_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert launch_identity() == ""
    assert not stopped_by_this_launch({"state": "preempted", "launches": {"": 0}})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    own = launch_identity()
    assert own.startswith(f"{socket.gethostname()}:{os.getppid()}:")
    status = {"state": "preempted", "launches": {"other:1:2": 0, own: 0}}
    assert not stopped_by_this_launch(status), "a machine has come or gone"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert stopped_by_this_launch(status)
    assert not stopped_by_this_launch(status | {"launches": {own: 1}}), "a machine has come, behind a failure"
    assert not stopped_by_this_launch(status | {"state": "running"})
    assert not stopped_by_this_launch(status | {"launches": {"other:1:2": 0}})
    assert not stopped_by_this_launch({"state": "preempted"})


def test_workers_of_one_launcher_have_one_identity() -> None:
    ask = "from hires_gan.training.restarts import launch_identity; print(launch_identity())"
    environment = os.environ | {"TORCHELASTIC_RESTART_COUNT": "1"}
    command = [sys.executable, "-c", ask]
    told = [subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT) for _ in range(2)]
    assert told[0].stdout == told[1].stdout != ""
    assert told[0].stdout.split(":")[1] == str(os.getpid())


PROGRAM = """
import json, os, sys
from pathlib import Path
from hires_gan.training.restarts import launch_identity, stopped_by_this_launch

path = Path(sys.argv[1])
if path.exists() and stopped_by_this_launch(json.loads(path.read_text())):
    print("ends again", flush=True)
elif os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and path.exists():
    print("goes on", flush=True)
else:
    path.write_text(json.dumps({"state": "preempted", "launches": {launch_identity(): 0}}))
    sys.exit(75)
"""


@pytest.mark.slow
def test_torchrun_starts_it_again_and_the_next_launch_goes_on(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "2"]
    for expected in ("ends again\n", "goes on\n"):
        command = [*torchrun, str(tmp_path / "worker.py"), str(tmp_path / "status.json")]
        found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        assert found.returncode == 0, found.stderr
        assert found.stdout == expected
