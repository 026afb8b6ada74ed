"""A process that fetches the shards of a streamed set before they are needed."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

from hires_gan.data.shard_cache import ShardCache
from hires_gan.data.shards import ShardSet
from hires_gan.data.workers import leave_signals_to_parent, server, stop_signals_blocked
from hires_gan.errors import Failure

_GRACE = 5.0
"""Seconds that the process gets to end by itself."""


class ShardFetcher:
    """Fetches shards into the cache, several at once, the most urgent first; ends with its parent.

    Args:
        shards: A streamed set.
        downloads: How many at once.
    """

    def __init__(self, shards: ShardSet, downloads: int) -> None:
        assert shards.cache is not None
        context = server()
        self._failure: Failure | None = None
        with stop_signals_blocked():
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=fetch, args=(shards.cache, downloads, theirs), name="fetch", daemon=True
            )
            self._process.start()
            theirs.close()
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    def want(self, numbers: Sequence[int]) -> None:
        """Say which shards are needed next, the most urgent first; what was wanted before and is not begun is dropped.

        Raises:
            Failure: As `check`.
        """
        self.check()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(list(numbers))
            return
        self.check()

    def check(self) -> None:
        """Make sure that it is at work.

        Raises:
            Failure: A shard cannot be fetched, or the process died.
        """
        if self._failure is None:
            self._failure = self._look()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End it, downloads and all."""
        atexit.unregister(self.close)
        self._pipe.close()
        self._process.join(_GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _look(self) -> Failure | None:
        with contextlib.suppress(EOFError, ConnectionResetError):
            if not self._pipe.poll():
                return None
            return Failure(self._pipe.recv())
        self._process.join(_GRACE)
        code = self._process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else "ended"
        return Failure(
            f"the process that fetches shards (process {self._process.pid}) {how}; its own message, if it had one, "
            "stands above; the same command goes on from the latest checkpoint"
        )


def fetch(cache: ShardCache, downloads: int, pipe: Connection) -> None:
    """The process's life: threads fetch what is wanted, until the parent has ended or a shard cannot be fetched."""
    leave_signals_to_parent()
    wanted = _Wanted()
    for number in range(downloads):
        threading.Thread(target=_keep_fetching, args=(cache, wanted, pipe), name=f"fetch-{number}", daemon=True).start()
    while True:
        try:
            numbers = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)  # the threads may be anywhere; what they leave half done is cleared away by the next
        numbers = cache.fitting(numbers)  # of what is there, nothing may be dropped for what comes behind it
        for number in reversed(numbers):
            cache.touch(number)
        wanted.replace([number for number in numbers if not cache.has(number)])


class _Wanted:
    """The list of what is wanted, from which the threads take.

    Attributes:
        last_word: Held by the one thread that says why the process ends.
    """

    def __init__(self) -> None:
        self.last_word = threading.Lock()
        self._numbers: list[int] = []
        self._taken: set[int] = set()
        self._changed = threading.Condition()

    def replace(self, numbers: Sequence[int]) -> None:
        """Forget the old list."""
        with self._changed:
            self._numbers = [number for number in numbers if number not in self._taken]
            self._changed.notify_all()

    def take(self) -> int:
        """The most urgent one; waits for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._numbers)
            number = self._numbers.pop(0)
            self._taken.add(number)
            return number

    def done(self, number: int) -> None:
        """It is there."""
        with self._changed:
            self._taken.discard(number)


def _keep_fetching(cache: ShardCache, wanted: _Wanted, pipe: Connection) -> None:
    while True:
        number = wanted.take()
        try:
            cache.ensure(number)
        except Failure as failure:
            with wanted.last_word, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                pipe.send(str(failure))
                os._exit(1)
        wanted.done(number)
