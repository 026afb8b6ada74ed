"""Which of how many processes this one is: by its options, or by what torchrun, SLURM or Kubernetes tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hires_gan.errors import UsageError

WORLD_SIZE = "HIRES_GAN_WORLD_SIZE"
"""The environment variable that stands for --world-size: an indexed Kubernetes job does not tell its size."""
_SLURM_STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID")


@dataclass(frozen=True)
class Rank:
    """One of several processes that do one piece of work."""

    number: int = 0
    """From 0 on."""
    world: int = 1
    """How many there are."""
    source: str = ""
    """Where both were read; empty where nothing said anything."""
    neighbours: int = 1
    """How many of them run on this machine, as far as that is known."""

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world}"

    @property
    def line(self) -> str:
        """What was read from where, for people; empty where nothing said anything."""
        return f"{'one process alone' if self.alone else self} ({self.source})" if self.source else ""

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1


ALONE = Rank()


@dataclass(frozen=True)
class _Value:
    """A number, and what said it."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} is {self.number}"


def find_rank(rank: int | None, world: int | None, environment: Mapping[str, str]) -> Rank:
    """Tell which process this is.

    Options come first. What they leave open, the innermost launcher tells: torchrun (RANK and WORLD_SIZE), or else a
    step of srun with several tasks (SLURM_PROCID and SLURM_NTASKS), or else an indexed Kubernetes job
    (JOB_COMPLETION_INDEX, with HIRES_GAN_WORLD_SIZE or --world-size). HIRES_GAN_WORLD_SIZE stands for --world-size
    everywhere.

    Args:
        rank: The option --rank.
        world: The option --world-size.
        environment: The environment variables.

    Raises:
        UsageError: Two of them contradict each other, one lacks its other half, or a value cannot be.
    """
    ranks = [_Value(rank, "--rank")] if rank is not None else []
    worlds = [_Value(world, "--world-size")] if world is not None else []
    worlds += _values(environment, WORLD_SIZE)
    told_rank, told_world, launcher = _launcher(environment)
    worlds += told_world
    size = _agreed(worlds)
    if launcher == "Kubernetes" and size is not None and size.number == 1:
        told_rank = []  # each pod of an indexed job may do work of its own
    number = _agreed(ranks + told_rank)
    if number is None and size is None:
        return _outside_of_a_step(environment)
    if size is None:
        raise UsageError(f"{number}, but nothing says of how many: set --world-size or {WORLD_SIZE}")
    if size.number < 1:
        raise UsageError(f"{size}: a number from 1 on is allowed")
    if number is None and size.number > 1:
        raise UsageError(f"{size}, but nothing says which of them this one is: set --rank, from 0 to {size.number - 1}")
    first = number.number if number is not None else 0
    if not 0 <= first < size.number:
        raise UsageError(f"{number}, but {size}: ranks from 0 to {size.number - 1} are allowed")
    names = " and ".join(dict.fromkeys(value.name for value in (number, size) if value is not None))
    source = f"{names} of {launcher}" if number in told_rank else names
    return Rank(first, size.number, source, _neighbours(environment, launcher, size.number))


def _launcher(environment: Mapping[str, str]) -> tuple[list[_Value], list[_Value], str]:
    """Return what the innermost launcher says of the rank and of the world's size, and the launcher's name."""
    rank, world = _values(environment, "RANK"), _values(environment, "WORLD_SIZE")
    if rank or world:
        if not (rank and world):
            there, missing = ("RANK", "WORLD_SIZE") if rank else ("WORLD_SIZE", "RANK")
            raise UsageError(f"{there} is set and {missing} is not: torchrun sets both; set the other, or unset this")
        return rank, world, "torchrun"
    tasks = _values(environment, "SLURM_STEP_NUM_TASKS") or _values(environment, "SLURM_NTASKS")
    if any(name in environment for name in _SLURM_STEP) and tasks and tasks[0].number > 1:
        process = _values(environment, "SLURM_PROCID")
        if not process:
            raise UsageError(f"{tasks[0]} and SLURM_PROCID is not set: start with srun, which sets both")
        return process, tasks, "SLURM"
    index = _values(environment, "JOB_COMPLETION_INDEX")
    return index, [], "Kubernetes" if index else ""


def _outside_of_a_step(environment: Mapping[str, str]) -> Rank:
    """Nothing asks for several; a batch script of several tasks that forgot srun is told."""
    tasks = _values(environment, "SLURM_NTASKS")
    if tasks and tasks[0].number > 1 and not any(name in environment for name in _SLURM_STEP):
        return Rank(source=f"{tasks[0]}, but this is no step of srun, which would start them all")
    return ALONE


def _neighbours(environment: Mapping[str, str], launcher: str, world: int) -> int:
    local = _values(environment, "LOCAL_WORLD_SIZE") if launcher == "torchrun" else []
    return min(max(1, local[0].number), world) if local else 1


def _values(environment: Mapping[str, str], name: str) -> list[_Value]:
    """Return the whole number that a variable holds, or nothing if it is not set."""
    text = environment.get(name, "").strip()
    if not text:
        return []
    if not text.isascii() or not text.isdecimal():
        raise UsageError(f"{name} is {text!r} in the environment: a whole number from 0 on is allowed")
    return [_Value(int(text), name)]


def _agreed(values: list[_Value]) -> _Value | None:
    """Return the first of several values that must be equal."""
    for other in values[1:]:
        if other.number != values[0].number:
            raise UsageError(f"{values[0]}, but {other}: give one of them, or both the same")
    return values[0] if values else None
