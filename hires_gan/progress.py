"""One progress bar for everything long: drawn on a terminal, plain lines at most every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where people read: progress, notes and errors go to standard error, results to standard output."""


def say(message: str) -> None:
    """Print one line for people, as it is (square brackets are not markup)."""
    console.print(message, markup=False)


class ProgressBar:
    """Counts `total` units of work and shows how far, how fast and how long still.

    Args:
        title: What is being done, in a word or two.
        total: How many units there are; None if that is not known.
        unit: What one unit is called, in the plural.
        every: Seconds between two plain lines where there is no terminal.
        lasting: Whether it stays on the screen, or as a last plain line, when all is done.
    """

    def __init__(
        self, title: str, total: int | None, unit: str = "images", every: float = 10.0, lasting: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.every, self.lasting = title, total, unit, every, lasting
        self.done = 0
        self._start = self._last_line = time.monotonic()
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
                transient=not lasting,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.lasting:
            self._line()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count `count` more units; `note` replaces the rate as the text behind the bar."""
        self.done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=note or f"{self.rate:.1f} {self.unit}/s")
        elif time.monotonic() - self._last_line >= self.every:
            self._line(note)

    def _line(self, note: str | None = None) -> None:
        self._last_line = time.monotonic()
        of = f"/{self.total}" if self.total is not None else ""
        say(f"{self.title}: {self.done}{of} {self.unit}, {note or f'{self.rate:.1f} {self.unit}/s'}")
