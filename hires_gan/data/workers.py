"""The processes that decode: they take orders over a pipe, write into the shared ring, and end with their parent."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import time
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch
from torch import Tensor

from hires_gan.data.ring import Ring
from hires_gan.errors import Failure

WORKER_TIMEOUT = 120.0
"""Seconds without an answer from any worker after which one is said to hang."""
_GRACE = 5.0
"""Seconds that the workers together get to end by themselves."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Fills(Protocol):
    """Whatever can decode a part of a batch in place."""

    def fill(self, images: Tensor, samples: range, start: int, step: int) -> None:
        """Decode samples number start, start + step, ... into their places."""


def work(reader: Fills, ring: Ring, orders: Connection, number: int, count: int) -> None:
    """A worker's life: for every order decode one's share, say so; end when the parent has ended."""
    # A signal to the whole process group is for the trainer, which still needs its batches for the step it finishes.
    for stop in _STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            turn, slot, samples, resolution = orders.recv()
        except (EOFError, ConnectionResetError):
            return
        problem = None
        try:
            # The turn rotates the shares, so that batches of fewer images than workers keep them all busy.
            reader.fill(ring.images(slot, len(samples), resolution), samples, (number + turn) % count, count)
        except Failure as error:
            problem = str(error)
        try:
            orders.send((turn, problem))
        except (BrokenPipeError, ConnectionResetError):
            return


class WorkerPool:
    """Worker processes that share the decoding of every batch.

    Args:
        reader: What they decode with.
        ring: What they decode into.
        count: How many there are, at least 1.
    """

    def __init__(self, reader: Fills, ring: Ring, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hires_gan.data.loader"])
        self._pipes: list[Connection] = []
        self._processes = []
        self._answered = [-1] * count
        # Blocked here, these signals stay blocked in a server that this starts, and in its workers from the beginning;
        # but starting Python's resource tracker, which the server needs, unblocks them: it has to run before.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            for number in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=work, args=(reader, ring, theirs, number, count), name=f"decode-{number}", daemon=True
                )
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
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

    def wait(self, turn: int) -> None:
        """Return once every worker has done its share of batch number `turn`.

        Raises:
            Failure: With the worker's own message, or naming the worker that died or hangs.
        """
        while late := [n for n, answered in enumerate(self._answered) if answered < turn]:
            ready = wait([self._pipes[n] for n in late], WORKER_TIMEOUT)
            if not ready:
                raise Failure(
                    f"data worker {late[0]} (process {self._processes[late[0]].pid}) has not answered for "
                    f"{WORKER_TIMEOUT:.0f} s; look at the disk or file system that holds the shards"
                )
            for number in late:
                if self._pipes[number] in ready:
                    self._receive(number)

    def _receive(self, number: int) -> None:
        try:
            turn, problem = self._pipes[number].recv()
        except (EOFError, ConnectionResetError):
            raise self._died(number) from None
        if problem is not None:
            raise Failure(problem)
        self._answered[number] = turn

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
