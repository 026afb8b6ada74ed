"""SIGTERM and SIGINT as a request to stop at the next step boundary."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

from hires_gan.progress import say
from hires_gan.training.activity import progressing


class StopRequest:
    """While it is entered, SIGTERM and SIGINT set `wanted` instead of ending the process.

    A second signal changes nothing: the checkpoint is being written already.

    Args:
        alone: Whether there is no other process, with which to agree on the step.

    Attributes:
        wanted: The name of the first signal that came to this process, or None.
        name: The name of the first signal that came to any process and was heard of here; None until then.
        since: When that was, by `time.monotonic`; None until then.
    """

    def __init__(self, alone: bool = True) -> None:
        self.wanted: str | None = None
        self.name: str | None = None
        self.since: float | None = None
        self._alone, self._agreed = alone, False
        self._before: dict[int, Any] = {}
        self._received = itertools.count()
        self._read = self._write = self._wakeup = -1

    @property
    def agreed(self) -> bool:
        """Whether to stop at the next step boundary."""
        return self.wanted is not None if self._alone else self._agreed

    def agree(self, anywhere: bool) -> None:
        """All processes have told whether a signal came to them."""
        self._agreed = self._agreed or anywhere

    @property
    def heard(self) -> bool:
        """Whether a signal came to this process, or to another one that has told of it.

        Unlike `agreed`, this differs between processes for a moment: good for leaving something long that this one
        does by itself, and for nothing in which the others take part.
        """
        return self.name is not None

    def hear(self, rank: int, name: str) -> None:
        """A signal came to another process."""
        if not self.heard:
            self._note(name)
            say(f"{name} received by rank {rank}: finishing the step, then writing a checkpoint")

    def interrupted(self) -> bool:
        """Whether to leave something long unfinished; asking, again and again, counts as progress."""
        progressing()
        return self.heard

    def listen(self) -> None:
        """Take signals whose handlers could not run yet; called again and again from another thread.

        Handlers run in the main thread, between two lines of Python: not while it waits for another process in native
        code, maybe for hours.
        """
        if self._read >= 0:
            with contextlib.suppress(BlockingIOError):
                for number in os.read(self._read, 64):
                    if number in self._before:
                        self._receive(number)

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        os.close(self._read)
        self._read = self._write = -1

    def _receive(self, number: int, frame: FrameType | None = None) -> None:
        if next(self._received):  # one step, for the handler and `listen` may both be here
            return
        self.wanted = signal.Signals(number).name
        if not self.heard:
            self._note(self.wanted)
        # Written past all buffers: the handler may have interrupted somebody who is writing.
        os.write(2, f"{self.wanted} received: finishing the step, then writing a checkpoint\n".encode())

    def _note(self, name: str) -> None:
        self.since = time.monotonic()  # before the name: who sees that one looks for the time
        self.name = name


# A process that is forked from this one shall not tell it of the signals that it gets itself.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
