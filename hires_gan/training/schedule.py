"""What follows from nimg alone: the steps of a run, the data that they ask for, and what is due at their boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hires_gan.data.loader import Request
from hires_gan.recipes.protocol import Stage, stage_at
from hires_gan.training.shares import share


@dataclass(frozen=True)
class PlannedStep:
    """One step of the run.

    Attributes:
        nimg: Images shown before it.
        stage: The number of the stage in which it lies.
        batch: Images that it shows.
        resolution: Their side.
    """

    nimg: int
    stage: int
    batch: int
    resolution: int

    @property
    def end(self) -> int:
        """Images shown after it."""
        return self.nimg + self.batch

    def request(self, own: range | None = None) -> Request:
        """The samples of one process, counted from the first of the step; by default all."""
        own = range(self.batch) if own is None else own
        return Request(range(self.nimg + own.start, self.nimg + own.stop), self.resolution)


def steps(stages: Sequence[Stage], nimg: int, total: int) -> Iterator[PlannedStep]:
    """The steps from `nimg` until at least `total` images have been shown."""
    while nimg < total:
        number = stage_at(stages, nimg)
        stage = stages[number]
        step = PlannedStep(nimg, number, stage.batch, stage.resolution)
        yield step
        nimg = step.end


def largest_batch(stages: Sequence[Stage], total: int, rank: int = 0, size: int = 1) -> int:
    """Bytes of the largest batch of uint8 images that a run of `total` images asks one of its processes for."""
    return max(
        max(1, len(share(stage.batch, stage.group, rank, size))) * stage.resolution**2 * 3
        for stage in stages
        if stage.start < total
    )


class Cadence:
    """Something that is due on the first step boundary at or after each multiple of an interval.

    Args:
        every_kimg: The interval; None if it is never due.
        at_start: Whether it is due before the first step, too.
    """

    def __init__(self, every_kimg: float | None, at_start: bool = False) -> None:
        self.every = None if every_kimg is None else max(1, round(every_kimg * 1000))
        self.last = -1 if at_start else 0

    def due(self, nimg: int) -> bool:
        """Whether a multiple of the interval lies behind the last time, up to and with `nimg`."""
        return self.every is not None and nimg // self.every > self.last // self.every

    def done(self, nimg: int) -> None:
        """It has been done at `nimg`."""
        self.last = nimg
