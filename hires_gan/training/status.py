"""What people see while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil
import torch
from rich.progress import BarColumn, Progress, TextColumn

from hires_gan.progress import console, say

PLAIN_EVERY = 10.0
"""Seconds between two plain lines where there is no terminal."""


@dataclass(frozen=True)
class Speed:
    """How fast a stretch of the run went.

    Attributes:
        images: Images shown in it.
        seconds: How long it took, samples, evaluation and checkpoints left out.
        waited: How many of these seconds were spent waiting for data.
    """

    images: int
    seconds: float
    waited: float

    @property
    def images_per_second(self) -> float:
        """Images shown per second."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def seconds_per_kimg(self) -> float:
        """Seconds per thousand images."""
        return 1000 * self.seconds / max(self.images, 1)

    @property
    def data_wait(self) -> float:
        """The share of the time spent waiting for data, 0 to 1."""
        return self.waited / max(self.seconds, 1e-9)


class Stopwatch:
    """Measures stretches of training time, leaving out what is done between the steps."""

    def __init__(self) -> None:
        self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, images: int, seconds: float, waited: float) -> None:
        """Count one step."""
        self._images += images
        self._seconds += seconds
        self._waited += waited

    def lap(self) -> Speed:
        """The speed since the last lap."""
        speed = Speed(self._images, self._seconds, self._waited)
        self._images, self._seconds, self._waited = 0, 0.0, 0.0
        return speed


def memory_in_use(device: torch.device) -> float:
    """Bytes: the most that was allocated on a GPU, or what this process has resident on the CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)


class StatusLine:
    """The run's progress from the present nimg to the total.

    Args:
        name: The run's name.
        nimg: Images shown so far.
        total: Images at the end.
    """

    def __init__(self, name: str, nimg: int, total: int) -> None:
        self._total = total
        self._last_line = 0.0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(TextColumn(name), BarColumn(), TextColumn("{task.fields[line]}"), console=console)
            self._task = self._bar.add_task(name, total=total, completed=nimg, line="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, nimg: int, where: str, speed: Speed, memory: float, losses: dict[str, float]) -> None:
        """Show how the run stands; without a terminal at most every few seconds, but always at the end."""
        line = self._line(nimg, where, speed, memory, losses)
        if self._bar is not None:
            self._bar.update(self._task, completed=nimg, line=line)
        elif time.monotonic() - self._last_line >= PLAIN_EVERY or nimg >= self._total:
            self._last_line = time.monotonic()
            say(line)

    def _line(self, nimg: int, where: str, speed: Speed, memory: float, losses: dict[str, float]) -> str:
        left = max(0, self._total - nimg) / 1000 * speed.seconds_per_kimg
        return " | ".join(
            (
                f"{nimg / 1000:.1f}/{self._total / 1000:g} kimg",
                where,
                f"{speed.images_per_second:.1f} img/s {speed.seconds_per_kimg:.1f} s/kimg",
                f"data wait {speed.data_wait:.1%}",
                f"{memory / 2**30:.1f} GiB",
                " ".join(f"{name} {value:.3g}" for name, value in losses.items()),
                f"ETA {_duration(left)}",
            )
        )


def _duration(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}h" if days else f"{hours}h {minutes:02}m" if hours else f"{minutes}m {whole:02}s"
