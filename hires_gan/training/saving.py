"""Checkpoints behind the training: a step waits for the copy, not for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hires_gan import checkpoint
from hires_gan.checkpoint import Checkpoint, Tensors
from hires_gan.errors import Failure


@dataclass
class Copies:
    """Copies of tensors in the host's memory; from a GPU they arrive while it goes on.

    Attributes:
        parts: The copies, whole once `arrive` is back.
    """

    parts: dict[str, Tensors] = field(default_factory=dict)
    _began: torch.cuda.Event | None = None
    _arrived: torch.cuda.Event | None = None

    def take(self, parts: Mapping[str, Tensors]) -> None:
        """Copy, into the memory of the last time where that fits."""
        on_gpu = any(value.is_cuda for tensors in parts.values() for value in tensors.values())
        self._began = _event() if on_gpu else None
        self.parts = {
            part: {name: self._copy(part, name, value.detach()) for name, value in tensors.items()}
            for part, tensors in parts.items()
        }
        self._arrived = _event() if on_gpu else None

    def arrive(self) -> float:
        """Wait until the copies are there; for how many seconds the GPU copied, behind what it had to do before."""
        if self._began is None or self._arrived is None:
            return 0.0
        # A new thread's own GPU is the first, on which waiting may take memory, whichever the copies came from.
        with torch.cuda.device(self._arrived.device):
            self._arrived.synchronize()
        return float(self._began.elapsed_time(self._arrived)) / 1000

    def _copy(self, part: str, name: str, value: Tensor) -> Tensor:
        before = self.parts.get(part, {}).get(name)
        if before is None or before.shape != value.shape or before.dtype != value.dtype:
            # A GPU copies by itself only into memory that stays where it is.
            before = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return before.copy_(value, non_blocking=True)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


@dataclass(frozen=True)
class Cost:
    """What a checkpoint took, in seconds.

    Attributes:
        blocked: Training stood still: weights were gathered, compared over processes and copied, and before that, the
            checkpoint before was waited for, if it was being written.
        background: It was written, read back and put into its place, beside the training.
    """

    blocked: float
    background: float


class Saver:
    """Writes one checkpoint at a time, in a thread; entered for a run, whose end waits for the last one.

    Args:
        root: The run's `checkpoints` directory.
        keep: How many of the latest stay.

    Attributes:
        last: The latest that is whole on the disk, as far as it was asked about.
        costs: Of those that were written since somebody emptied it.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self.root, self.keep = root, keep
        self.last: Checkpoint | None = None
        self.costs: list[Cost] = []
        self._copies = Copies()
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.wait()
        except BaseException:
            if kind is None:  # what went wrong first is what is told
                raise

    def save(
        self,
        nimg: int,
        parts: Mapping[str, Tensors],
        state: Mapping[str, Any],
        best: str | None,
        since: float | None = None,
    ) -> None:
        """Copy the tensors, and write them while the training goes on.

        Args:
            nimg: Images shown.
            parts: Named groups of tensors.
            state: Plain JSON values to keep beside them, which nobody changes any more.
            best: The checkpoint to which `best` points from then on.
            since: When training was stopped for it, by `time.perf_counter`; None: now.

        Raises:
            Failure: If the checkpoint before could not be written.
        """
        start = time.perf_counter() if since is None else since
        self.wait()
        self._copies.take(parts)
        blocked = time.perf_counter() - start
        self._thread = threading.Thread(target=self._write, args=(nimg, state, best, blocked), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Make sure, without waiting, that nothing went wrong.

        Raises:
            Failure: If a checkpoint could not be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            Failure: If it could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _write(self, nimg: int, state: Mapping[str, Any], best: str | None, blocked: float) -> None:
        start = time.perf_counter()
        try:
            blocked += self._copies.arrive()
            self.last = checkpoint.write(self.root, nimg, self._copies.parts, state)
            self.mark_best(best)
            checkpoint.prune(self.root, self.keep)
        except OSError as error:
            self._failed = Failure(
                f"cannot write to {self.root}: {error.strerror or error}; the checkpoint of {nimg} images is whole: "
                "make room and run the same command again, which goes on from the latest one"
            )
        except BaseException as error:
            self._failed = error
        else:
            self.costs.append(Cost(blocked, time.perf_counter() - start))

    def mark_best(self, best: str | None) -> None:
        """Let `best` point to a checkpoint; also after a kill between the checkpoint and the pointer."""
        if best is not None and (self.root / best).is_dir():
            checkpoint.point(self.root, checkpoint.BEST, best)
