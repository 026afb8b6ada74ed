"""Work that nothing can interrupt, such as one long call of a library: another thread does it, and it can be left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from hires_gan.data.waiting import SLICE, Asked, Stopped

T = TypeVar("T")


def beside(work: Callable[[], T], stopped: Asked) -> T:
    """Let another thread do something, and ask meanwhile whether to stop.

    Args:
        work: What is to be done. Once nobody waits for it any more it goes on, until it or the process ends.
        stopped: Asked every `SLICE` seconds, by the thread that calls.

    Returns:
        What the work gives; what it raises is raised here.

    Raises:
        Stopped: If `stopped` became true before the work was done.
    """
    done: Future[T] = Future()
    threading.Thread(target=_fulfil, args=(done, work), name="beside", daemon=True).start()
    while not wait([done], SLICE).done:
        if stopped():
            raise Stopped
    return done.result()


def _fulfil(done: Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # for the one who waits
        done.set_exception(error)
