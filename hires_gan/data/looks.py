"""What the images of a shard look like: their checksums, sides and faults; those of a huge shard seen by many cores."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from hires_gan.data.manifest import INDEX_ROW, index_name
from hires_gan.data.pool import in_order
from hires_gan.errors import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST = 64
"""Samples of a part of a shard: fewer are not worth a job."""
_PARTS = 4  # per process, so that all end at about one time


class Look(NamedTuple):
    """What was found out about the bytes of one image file."""

    crc32: int
    """Of the file."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""
    fault: str = ""
    """Why it cannot be decoded; then it has no sides."""


Looks: TypeAlias = "Mapping[tuple[int, int], Look]"
"""By place in the tar: the offset and the size of the file."""


class Part(NamedTuple):
    """Some rows of the index of a shard."""

    tar: str
    """The name of the file to read."""
    shard: str
    """The name of the shard whose index says where the images are."""
    rows: range
    """Of the index."""


def look(data: bytes) -> Look:
    """Look at one image file, whatever it holds."""
    # this imports torch, which takes seconds that a command with processes of its own need not wait for
    from hires_gan.data.decoders import decode

    crc32 = zlib.crc32(data)
    try:
        height, width = decode(data).shape[:2]
    except Failure as failure:
        return Look(crc32, 0, 0, str(failure))
    return Look(crc32, height, width)


def look_at_huge(
    folder: Path,
    shards: Sequence[tuple[str, str]],
    columns: int,
    processes: int,
    advance: Callable[[int], None] = lambda samples: None,
) -> dict[str, dict[tuple[int, int], Look]]:
    """Look, in several processes, at the images of those shards that are too large to be one process's work.

    The indexes only say where it is worth to look: a wrong one costs time, and nothing else.

    Args:
        folder: The shard folder.
        shards: The names of the tars to read and, beside each, of the shard whose index tells where the images are.
        columns: How many each sample has.
        processes: How many.
        advance: Is told how many samples were looked at.

    Returns:
        What was seen in each of the huge shards, by the name of its index's shard.

    Raises:
        Failure: A worker was killed.
    """
    parts = parts_of([(tar, shard, _rows(folder, shard, columns)) for tar, shard in shards], processes)
    found: dict[str, dict[tuple[int, int], Look]] = {part.shard: {} for part in parts}
    job = functools.partial(look_at_part, folder, columns)
    with contextlib.closing(in_decoders(job, parts, min(processes, len(parts)))) as results:
        for part, seen in zip(parts, results, strict=True):
            found[part.shard].update(seen)
            advance(len(part.rows))
    return found


def in_decoders(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Generator[Result, None, None]:
    """Apply a function that decodes to items, in the order of the items; see `pool.in_order`."""
    return in_order(function, items, processes, "--workers", ["hires_gan.data.decoders"], _use_one_core)


def _use_one_core() -> None:
    import torch

    torch.set_num_threads(1)


def parts_of(shards: Sequence[tuple[str, str, int]], processes: int) -> list[Part]:
    """Cut up the shards that are more than half of what each process has to do.

    Args:
        shards: The tar, the shard whose index it has, and its number of samples.
        processes: How many there are.
    """
    if processes <= 1:
        return []
    fair = -(-sum(samples for _, _, samples in shards) // processes)
    step = max(FEWEST, fair // _PARTS)
    return [
        Part(tar, shard, range(first, min(first + step, samples)))
        for tar, shard, samples in shards
        if samples > max(FEWEST, fair // 2)
        for first in range(0, samples, step)
    ]


def look_at_part(folder: Path, columns: int, part: Part) -> dict[tuple[int, int], Look]:
    """Look at the images of some rows; what cannot be read is not looked at, and so left to the scan of the shard."""
    seen: dict[tuple[int, int], Look] = {}
    count, offset = len(part.rows) * columns, part.rows.start * columns * INDEX_ROW.itemsize
    with contextlib.suppress(OSError):
        cells = np.fromfile(folder / index_name(part.shard), INDEX_ROW, count=count, offset=offset)
        with (folder / part.tar).open("rb") as file:
            length = file.seek(0, 2)
            for cell in cells:
                place = int(cell["offset"]), int(cell["size"])
                if sum(place) <= length:
                    file.seek(place[0])
                    seen[place] = look(file.read(place[1]))
    return seen


def _rows(folder: Path, shard: str, columns: int) -> int:
    try:
        return (folder / index_name(shard)).stat().st_size // (columns * INDEX_ROW.itemsize)
    except OSError:
        return 0
