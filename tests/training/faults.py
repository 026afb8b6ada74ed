"""Faults for runs under test: what happens to which process of a run, and when. `faulty.py` lets them happen."""

from __future__ import annotations

import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hires_gan.data.shards import ShardSet

FILLER = "filler"
"""The file in the run's folder with which `full_disk` fills the disk."""
_LARGEST_DISK = 64 << 20
"""Bytes; no larger disk is filled."""


Moment = Literal["step", "evaluation"]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, once in a run's folder.

    Attributes:
        rank: To which process it happens.
        nimg: It happens at or behind so many images.
        kind: One of `KINDS`.
        details: What that function wants to know besides the run's folder: plain JSON values.
        moment: Before the first step there, or in the first evaluation, as soon as it asks whether to stop.
    """

    rank: int
    nimg: int
    kind: str
    details: dict[str, Any] = field(default_factory=dict)
    moment: Moment = "step"

    def happen(self, folder: Path) -> None:
        """Happen, unless it has before, maybe to a process that a launcher has started again since.

        Args:
            folder: The run's.
        """
        marker = folder / f".fault-{self.kind}-{self.rank}-{self.nimg}"
        try:
            marker.touch(exist_ok=False)  # first, for nothing may be done behind a fault
        except FileExistsError:
            return
        KINDS[self.kind](folder, **self.details)


def fail_at(rank: int, nimg: int, kind: str, moment: Moment = "step", **details: Any) -> Fault:
    """A fault; see `Fault`.

    Raises:
        KeyError: If there is no such kind.
        TypeError: If that kind wants other details.
    """
    inspect.signature(KINDS[kind]).bind(Path(), **details)
    return Fault(rank, nimg, kind, details, moment)


def to_json(faults: Sequence[Fault]) -> str:
    """Faults as text."""
    return json.dumps([asdict(fault) for fault in faults])


def from_json(text: str) -> list[Fault]:
    """Faults from what `to_json` made of them."""
    return [Fault(**fault) for fault in json.loads(text)]


# --- kinds ------------------------------------------------------------------------------------------------------------


def exception(folder: Path) -> None:
    """What nobody expects, in the training thread."""
    raise RuntimeError("a fault that a test has asked for")


def sigkill(folder: Path) -> None:
    """The process ends at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def sigterm(folder: Path, until: str | None = None) -> None:
    """The process is asked to end; the training thread does nothing more before there is a file `until`, if named."""
    os.kill(os.getpid(), signal.SIGTERM)
    while until is not None and not Path(until).exists():
        time.sleep(0.01)


def hang(folder: Path) -> None:
    """The training thread does nothing more, and the others go on."""
    while True:
        time.sleep(1000)


def full_disk(folder: Path) -> None:
    """Not a byte is free on the file system with the run's folder, until somebody removes `FILLER` in it.

    A checkpoint that is being written becomes whole before.
    """
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    free = shutil.disk_usage(folder).free
    assert free <= _LARGEST_DISK, f"{folder} has {free} bytes free: mount a small file system for it"
    with (folder / FILLER).open("wb", buffering=0) as filler:
        for size in (1 << 16, 1 << 12, 1):
            _fill(filler.write, bytes(size))


def corrupt_shard(folder: Path, shards: str, rows: Sequence[int]) -> None:
    """A byte in the middle of these images is another one, on the disk."""
    for row in rows:
        path, offset, size, _ = ShardSet(Path(shards)).locate(row)
        with path.open("r+b") as shard:
            shard.seek(offset + size // 2)
            (value,) = shard.read(1)
            shard.seek(offset + size // 2)
            shard.write(bytes([value ^ 255]))


def tracking_gone(folder: Path, pid: int) -> None:
    """The tracking server is killed, with all processes of its group, whose leader it is."""
    os.killpg(pid, signal.SIGKILL)


def link_down(folder: Path, device: str, seconds: float, real: str) -> None:
    """A network interface is down for so many seconds; never one of the network namespace `real` (see `network`)."""
    assert network() != real, f"{device} belongs to the real network"
    switch = ["ip", "link", "set", device]
    subprocess.run([*switch, "down"], check=True)
    threading.Timer(seconds, subprocess.run, ([*switch, "up"],), {"check": True}).start()


def network() -> str:
    """The network namespace in which this process is."""
    return os.readlink("/proc/self/ns/net")


KINDS: dict[str, Callable[..., None]] = {
    kind.__name__: kind
    for kind in (exception, sigkill, sigterm, hang, full_disk, corrupt_shard, tracking_gone, link_down)
}
"""By name, what can happen; called with the run's folder and the details of a fault."""


def _fill(write: Callable[[bytes], object], block: bytes) -> None:
    try:
        while write(block):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
