"""The processes that decode: they take orders over a pipe, write into the shared ring, and end with their parent."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Protocol

import torch
from torch import Tensor

from hires_gan.data.heartbeat import HEART
from hires_gan.data.orphans import watch_parent
from hires_gan.data.replacement import Report
from hires_gan.data.ring import Ring
from hires_gan.data.waiting import Asked, Deadline, Stopped, never
from hires_gan.errors import Failure

_NOTHING = -1
"""In place of the row that a worker is reading."""
_GRACE = 5.0
"""Seconds that the workers together get to end by themselves."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Fills(Protocol):
    """Whatever can decode a part of a batch in place."""

    def fill(self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None]) -> Report:
        """Decode samples number start, start + step, ... into their places; tell of each row before it is read."""

    def where(self, row: int) -> str:
        """The place of a row, for people."""


def server() -> ForkServerContext:
    """What starts the processes of the input: a server that has imported torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hires_gan.data.loader"])
    return context


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes in here that are to take no notice of stop signals from their first moment on.

    Blocked here, these signals stay blocked in a server that this starts, and in its workers from the beginning; but
    starting Python's resource tracker, which the server needs, unblocks them: it has to run before.
    """
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def leave_signals_to_parent() -> None:
    """A signal to the whole group is for the trainer, which still needs its batches for the step it finishes."""
    for stop in _STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)


def work(reader: Fills, ring: Ring, board: Ring, orders: Connection, number: int, count: int) -> None:
    """A worker's life: for every order decode one's share, say so; end when the parent has ended.

    The parent's end closes the pipe, but one that waits for a store that is away looks at the pipe only when its
    patience is over: hence the watch.
    """
    cell, beats = board.cell(2 * number), board.cell(2 * number + 1)

    def reading(row: int) -> None:
        cell.fill_(row)

    def beating() -> None:
        beats.add_(1)

    HEART.tell(beating)
    leave_signals_to_parent()
    watch_parent()
    torch.set_num_threads(1)
    while True:
        try:
            turn, slot, samples, resolution = orders.recv()
        except (EOFError, ConnectionResetError):
            return
        report, problem = Report(), None
        try:
            # The turn rotates the shares, so that batches of fewer images than workers keep them all busy.
            images = ring.images(slot, len(samples), resolution)
            report = reader.fill(images, samples, (number + turn) % count, count, reading)
        except Failure as error:
            problem = str(error)
        reading(_NOTHING)
        try:
            orders.send((turn, problem, report))
        except (BrokenPipeError, ConnectionResetError):
            return


class WorkerPool:
    """Worker processes that share the decoding of every batch.

    Args:
        reader: What they decode with.
        ring: What they decode into.
        count: How many there are, at least 1.
        timeout: Seconds without an answer from any worker after which one is said to hang; one that waits for a
            shard that is on its way, or for a store that is tried again, is left in peace.
        stopped: Asked again and again while this waits for them; the wait is given up once it is true.
    """

    def __init__(self, reader: Fills, ring: Ring, count: int, timeout: float, stopped: Asked = never) -> None:
        self._reader, self._timeout, self._stopped = reader, timeout, stopped
        # For each worker, the row that it reads, and its signs of life while it waits for a shard.
        self._board = Ring(2 * count, 8)
        self._reports: defaultdict[int, Report] = defaultdict(Report)
        context = server()
        self._pipes: list[Connection] = []
        self._processes = []
        self._answered = [-1] * count
        with stop_signals_blocked():
            for number in range(count):
                ours, theirs = context.Pipe()
                self._board.cell(2 * number).fill_(_NOTHING)
                arguments = (reader, ring, self._board, theirs, number, count)
                process = context.Process(target=work, args=arguments, name=f"decode-{number}", daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        # At its end Python sends SIGTERM to daemons and waits for them: ours would never end while the pipes are open.
        atexit.register(self.close)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [process.pid for process in self._processes if process.pid is not None]

    def submit(self, turn: int, slot: int, samples: range, resolution: int) -> None:
        """Order a batch: every worker decodes its share of it."""
        for number, pipe in enumerate(self._pipes):
            try:
                pipe.send((turn, slot, samples, resolution))
            except (BrokenPipeError, ConnectionResetError):
                raise self._died(number) from None

    def wait(self, turn: int) -> Report:
        """Return once every worker has done its share of batch number `turn`; what they report of it is told once.

        Raises:
            Failure: With the worker's own message, or naming the worker that died or hangs.
            Stopped: If somebody wants it to.
        """
        while late := [n for n, answered in enumerate(self._answered) if answered < turn]:
            beats = [self._beats(number) for number in late]
            ready = self._ready(late)
            still = [number for number, before in zip(late, beats, strict=True) if self._beats(number) == before]
            if not ready and still:
                raise self._hangs(still[0])
            for number in ready:
                self._receive(number)
        return self._reports.pop(turn, Report())

    def _ready(self, late: list[int]) -> list[int]:
        """Those of the workers that have answered; none, if none does for too long."""
        pipes = {self._pipes[number]: number for number in late}
        deadline = Deadline(self._timeout)
        while not (ready := wait(pipes, deadline.slice)) and not deadline.passed:
            if self._stopped():
                raise Stopped
        return [number for pipe, number in pipes.items() if pipe in ready]

    def _beats(self, number: int) -> int:
        return int(self._board.cell(2 * number + 1))

    def _receive(self, number: int) -> None:
        try:
            turn, problem, report = self._pipes[number].recv()
        except (EOFError, ConnectionResetError):
            raise self._died(number) from None
        if problem is not None:
            raise Failure(problem)
        self._answered[number] = turn
        self._reports[turn].add(report)

    def _hangs(self, number: int) -> Failure:
        row = int(self._board.cell(2 * number))
        reading = "" if row == _NOTHING else f", while it reads {self._reader.where(row)}"
        return Failure(
            f"data worker {number} (process {self._processes[number].pid}) has not answered for {self._timeout:g} s"
            f"{reading}; look at the disk or file system that holds the shards, or raise data.timeout"
        )

    def _died(self, number: int) -> Failure:
        process = self._processes[number]
        process.join(5)
        code = process.exitcode
        who = f"data worker {number} (process {process.pid})"
        if code is not None and code < 0:
            return Failure(
                f"{who} was killed by {signal.Signals(-code).name}; if the machine ran out of memory, "
                f"lower data.workers or data.prefetch"
            )
        return Failure(f"{who} ended with exit code {code}; its own message stands above")

    def close(self) -> None:
        """Close the pipes, at which the workers end, and wait for them."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + _GRACE
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
