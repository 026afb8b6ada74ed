"""Start runs to which faults happen, and read what their processes were shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import Fault, to_json

from hires_gan import checkpoint

HERE = Path(__file__).resolve().parent


@dataclass
class Shown:
    """What one process has written down.

    Attributes:
        path: The file.
        pid: Its process.
        began: By `time.time`.
        steps: By nimg, its samples, each with the sum of its pixels.
        code: With which it ended by itself, or None.
    """

    path: Path
    pid: int
    began: float
    steps: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    code: int | None = None

    @property
    def nimg(self) -> int | None:
        """Images shown before the step that the process does now, as its file says now; None before the first one."""
        lines = self.path.read_bytes().rpartition(b"\n")[0].splitlines()
        found = json.loads(lines[-1]).get("nimg")
        return None if found is None else int(found)

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"


Attempt = dict[int, Shown]
"""By rank, the processes that were started together."""


@dataclass
class FaultyRun:
    """A command that runs under torchrun, with faults.

    Attributes:
        process: The launcher.
        log: What all have said.
        records: The folder with what the processes write down.
    """

    process: subprocess.Popen[str]
    log: Path
    records: Path

    @property
    def said(self) -> str:
        """So far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 300, pause: float = 0.002) -> None:
        """Until something is true while the launcher runs.

        Raises:
            AssertionError: If it ends before, or it takes longer.
        """
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None or condition(), self.said
            assert time.monotonic() < end, self.said
            time.sleep(pause)

    def ended(self, well: bool, seconds: float = 300) -> str:
        """What was said, once it has ended by itself, well or not."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.said}") from None
        assert (code == 0) == well, self.said
        return self.said

    def close(self) -> None:
        """End it, if it has not ended: the launcher then ends its processes."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(120)


def faulty_command(folder: Path, faults: Sequence[Fault], config: Path, *overrides: str) -> list[str]:
    """The program and its arguments, for a launcher; its records go to `folder`."""
    path = folder / "faults.json"
    path.write_text(to_json(faults))
    return [str(HERE / "faulty.py"), str(path), str(folder / "records"), "train", str(config), *overrides]


def start(
    processes: int, folder: Path, config: Path, *overrides: str, faults: Sequence[Fault] = (), restarts: int = 0
) -> FaultyRun:
    """Start so many processes of `hires-gan train` on this machine.

    Args:
        processes: How many.
        folder: Where the log and the records go; they go behind those of a start before.
        config: A YAML file.
        overrides: Of keys.
        faults: What happens to them.
        restarts: How often the launcher starts all of them again where one fails.
    """
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "--max-restarts", str(restarts), *faulty_command(folder, faults, config, *overrides)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    with (folder / "log").open("a") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log, text=True)
    return FaultyRun(process, folder / "log", folder / "records")


def attempts(records: Path) -> list[Attempt]:
    """All that processes have written down, in the order of their starts."""
    found: dict[str, Attempt] = {}
    for path in records.glob("*.jsonl"):
        name, rank = path.name.removesuffix(".jsonl").rsplit(".", 1)
        shown = _read(path)
        if shown is not None:
            found.setdefault(name, {})[int(rank)] = shown
    return sorted(found.values(), key=lambda attempt: min(shown.began for shown in attempt.values()))


def _read(path: Path) -> Shown | None:
    """What a process has written down; None before it has."""
    whole = path.read_bytes().rpartition(b"\n")[0]  # a line that a kill has torn is none
    first, *lines = (json.loads(line) for line in whole.splitlines()) if whole else (None,)
    if first is None:
        return None
    shown = Shown(path, first["pid"], first["time"])
    for line in lines:
        if "exit" in line:
            shown.code = line["exit"]
        else:
            shown.steps[line["nimg"]] = list(zip(line["samples"], line["pixels"], strict=True))
    return shown


def survivors(found: Sequence[Attempt]) -> list[dict[int, list[tuple[int, int]]]]:
    """By attempt, what its steps showed on all ranks that no later attempt has done again, by nimg."""
    starts = [min((nimg for shown in attempt.values() for nimg in shown.steps), default=None) for attempt in found]
    kept = []
    for number, attempt in enumerate(found):
        end = next((start for start in starts[number + 1 :] if start is not None), sys.maxsize)
        steps: dict[int, list[tuple[int, int]]] = {}
        for shown in attempt.values():
            for nimg, samples in shown.steps.items():
                if nimg < end:
                    steps.setdefault(nimg, []).extend(samples)
        kept.append(steps)
    return kept


def history(records: Path) -> dict[int, int]:
    """The sums of pixels by sample, of all that the final weights have seen.

    Raises:
        AssertionError: If a sample is in it twice, or one is missing before the last.
    """
    shown = [pair for steps in survivors(attempts(records)) for samples in steps.values() for pair in samples]
    assert sorted(sample for sample, _ in shown) == list(range(len(shown)))
    return dict(shown)


def whole_checkpoints(folder: Path) -> list[int]:
    """The nimg of all checkpoints of a run, each of them read to the last byte.

    Raises:
        Failure: If one cannot be read, or is not what was written.
    """
    places = sorted(place for place in (folder / "checkpoints").glob("*") if place.name.isdigit())
    for place in places:
        found = checkpoint.read(place)
        assert found.state["files"]
        for name in found.state["files"]:
            found.tensors(name.removesuffix(".safetensors"))
    return [int(place.name) for place in places]


def status_of(folder: Path) -> dict[str, Any]:
    """What `status.json` of a run says; nothing before there is one."""
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return found
