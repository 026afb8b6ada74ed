"""Threads that read and keep no process from ending: at its end Python waits for those of a ThreadPoolExecutor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadingThreads(Generic[T]):
    """Threads that read; whatever one of them waits for, it keeps no process from ending.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = queue.SimpleQueue()
        self._count, self._closed = count, False
        for number in range(count):
            threading.Thread(target=self._work, name=f"read-{number}", daemon=True).start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Read behind what was asked for before."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """Cancel what is not begun, and end each thread once it is done with what it is at."""
        self._closed = True
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while (order := self._jobs.get()) is not None:
            future, job = order
            if self._closed:
                future.cancel()
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
