"""Start what the comment of a file in `launch/` says, and look at what it says and leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hires_gan import checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"
SHORT = "run.total_kimg=0.112"
"""Seven steps, up to the first of a fade."""
SUMMED = {"nodes.yaml": "data parallel", "zero1_nodes.yaml": "DeepSpeed ZeRO-1", "zero2_nodes.yaml": "DeepSpeed ZeRO-2"}
"""By which file gradients are summed how."""
_started: list[subprocess.Popen[str]] = []


def commands(name: str, config: Path, address: str = "127.0.0.1") -> list[list[str]]:
    """The command lines in the comment of a file, of which each machine has one, for a configuration and an address."""
    found = []
    for line in (LAUNCH / name).read_text().replace("\\\n#", "").splitlines():
        words = shlex.split(line.removeprefix("#")) if line.startswith("#   ") else []
        if "CONFIG" in words or "configs/demo.yaml" in words:
            end = words.index("train") + 1 if "train" in words else next(i for i, w in enumerate(words) if "CONF" in w)
            found.append([word.replace("10.0.0.1", address) for word in words[:end]] + [str(config)])
    return found


def accelerated(command: list[str], *options: str) -> list[str]:
    """The same `accelerate launch` with further options."""
    assert command[:2] == ["accelerate", "launch"]
    at = command.index("-m")
    return [*command[:at], *options, *command[at:]]


@dataclass
class Launched:
    """A command that runs, and the file into which it writes what it says.

    Attributes:
        process: The launcher itself.
        log: Standard output and standard error.
    """

    process: subprocess.Popen[str]
    log: Path

    @property
    def said(self) -> str:
        """So far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        """Until something is true while the process runs.

        Raises:
            AssertionError: If it ends before, or it takes longer.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None or condition(), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def ended(self, seconds: float = 240) -> int:
        """The exit code, once it has ended."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {seconds} s: {self.said}") from error

    def succeeded(self, seconds: float = 240) -> str:
        """What it said, once it has ended well."""
        code = self.ended(seconds)
        assert code == 0, self.said
        return self.said


def here(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start on the real machine, as `Machine.start` does on another one."""
    return subprocess.Popen(command, text=True, **options)


def launch(command: list[str], log: Path, start: Any = here, **environment: str) -> Launched:
    """Start a command in the repository, on the CPU, with the programs of this environment."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": programs, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    with log.open("a") as file:
        said = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process = start(command, cwd=ROOT, env={**os.environ, **variables}, **said)
    return started(process, log)


def started(process: subprocess.Popen[str], log: Path) -> Launched:
    """Remember a process that somebody has started, for `end_all`."""
    _started.append(process)
    return Launched(process, log)


def end_all() -> None:
    """End what still runs of all that was started, as behind a test that failed. Killed launchers leave orphans."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            launcher = psutil.Process(process.pid)
            for member in [*launcher.children(recursive=True), launcher]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait(60)


def nimg_of(folder: Path) -> int:
    """Where the run stands that has written `status.json` in its folder; -1 before."""
    status = status_of(folder)
    return int(status["nimg"]) if status["state"] == "running" else -1


def status_of(folder: Path) -> dict[str, Any]:
    """What `status.json` says."""
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "absent"}
    return found


def latest(settings: dict[str, Any], name: str) -> checkpoint.Checkpoint:
    """The latest checkpoint of a run."""
    found = checkpoint.latest(Path(settings["run"]["dir"]) / name / "checkpoints")
    assert found is not None
    return found
