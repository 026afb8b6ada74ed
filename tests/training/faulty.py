"""A training command to which faults happen, and that writes down what each process is shown.

python faulty.py FAULTS RECORDS train CONFIG [key=value ...]; FAULTS is a file with JSON (see `faults.py`), RECORDS a
folder. Every process writes a file of JSON lines into it, and each line at once, so that no kill loses it: first who it
is, then a line for each step, before it is done, and its exit code if it gets that far. `faulty_runs.py` reads them.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RANK = int(os.environ.get("RANK", "0"))
CLOSED = "closed"
"""While this is in RECORDS, processes that have said who they are go no further."""


class Record:
    """The file of this process.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{attempt()}.{RANK}.jsonl").open("xb", buffering=0)
        self.write(pid=os.getpid(), time=time.time())

    def write(self, **values: Any) -> None:
        """One line, by one call of the system."""
        self._file.write(json.dumps(values).encode() + b"\n")


def attempt() -> str:
    """What is the same for the processes that a launcher has started at the same time, and for no others."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID", f"process-{os.getpid()}")
    return f"{launch}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def write_down(record: Record) -> None:
    """Let every step begin with a line on the samples that it trains on: their numbers, and sums of their pixels."""
    from hires_gan.training.backends import Backend
    from hires_gan.training.feed import Feed

    make, step = Feed.__init__, Backend.step
    given: list[list[int]] = []

    def noted(batches: Iterator[Any]) -> Iterator[Any]:
        for loaded in batches:
            given.append(list(loaded.samples))
            yield loaded

    def told_step(self: Backend, phases: Any, batch: Any, first: int, micro: int) -> Any:
        pixels = [zlib.crc32(image.contiguous().numpy()) for image in batch.images]
        record.write(nimg=first, samples=given.pop(0) if pixels else [], pixels=pixels)
        return step(self, phases, batch, first, micro)

    Feed.__init__ = lambda self, batches, *more: make(self, noted(batches), *more)  # type: ignore[method-assign]
    Backend.step = told_step  # type: ignore[method-assign]


def let_happen(faults: Path) -> None:
    """Let the faults of this process happen at the boundaries of its steps, or in its evaluations."""
    from faults import from_json

    from hires_gan.training.trainer import Trainer

    own = [fault for fault in from_json(faults.read_text()) if fault.rank == RANK]
    step, evaluate = Trainer._step, Trainer._evaluate

    def happen(trainer: Trainer, moment: str) -> None:
        for fault in own:
            if fault.moment == moment and trainer.progress.nimg >= fault.nimg:
                fault.happen(trainer.folder.path)

    def faulty_step(self: Trainer, planned: Any, feed: Any) -> None:
        happen(self, "step")
        step(self, planned, feed)

    def faulty_evaluate(self: Trainer) -> str | None:
        asked = self.stop.interrupted
        self.stop.interrupted = lambda: (happen(self, "evaluation"), asked())[1]  # type: ignore[method-assign]
        try:
            return evaluate(self)
        finally:
            del self.stop.interrupted

    Trainer._step = faulty_step  # type: ignore[method-assign]
    Trainer._evaluate = faulty_evaluate  # type: ignore[method-assign]


def have_patience() -> None:
    """Let a run wait at its end for a tracking server that a test may start late."""
    from hires_gan.training import run

    run.TRACKING_WAIT = 300.0


def main(faults: Path, records: Path, *command: str) -> None:
    record = Record(records)  # before anything that takes long is imported
    while (records / CLOSED).exists():
        time.sleep(0.01)
    from hires_gan import cli

    write_down(record)
    let_happen(faults)
    have_patience()
    sys.argv = ["hires-gan", *command]
    try:
        cli.main()
    except SystemExit as end:
        record.write(exit=end.code or 0)
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
