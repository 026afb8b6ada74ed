"""A function applied to many things by worker processes: ordered results, a bounded number in flight, no orphans."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from hires_gan.data.orphans import end_with_parent
from hires_gan.errors import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # jobs in flight per process: enough that none waits for what is done with the results here


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    option: str,
    preload: Sequence[str] = (),
    begin: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Apply a function to items in several processes, and yield the results in the order of the items.

    Items are drawn as the work comes to them, a bounded number ahead. Close the generator if it is not exhausted.

    Args:
        function: What to apply; it, the items and the results can be pickled.
        items: What it is applied to.
        processes: How many; 1 works in this process.
        option: What sets their number on the command line.
        preload: Modules that are imported once for all processes; importing them starts no thread.
        begin: Called once in every process before it works.

    Raises:
        Failure: A process was killed.
    """
    try:
        yield from (
            map(function, items) if processes <= 1 else _in_pool(function, iter(items), processes, preload, begin)
        )
    except BrokenProcessPool:
        raise Failure(
            "a worker process was killed, probably because memory ran out: run the same command again, with fewer "
            f"{option} than {processes}"
        ) from None


def _in_pool(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    processes: int,
    preload: Sequence[str],
    begin: Callable[[], None] | None,
) -> Iterator[Result]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    pool = ProcessPoolExecutor(processes, context, initializer=_enter, initargs=(begin,))
    try:
        running: deque[Future[Result]] = deque()
        for item in itertools.islice(items, processes * _AHEAD):
            running.append(pool.submit(function, item))
        while running:
            result = running.popleft().result()
            for item in itertools.islice(items, 1):
                running.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _enter(begin: Callable[[], None] | None) -> None:
    end_with_parent()
    if begin is not None:
        begin()
