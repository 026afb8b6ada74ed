"""SIGTERM and SIGINT as a request to stop at the next step boundary."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """While it is entered, SIGTERM and SIGINT set `wanted` instead of ending the process.

    A second signal changes nothing: the checkpoint is being written already.

    Args:
        alone: Whether there is no other process, with which to agree on the step.

    Attributes:
        wanted: The name of the first signal that came to this process, or None.
    """

    def __init__(self, alone: bool = True) -> None:
        self.wanted: str | None = None
        self._alone, self._agreed = alone, False
        self._before: dict[int, Any] = {}

    @property
    def agreed(self) -> bool:
        """Whether to stop at the next step boundary."""
        return self.wanted is not None if self._alone else self._agreed

    def agree(self, anywhere: bool) -> None:
        """All processes have told whether a signal came to them."""
        self._agreed = self._agreed or anywhere

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is None:
            self.wanted = signal.Signals(number).name
            # Written past all buffers: the handler may have interrupted somebody who is writing.
            os.write(2, f"{self.wanted} received: finishing the step, then writing a checkpoint\n".encode())
