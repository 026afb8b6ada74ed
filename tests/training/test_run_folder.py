"""A run's folder is held by one process at a time, also where a machine that died still holds it for a while."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hires_gan.errors import UsageError
from hires_gan.training import run_folder
from hires_gan.training.run_folder import RunFolder

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def held(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds the folder for so long."""
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".lock"), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_another_machine_has_locked_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, waits = held(tmp_path / "run", 600), []

    def let_go(seconds: float) -> None:
        waits.append(seconds)
        process.kill()
        process.wait()

    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=time.monotonic, sleep=let_go))  # its own alone
    status = {"state": "running", "host": "a-machine-that-died", "nimg": 64}
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    RunFolder(tmp_path / "run").discard_if_new()
    assert len(waits) == 1, "it came while the other one held the folder, and stayed until that was over"
    assert capsys.readouterr().err.count("is locked by a-machine-that-died") == 1


@pytest.mark.parametrize("state", ["running", None])
def test_a_run_of_this_machine_is_refused_at_once(tmp_path: Path, state: str | None) -> None:
    process = held(tmp_path / "run", 600)
    if state is not None:
        RunFolder(tmp_path / "run", held=False).write_status("running", 64)
    with pytest.raises(UsageError, match="is in use by another run"):
        RunFolder(tmp_path / "run")
    process.kill()
    process.wait(30)
