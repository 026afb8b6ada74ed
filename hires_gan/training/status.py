"""What people see while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil
import torch
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hires_gan.progress import console, say

PLAIN_EVERY = 10.0
"""Seconds between two plain lines where there is no terminal."""


@dataclass(frozen=True)
class Speed:
    """How fast a stretch of the run went.

    Attributes:
        images: Images shown in it.
        seconds: How long it took, samples, evaluation and checkpoints left out.
        waited: How many of these seconds were lost to waiting for data.
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
        self._images, self._seconds, self._lost = 0, 0.0, 0.0

    def add(self, images: int, seconds: float) -> None:
        """Count one step."""
        self._images += images
        self._seconds += seconds

    def lap(self, lost: float) -> Speed:
        """The speed since the last lap.

        Args:
            lost: Seconds that have been lost to waiting for data, all laps together.
        """
        speed = Speed(self._images, self._seconds, lost - self._lost)
        self._images, self._seconds, self._lost = 0, 0.0, lost
        return speed


def memory_in_use(device: torch.device) -> float:
    """Bytes: the most that was allocated on a GPU, or what this process has resident on the CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)


class StatusLine:
    """The run's progress from the present nimg to the total: a bar and two lines on a terminal, one line elsewhere.

    Args:
        name: The run's name.
        nimg: Images shown so far.
        total: Images at the end.
    """

    def __init__(self, name: str, nimg: int, total: int) -> None:
        self._name, self._total = name, total
        self._last_line = self._last_refresh = 0.0
        self._details = ""
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self.advance(nimg, "")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self, nimg: int, where: str) -> None:
        """Move the bar, at most twice a second; cheap enough for every step."""
        now = time.monotonic()
        if self._live is not None and now - self._last_refresh >= 0.5:
            self._last_refresh = now
            lines = Table.grid(expand=True)
            lines.add_row(Text(f"{self._name}: {nimg / 1000:.1f}/{self._total / 1000:g} kimg | {where}"))
            lines.add_row(ProgressBar(total=self._total, completed=nimg))
            lines.add_row(Text(self._details))
            self._live.update(lines)

    def show(
        self,
        nimg: int,
        where: str,
        speed: Speed,
        memory: float,
        losses: dict[str, float],
        skipped: int = 0,
        ranks: str = "",
    ) -> None:
        """Show how the run stands; without a terminal at most every few seconds, but always at the end.

        Args:
            nimg: Images shown.
            where: The recipe's own words.
            speed: Since the last time.
            memory: Bytes in use.
            losses: Means since the last time.
            skipped: Corrupt samples so far.
            ranks: How far apart the processes are, in words.
        """
        self._details = self._line(nimg, speed, memory, losses)
        if skipped:
            self._details += f" | {skipped} corrupt samples skipped"
        if ranks:
            self._details += f" | {ranks}"
        self._last_refresh = 0.0
        self.advance(nimg, where)
        if self._live is None and (time.monotonic() - self._last_line >= PLAIN_EVERY or nimg >= self._total):
            self._last_line = time.monotonic()
            say(f"{nimg / 1000:.1f}/{self._total / 1000:g} kimg | {where} | {self._details}")

    def _line(self, nimg: int, speed: Speed, memory: float, losses: dict[str, float]) -> str:
        left = max(0, self._total - nimg) / 1000 * speed.seconds_per_kimg
        return " | ".join(
            (
                f"{speed.images_per_second:.1f} img/s {speed.seconds_per_kimg:.1f} s/kimg",
                f"ETA {_duration(left)} at this speed",
                f"data wait {speed.data_wait:.1%}",
                f"{memory / 2**30:.1f} GiB",
                " ".join(f"{name} {value:.3g}" for name, value in losses.items()),
            )
        )


def _duration(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}h" if days else f"{hours}h {minutes:02}m" if hours else f"{minutes}m {whole:02}s"
