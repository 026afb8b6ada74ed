"""Small sets for the tests of streaming, and what is asked of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from input_definition import noise_files, write_shards
from shard_server import ShardServer

from hires_gan.data.manifest import sizes_of
from hires_gan.data.opening import open_shards
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_settings import StreamSettings


@dataclass(frozen=True)
class Images:
    """Images of noise with labels, in shards of `each`."""

    count: int
    each: int = 5
    side: int = 16

    @cached_property
    def files(self) -> list[bytes]:
        return noise_files(self.count, self.side)

    @property
    def labels(self) -> list[int]:
        return [row % 3 for row in range(self.count)]

    def write(self, folder: Path) -> Path:
        return write_shards(folder, self.files, self.side, self.labels, per_shard=self.each)

    def is_whole(self, shards: ShardSet) -> bool:
        """Whether a set holds these images, with their labels."""
        read = [shards.read(row) for row in range(len(shards))] == self.files
        return read and [shards.label(row) for row in range(len(shards))] == self.labels


UNEVEN = Images(24)
"""In five shards, the last one of four images."""
EQUAL = Images(40)
"""In eight shards of equal size."""


def shard_bytes(server: ShardServer) -> int:
    """What each of the shards takes, all its files together."""
    manifest = ShardSet(server.served).manifest
    sizes = {sum(sizes_of(manifest, shard).values()) for shard in manifest.shards}
    assert len(sizes) == 1
    return sizes.pop()


def opened(server: ShardServer, cache: Path, shards: float | None = None, **settings: object) -> ShardSet:
    """The set, with room for so many shards."""
    bound = 1.0 if shards is None else shards * shard_bytes(server) / 1e9
    return open_shards(server.url, StreamSettings(cache=cache, cache_gb=bound, patience=20, **settings))


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def when(condition: Callable[[], bool], action: Callable[[], None], most: float = 60.0) -> threading.Thread:
    """Do something in a thread, once something is so; not at all if it is not within so many seconds."""

    def wait() -> None:
        end = time.monotonic() + most
        while not (so := condition()) and time.monotonic() < end:
            time.sleep(0.01)
        if so:
            action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
