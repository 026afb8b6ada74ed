"""Converting images in worker processes: ordered results, a bounded number in flight, and no orphans."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from hires_gan.data.archives import Reference, read_bytes
from hires_gan.data.orphans import end_with_parent
from hires_gan.data.pictures import PictureOptions, samples
from hires_gan.data.rejection import Rejected
from hires_gan.data.writer import Encoded
from hires_gan.errors import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # jobs in flight per process: enough that none waits for the parent's writing


@dataclass(frozen=True)
class Converted:
    """What became of one image file."""

    samples: tuple[dict[str, Encoded], ...]
    """One, or one per tile; none if it was rejected."""
    counts: Counter[str]
    """Everything noteworthy that was done."""
    rejected: str | None = None
    """Why it cannot be used."""


def convert(options: PictureOptions, reference: Reference) -> Converted:
    """Read one image and make its samples."""
    counts: Counter[str] = Counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on odd metadata, which nothing here uses
            made = tuple(samples(read_bytes(reference), options, counts))
    except Rejected as reason:
        return Converted((), Counter(), str(reason))
    return Converted(made, +counts)


class Workers(Generic[Item, Result]):
    """A pool of processes that applies one function.

    Args:
        function: What to apply; it and its arguments can be pickled.
        processes: How many; 1 works in this process.

    Raises:
        Failure: A worker was killed, or there is not enough memory.
    """

    def __init__(self, function: Callable[[Item], Result], processes: int) -> None:
        self.function, self.processes = function, processes

    def map(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        """Yield the results in the order of the items, working a bounded distance ahead."""
        try:
            yield from map(self.function, items) if self.processes == 1 else self._map(iter(items))
        except BrokenProcessPool:
            raise Failure(
                "a worker process was killed while it converted images, probably because memory ran out: run the same "
                "command again to continue, with fewer --processes"
            ) from None
        except MemoryError:
            raise Failure(
                "there is not enough memory to convert an image: run the same command again to continue, with fewer "
                "--processes or a smaller --max-pixels"
            ) from None

    def _map(self, items: Iterator[Item]) -> Iterator[Result]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        pool = ProcessPoolExecutor(self.processes, context, initializer=end_with_parent)
        try:
            running: deque[Future[Result]] = deque()
            for item in itertools.islice(items, self.processes * _AHEAD):
                running.append(pool.submit(self.function, item))
            while running:
                result = running.popleft().result()
                for item in itertools.islice(items, 1):
                    running.append(pool.submit(self.function, item))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def image_workers(options: PictureOptions, processes: int) -> Workers[Reference, Converted]:
    """Return workers that convert images."""
    return Workers(functools.partial(convert, options), processes)
