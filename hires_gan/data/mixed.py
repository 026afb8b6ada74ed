"""A look at a few images before a run: whether a set is of one size, and of the one that its manifest says.

In training an image of another size counts as corrupt, and is skipped. A set that was put together from two would so
lose half of its images before `data.max_corrupt` stops the run, or be trained without them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hires_gan.data.headers import sides_of
from hires_gan.data.manifest import Manifest, side
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure

_SHARDS = 32
"""Of so many shards at most are images looked at: of the first, the last, and those evenly between."""
_SECONDS = 2.0
"""The longest that this goes on; on a slow file system fewer images are looked at."""
_START = 1 << 14
"""Bytes of a file in which its sides stand, as a rule."""


class _Seen(NamedTuple):
    """An image that was looked at."""

    row: int
    column: str
    sides: tuple[int, int]


def refuse_mixed(shards: ShardSet) -> None:
    """Make sure that a few images from all over a set in a folder have the sides that its manifest says.

    The headers of the first, the last and the middle sample of at most 32 shards are read, for two seconds at most;
    `hires-gan shards check` looks at every image. What cannot be read is left to those who read it all.

    Args:
        shards: The set.

    Raises:
        Failure: Some have other sides; names two samples.
    """
    seen = list(_looked_at(shards))
    wrong = next((one for one in seen if not _fits(one, shards) and _is_sound(one, shards)), None)
    if wrong is not None:
        raise _mixed(shards, wrong, seen)


def _looked_at(shards: ShardSet) -> Iterator[_Seen]:
    end = time.monotonic() + _SECONDS
    for row, column in itertools.product(rows_to_look_at(shards.manifest), shards.manifest.columns):
        if (sides := _sides(shards, row, column)) is not None:
            yield _Seen(row, column, sides)
        if time.monotonic() > end:
            return


def rows_to_look_at(manifest: Manifest) -> list[int]:
    """Rows from all over a set: the first of each shard, then the last and the middle ones; of 32 shards at most."""
    starts = list(itertools.accumulate((shard.samples for shard in manifest.shards), initial=0))
    count = len(manifest.shards)
    few = min(count, _SHARDS)
    chosen = [place * (count - 1) // max(1, few - 1) for place in range(few)]
    firsts, lasts = [starts[shard] for shard in chosen], [starts[shard + 1] - 1 for shard in chosen]
    middles = [(first + last) // 2 for first, last in zip(firsts, lasts, strict=True)]
    return list(dict.fromkeys(firsts + lasts + middles))


def _sides(shards: ShardSet, row: int, column: str) -> tuple[int, int] | None:
    try:
        start = shards.read_start(row, column, _START)
        return sides_of(start) or (sides_of(shards.read(row, column)) if len(start) == _START else None)
    except (Failure, OSError, OverflowError):
        return None


def _fits(one: _Seen, shards: ShardSet) -> bool:
    wanted = side(one.column, shards.resolution)
    return one.sides == (wanted, wanted)


def _is_sound(one: _Seen, shards: ShardSet) -> bool:
    """Whether the bytes are those that were written: else the sample is corrupt, and its size means nothing."""
    try:
        return sides_of(shards.read(one.row, one.column)) == one.sides
    except (Failure, OSError, OverflowError):
        return False


def _mixed(shards: ShardSet, wrong: _Seen, seen: Sequence[_Seen]) -> Failure:
    wanted = side(wrong.column, shards.resolution)
    of_column = [one for one in seen if one.column == wrong.column and one.row != wrong.row]
    other = next((one for one in of_column if one.sides != wrong.sides), next(iter(of_column), None))
    beside = "" if other is None else f", and {_shown(shards, other)}"
    folder = shards.folder
    if other is None or other.sides == wrong.sides:
        what = f"{folder} does not hold what its manifest says"
        mend = f"prepare the images again at one --resolution (`hires-gan shards check {folder}` names all that differ)"
    else:
        what = f"{folder} holds images of different sizes"
        mend = (
            f"drop those that differ with `hires-gan shards check --repair {folder}`, or prepare the images again at "
            "one --resolution"
        )
    return Failure(f"{what}: {_shown(shards, wrong)}{beside}, where {wanted}x{wanted} must stand: {mend}")


def _shown(shards: ShardSet, one: _Seen) -> str:
    height, width = one.sides
    place = shards.locate(one.row, one.column).path.name
    return f"sample {shards.key_of(one.row)} in {place}, column '{one.column}', has {width}x{height} pixels"
