"""How `bench input` measures: each contestant works alone, in processes of its own that are started for one round.

So that nobody's caches, buffers or sleeping workers are another's burden, and memory belongs to whoever takes it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import psutil

from hires_gan.errors import Failure

_PATIENCE = 300.0
"""Seconds beyond those of the measurement after which a contestant is said to hang."""

Kind = Literal["limit", "loader", "peer", "disk"]
"""A decoder alone; our loader; what a user would pick instead; reading alone."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Task:
    """What every contestant of a table is given."""

    resolution: int
    """The side of the decoded images."""
    workers: int
    """Processes, or a decoder's threads."""
    batch: int
    """Images in a batch."""
    seconds: float
    """How long one round is."""


@dataclass(frozen=True)
class Measurement:
    """One contestant in one round."""

    images_per_second: float
    cpu_seconds_per_image: float
    """Of all its processes together."""
    first_batch_seconds: float | None
    """From making it to its first batch, the start of its processes included."""
    memory_mib: float
    """Proportional set size of all its processes: what they share is counted once."""


@dataclass(frozen=True)
class Contestant:
    """Something to measure; it goes to its process by pickle."""

    name: str
    kind: Kind
    measure: Callable[[Task], Measurement]
    """A function of a module, or a partial of one."""
    device: Device = "cpu"
    """Where it decodes: the limit of another device says nothing of it."""


@dataclass(frozen=True)
class Batches:
    """An endless input that has been started."""

    counts: Iterator[int]
    """Gives the number of images of a batch each time that one is there."""
    ahead: int
    """How many batches may be decoded while nobody asks."""
    cycle: int = 1
    """After how many batches it is where it was: workers that make whole batches finish them together."""
    settle: Callable[[], None] = lambda: None
    """Waits for what was handed over before it was done, as a GPU's batches are."""


Opened = Callable[[Task], AbstractContextManager[Batches]]


class Family:
    """This process and all that it started."""

    def __init__(self) -> None:
        self._children = psutil.Process().children(recursive=True)
        self._computed: dict[int, float] = {}

    def cpu(self) -> float:
        """Seconds that all have computed; of one that has ended, what was known last."""
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                self._computed[child.pid] = times.user + times.system
        return time.process_time() + sum(self._computed.values())

    def memory(self) -> float:
        """MiB of proportional set size."""
        total = 0
        for pid in (os.getpid(), *(child.pid for child in self._children)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                total += psutil.Process(pid).memory_full_info().pss
        return total / 2**20


def take(opened: Opened, task: Task) -> Measurement:
    """Take batches for a round, after those that an input decodes ahead; they are dropped.

    Args:
        opened: Starts the input, and ends it.
        task: What it is given.
    """
    start = time.perf_counter()
    with opened(task) as batches:
        next(batches.counts)
        batches.settle()
        first = time.perf_counter() - start
        for _ in range(batches.ahead):
            next(batches.counts)
        family = Family()
        images, taken, wall, cpu = 0, 0, time.perf_counter(), family.cpu()
        while taken == 0 or taken % batches.cycle or time.perf_counter() - wall < task.seconds:
            images += next(batches.counts)
            taken += 1
        batches.settle()
        elapsed = time.perf_counter() - wall
        return Measurement(images / elapsed, (family.cpu() - cpu) / images, first, family.memory())


def measured(contestant: Contestant, task: Task) -> Measurement:
    """Let a contestant work for one round, in a process of its own.

    Raises:
        Failure: If it ends early or hangs; with its own words, if it has any.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_host, args=(theirs, contestant, task), name=contestant.name)
    process.start()
    theirs.close()
    try:
        if not ours.poll(task.seconds + _PATIENCE):
            raise Failure(f"{contestant.name}: nothing was measured for {_PATIENCE:g} s more than it should take")
        answer = ours.recv()
        process.join(_PATIENCE)
    except EOFError:
        process.join()
        raise Failure(f"{contestant.name}: its process ended with exit code {process.exitcode}") from None
    finally:
        ours.close()
        if process.is_alive():
            process.kill()
            process.join()
    if isinstance(answer, str):
        raise Failure(f"{contestant.name}: {answer}")
    assert isinstance(answer, Measurement)
    return answer


def _host(answers: Connection, contestant: Contestant, task: Task) -> None:
    import torch

    torch.set_num_threads(1)
    # As in a program that a user starts: a spawned process would let a DataLoader spawn its workers, too, which takes
    # them seconds and a gigabyte.
    multiprocessing.set_start_method("fork", force=True)
    answer: Measurement | str
    try:
        answer = contestant.measure(task)
    except Failure as error:
        answer = str(error)
    except Exception as error:  # whatever a library raises is that contestant's result
        lines = [line.strip() for line in traceback.format_exception_only(error) if line.strip()]
        answer = lines[-1] if lines else type(error).__name__
    with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it
        answers.send(answer)
    # All is said. Workers that still decode ahead are not waited for, and this does not look back at them, either:
    # a DataLoader that is taken down half-way complains at length.
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    os._exit(0)
