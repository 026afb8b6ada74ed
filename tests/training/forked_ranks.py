"""Small processes that find each other over gloo, forked from one that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from free_ports import free_port
from torch.distributed import TCPStore

from hires_gan.progress import console
from hires_gan.training.world import World, join

LIMIT = 180
"""Seconds that a process may take, far more than it does."""


class Ranks:
    """Processes, numbered by rank.

    Args:
        folder: What each of them says goes to files in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["hires_gan.training.watch"])
        self._processes: list[Any] = []
        self._store: TCPStore | None = None

    def start(self, size: int, target: Callable[..., int], *arguments: Any, agent: bool = False) -> None:
        """Let so many processes call `target(world, folder, *arguments)`, and exit with what it returns.

        Args:
            size: How many.
            target: A function of a module.
            arguments: Of it.
            agent: Whether this process keeps the store at which they meet, as torchrun's agent does, or the first one.
        """
        environment = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        if agent:
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            environment |= {"MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        for rank in range(size):
            call = (environment | {"RANK": str(rank)}, self.folder, target, arguments)
            self._processes.append(self._context.Process(target=_run, args=call, daemon=True))
            self._processes[-1].start()

    @property
    def numbers(self) -> list[int]:
        return list(range(len(self._processes)))

    @property
    def running(self) -> list[int]:
        return [rank for rank in self.numbers if self._processes[rank].exitcode is None]

    def ready(self) -> None:
        """Wait until all have said something on standard output."""
        end = time.monotonic() + LIMIT
        while not all(map(self.output, self.numbers)):
            assert time.monotonic() < end and self.running == self.numbers, self.said(0)
            time.sleep(0.05)

    def output(self, rank: int) -> str:
        """What is on its standard output."""
        path = self.folder / f"out{rank}"
        return path.read_text() if path.is_file() else ""

    def said(self, rank: int) -> str:
        """What is on its standard error."""
        path = self.folder / f"err{rank}"
        return path.read_text() if path.is_file() else ""

    def ended(self, rank: int, code: int) -> str:
        """What it said, after it has ended with this code."""
        self._processes[rank].join(LIMIT)
        assert self._processes[rank].exitcode == code, self.said(rank)
        return self.said(rank)

    def signal(self, rank: int, number: int) -> None:
        os.kill(self._processes[rank].pid, number)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(LIMIT)
        self._store = None


def _run(environment: dict[str, str], folder: Path, target: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    # The server that forks may have been started for a loader's workers, which leave signals to the training process.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{environment['RANK']}", os.O_CREAT | os.O_WRONLY), number)
    torch.set_num_threads(1)
    world = World(torch.device("cpu"))
    if environment["WORLD_SIZE"] != "1":
        dist.init_process_group("gloo", init_method="env://")
        world = join(torch.device("cpu"), LIMIT)
    console.quiet = not world.first
    sys.exit(target(world, folder, *arguments))
