"""Trying again what may pass, at growing distances, until the patience is over."""

from __future__ import annotations

import os
import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import TypeVar

from hires_gan.data.store_errors import Disagrees, Passing
from hires_gan.data.waiting import SLICE
from hires_gan.errors import Failure
from hires_gan.progress import say

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_DISAGREEMENTS = 3
"""How often a file may arrive otherwise than the manifest says before it is believed to be so."""
_WORTH_SAYING = 5.0
"""Seconds that something was away, from which on its return is told."""

T = TypeVar("T")


class _Voice:
    """Many threads that wait for one store say what happens once, and not each for itself."""

    def __init__(self) -> None:
        self._lock, self._until = threading.Lock(), 0.0

    def say(self, message: str, silence: float) -> None:
        """Say something, unless something was said that asked for silence until later."""
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                return
            self._until = now + silence
        say(message)


_VOICE = _Voice()


def persist(
    attempt: Callable[[], T], address: str, patience: float, alive: Callable[[], None], since: float | None = None
) -> T:
    """Try something until it succeeds.

    Args:
        attempt: What is tried; raises `Passing` for what may pass.
        address: What it is about, for people.
        patience: Seconds of failed attempts after which it is given up.
        alive: Called often while this waits.
        since: When it was first found not to work (monotonic time); None: it was not yet.

    Raises:
        Failure: It did not succeed within the patience, or arrived otherwise than the manifest says too often.
    """
    step, disagreements = _FIRST_PAUSE, 0
    while True:
        start, pause = time.monotonic(), step * _jitter(f"{address} {step}")
        try:
            result = attempt()
        except Passing as error:
            since = start if since is None else since
            disagreements += isinstance(error, Disagrees)
            if disagreements == _DISAGREEMENTS:
                raise _disagreement(address, error) from None
            tried = time.monotonic() - since
            if tried + pause > patience:
                raise _given_up(address, tried, error) from None
            _VOICE.say(f"{address} could not be read ({error}); trying again in {pause:.2g} s", pause)
        else:
            if since is not None and start - since >= _WORTH_SAYING:
                _VOICE.say(f"{address} could be read after {start - since:.0f} s", 1.0)
            return result
        _wait(pause, alive)
        step = min(2 * step, _LONGEST_PAUSE)


def _jitter(attempt: str) -> float:
    """A factor from 0.75 to 1.25, another one in each process: many that fail together do not come back together."""
    return 0.75 + zlib.crc32(f"{socket.gethostname()} {os.getpid()} {attempt}".encode()) / 2**33


def _wait(seconds: float, alive: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        alive()
        time.sleep(min(left, SLICE))


def _disagreement(address: str, error: Exception) -> Failure:
    return Failure(
        f"{address} was fetched {_DISAGREEMENTS} times, and {error}: the manifest disagrees with its shards; upload "
        "the set again, manifest.json last"
    )


def _given_up(address: str, seconds: float, error: Exception) -> Failure:
    return Failure(
        f"{address} could not be read for {seconds:.0f} s; the last error: {error}; look at the store and the way to "
        "it, or raise data.stream.patience; the same command then goes on from the latest checkpoint"
    )
