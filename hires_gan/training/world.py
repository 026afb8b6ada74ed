"""The processes that train together: who they are, and what they tell each other beside gradients."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hires_gan.errors import Elsewhere, Failure, UsageError
from hires_gan.progress import console
from hires_gan.training.activity import waiting


@dataclass(frozen=True)
class World:
    """One of the processes of a run.

    Attributes:
        device: Where this one computes.
        rank: Its number, from 0.
        size: How many there are.
        neighbours: How many of them run on this machine.
        control: The group over which they talk, on the CPU; None for one alone.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    neighbours: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, logs and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process; all of them have to ask."""
        return self.ask(flag)()

    def ask(self, flag: bool) -> Callable[[], bool]:
        """Begin to find out whether it is true of any process; all of them have to ask, in the same order.

        Returns:
            Gives the answer, and waits for it where it is not there yet: it comes while others compute.
        """
        if self.alone:
            return lambda: flag
        told = torch.tensor([flag], dtype=torch.int32)
        work = dist.all_reduce(told, dist.ReduceOp.MAX, group=self.control, async_op=True)

        def answer() -> bool:
            with waiting("a word with all"):
                work.wait()
            return bool(told)

        return answer

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, by rank: plain JSON values; all of them have to take part."""
        if self.alone:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with waiting("a word with all"):
            dist.all_gather(lengths, torch.tensor([len(text)]), group=self.control)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.control)
        return [json.loads(bytes(part[: int(n)].tolist())) for part, n in zip(parts, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """What the first process gives, a plain JSON value; the others' is not looked at."""
        return self.gathered(value if self.first else None)[0]

    def collected(self, rows: Tensor) -> list[Tensor] | None:
        """What each process gives, by rank, on the first one; None on the others. All of them have to take part.

        Args:
            rows: On the CPU, of any shape and of one dtype; it is sent as it is, and may be gigabytes.
        """
        if self.alone:
            return [rows]
        shapes = self.gathered(list(rows.shape))
        with waiting("what all have measured"):
            if not self.first:
                dist.send(rows.contiguous(), 0, group=self.control)
                return None
            parts = [rows, *(torch.empty(shape, dtype=rows.dtype) for shape in shapes[1:])]
            for rank, part in enumerate(parts[1:], 1):
                dist.recv(part, rank, group=self.control)
            return parts

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Of each tensor the sum over all processes, which give tensors of equal shapes, on the device."""
        if self.alone or not values:
            return list(values)
        flat = torch.cat([value.detach().double().flatten() for value in values])
        with waiting("sum of means"):
            dist.all_reduce(flat)
        parts = torch.split(flat, [value.numel() for value in values])
        return [part.reshape(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do something that may fail on some process: then it fails on all of them, and the first one says why.

        Raises:
            UsageError, Failure: On the first process: its own error, or that of another, with its rank.
            Elsewhere: On the others.
        """
        failed: BaseException | None = None
        try:
            yield
        except Failure as error:
            failed = error
        told = self.gathered(None if failed is None else [isinstance(failed, UsageError), str(failed)])
        errors = [(number, *error) for number, error in enumerate(told) if error is not None]
        if not errors:
            return
        number, usage, message = errors[0]
        if not self.first:
            raise Elsewhere(usage)
        if failed is not None:
            raise failed
        raise (UsageError if usage else Failure)(f"rank {number}: {message}")

    def leave(self) -> None:
        """Part from the others, when all are done: one that ended first would break their connections."""
        if not self.alone:
            dist.barrier(group=self.control)
            dist.destroy_process_group()

    def agree(self, what: str, value: str) -> None:
        """Make sure that all processes have the same value of something.

        Raises:
            UsageError: On the first process, naming those that differ.
            Elsewhere: On the others.
        """
        values = self.gathered(value)
        others = [number for number, other in enumerate(values) if other != values[0]]
        if not others:
            return
        if not self.first:
            raise Elsewhere(usage=True)
        ranks = ", ".join(map(str, others))
        raise UsageError(
            f"{what} of rank {ranks} is not that of rank 0 ({values[others[0]]}, and here {values[0]}): start all "
            "processes with the same files, packages and arguments"
        )


def join(device: torch.device, timeout: float) -> World:
    """The world that the launcher made, of one process or of several.

    Args:
        device: Of this process, as accelerate chose it.
        timeout: Seconds after which a process that does not answer counts as lost.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return World(device)
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    world = World(device, dist.get_rank(), dist.get_world_size(), control=control)
    names = world.gathered(socket.gethostname())
    return replace(world, neighbours=names.count(names[world.rank]))


@contextmanager
def telling_losses(world: World) -> Iterator[None]:
    """Say in a sentence that another process does not answer any more.

    Raises:
        Failure: In place of what torch says of it.
    """
    try:
        yield
    except RuntimeError as error:
        if world.alone or not _is_loss(error):
            raise
        console.quiet = False  # each process tells what it has lost
        reason = str(error).strip().splitlines()[0]
        raise Failure(
            f"rank {world.rank} has lost another process ({reason}): what that one said, if it could, stands above; "
            "the same command goes on from the latest checkpoint"
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether it is how torch says that a process is gone, or silent."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
