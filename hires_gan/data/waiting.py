"""Waiting that can be given up: whoever waits for data looks again and again whether the data are still wanted."""

from __future__ import annotations

import time
from collections.abc import Callable

SLICE = 0.2
"""Seconds between two looks."""
STALL = 60.0
"""Seconds without a byte after which a connection, or a command, counts as failed."""
Asked = Callable[[], bool]
"""Whether somebody wants it to stop: asked again and again while something takes long."""


class Stopped(Exception):  # noqa: N818 - it is no error: somebody has asked for it
    """The wait was given up, since nobody wants the data any more; nothing of them was used."""


def never() -> bool:
    """For those who wait to the end."""
    return False


class Deadline:
    """The end of a wait in slices.

    Args:
        seconds: How long it may take in all.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self._end

    @property
    def slice(self) -> float:
        """Seconds to wait now, before the next look."""
        return min(SLICE, max(0.0, self._end - time.monotonic()))
