"""What the first process knows of the others, asked at every log: their pace, their memory, their corrupt samples."""

from __future__ import annotations

import socket
from dataclasses import asdict

import torch

from hires_gan.data.replacement import CorruptRows
from hires_gan.progress import say
from hires_gan.training.pace import Own, Pace, Spread, Stragglers, spread
from hires_gan.training.status import memory_in_use
from hires_gan.training.world import World


class Ranks:
    """The processes of a run, as they were at the last log.

    Args:
        world: The processes.
        device: Where this one computes.
        pace: How fast it does.
        corrupt: The samples that could not be shown; the first process learns those of the others.

    Attributes:
        memory: By rank, the bytes in use as `memory_in_use` has them.
    """

    def __init__(self, world: World, device: torch.device, pace: Pace, corrupt: CorruptRows) -> None:
        self._world, self._device, self._pace, self._corrupt = world, device, pace, corrupt
        self._stragglers = Stragglers(world.gathered(socket.gethostname()))
        self._spread: Spread | None = None
        self.memory: list[float] = []

    @property
    def metrics(self) -> dict[str, float]:
        """How far apart they are; nothing of one alone."""
        return {} if self._spread is None else self._spread.metrics

    @property
    def words(self) -> str:
        """The same for the status line."""
        return "" if self._spread is None else self._spread.words

    @property
    def memory_metrics(self) -> dict[str, float]:
        """The memory of each process, by the names of `tracking.exporter.FAMILIES`."""
        kind = "gpu" if self._device.type == "cuda" else "resident"
        return {f"memory/{kind}/{rank}": used for rank, used in enumerate(self.memory)}

    def tell(self) -> None:
        """Tell the first process what only the others know; all of them have to take part."""
        self._spread, own, memory = None, self._pace.lap(), memory_in_use(self._device)
        self.memory = [memory]
        if self._world.alone:
            return
        told = self._world.gathered([None if own is None else asdict(own), memory, self._corrupt.rows()])
        self.memory = [used for _, used, _ in told]
        self._spread = spread([None if lap is None else Own(**lap) for lap, _, _ in told])
        sentence = self._stragglers.look(self._spread)
        if sentence is not None:
            say(sentence)
        for number, (_, _, rows) in enumerate(told[1:], 1):
            for line in self._corrupt.learn(rows) if self._world.first else ():
                say(f"rank {number}: {line}")
