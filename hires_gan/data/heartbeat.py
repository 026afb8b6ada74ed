"""Signs of life while a process waits for bytes that are on their way: a slow store is not taken for a hang."""

from __future__ import annotations

from collections.abc import Callable


def nobody(*said: object) -> None:
    """Listens, and does nothing: whoever tells of what goes on has to tell somebody."""


class Heartbeat:
    """Beats wherever something goes on that the one who waits for an image cannot see.

    Attributes:
        beats: How many there have been in this process.
    """

    def __init__(self) -> None:
        self.beats = 0
        self._listener: Callable[[], None] = nobody

    def beat(self) -> None:
        """Something goes on."""
        self.beats += 1
        self._listener()

    def tell(self, listener: Callable[[], None]) -> None:
        """Call somebody at every beat from now on."""
        self._listener = listener


HEART = Heartbeat()
"""This process's."""
