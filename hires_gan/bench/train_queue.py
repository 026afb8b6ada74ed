"""Batches that are decoded ahead, and how to begin without them: what was decoded before is not timed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from hires_gan.bench.train_images import Supply, supply
from hires_gan.bench.train_steps import Stand
from hires_gan.recipes.protocol import Batch


class Numbers:
    """The numbers of the steps' first samples, and how many of them have been asked for: real images are, ahead.

    Args:
        starts: The numbers.
    """

    def __init__(self, starts: Iterator[int]) -> None:
        self._starts, self.asked = starts, 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.asked += 1
        return next(self._starts)


class Queue:
    """A supply that knows how many batches it holds.

    Args:
        feed: What gives the batches.
        numbers: What it is asked for.
    """

    def __init__(self, feed: Supply, numbers: Numbers) -> None:
        self._feed, self._numbers, self._taken = feed, numbers, 0

    @property
    def waited(self) -> float:
        """As that of the feed."""
        return self._feed.waited

    def take(self) -> Batch:
        """The next batch."""
        batch = self._feed.take()
        self._taken += 1
        return batch

    def copy_ahead(self) -> None:
        """Start to copy the next batch to a GPU."""
        self._feed.copy_ahead()

    def lost(self) -> float:
        """Seconds that steps have lost to data so far."""
        return self._feed.lost()

    def drop(self) -> int:
        """Take all batches that have been asked for, and train on none of them; their number, 0 of synthetic ones."""
        count = max(0, self._numbers.asked - self._taken)
        for _ in range(count):
            self.take()
        return count


@contextmanager
def queued(stand: Stand) -> Iterator[Queue]:
    """Batches for the steps that a stand has still to make."""
    numbers = Numbers(map(stand.place.at, itertools.count(stand.steps)))
    with supply(stand.plan, stand.images, stand.place.stage, numbers, stand.device) as feed:
        yield Queue(feed, numbers)


def begin_anew(stand: Stand, feed: Queue) -> None:
    """Drop what was decoded ahead, and make one step more: it is the one that waits for a first batch.

    Behind it, steps that are faster than a loader of one process wait for each batch, and slower ones for none, as in a
    long run. Several processes decode their first batches at once, which are there at once: take steps enough.
    """
    if feed.drop():
        stand.step(feed)
