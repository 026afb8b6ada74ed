"""A look at a few images before a run: whether a set is of one size, and of the one that its manifest says.

In training an image of another size counts as corrupt, and is skipped. A set that was put together from two would so
lose half of its images before `data.max_corrupt` stops the run, or be trained without them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from hires_gan.data.domains import Domains, Source
from hires_gan.data.headers import sides_of
from hires_gan.data.manifest import Manifest, side
from hires_gan.data.replacement import allowed_rows
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure
from hires_gan.progress import say

SHARDS_LOOKED_AT = 32
"""Of so many shards at most are images looked at: of the first, the last, and those evenly between."""
SECONDS = 2.0
"""The longest that this goes on for a set; on a slow file system fewer images are looked at."""
_START = 1 << 14
"""Bytes of a file in which its sides stand, as a rule."""


class _Seen(NamedTuple):
    """An image that was looked at; it is wrong if it is sound and has other sides than the manifest says."""

    row: int
    column: str
    sides: tuple[int, int]
    wrong: bool


def refuse_mixed(data: Domains, resolutions: Collection[int], max_corrupt: float, goes_on: bool) -> None:
    """Look whether a few images from all over each set in a folder have the sides that its manifest says.

    The headers of the first, the last and the middle sample of at most 32 shards are read, for two seconds at most;
    `hires-gan shards check` looks at every image. What cannot be read is left to those who read it all. Wrong sides are
    said; they end a new run where a stage reads them and there are more than are allowed among those looked at.

    Args:
        data: The sets; streamed ones are not looked at, since whole shards would be fetched for it.
        resolutions: Those of the run's stages, in pixels.
        max_corrupt: The share of a set's samples that may be corrupt, 0 to 1.
        goes_on: Whether the run goes on from a checkpoint: it is never refused, as it may have met these samples.

    Raises:
        Failure: Too many have other sides; names two samples.
    """
    for source in data.sources:
        if not source.shards.streamed:
            _refuse_source(source, data, resolutions, max_corrupt, goes_on)


def _refuse_source(
    source: Source, data: Domains, resolutions: Collection[int], max_corrupt: float, goes_on: bool
) -> None:
    shards = source.shards
    read = list(dict.fromkeys(name for resolution in sorted(resolutions) for name in source.stored(resolution)[0]))
    rest = [column for column in shards.manifest.columns if column not in read]
    seen = list(_looked_at(shards, read, rest))
    of_domain = f"data.domains.{source.domains[0]}: " if len(data.sources) > 1 else ""
    unread = next((one for one in seen if one.wrong and one.column in rest), None)
    if unread is not None:
        say(f"{of_domain}{_told(shards, unread, seen)}; no stage of this run reads that column")
    wrong = next((one for one in seen if one.wrong and one.column in read), None)
    if wrong is None:
        return
    looked_at = {one.row for one in seen if one.column in read}
    count = len({one.row for one in seen if one.wrong and one.column in read})
    found = f"{of_domain}{_told(shards, wrong, seen)} ({count} of {len(looked_at)} samples looked at are wrong)"
    if count > allowed_rows(max_corrupt, len(looked_at)) and not goes_on:
        raise Failure(f"{found}: {_remedy(shards, wrong, seen)}")
    say(f"{found}: they are skipped as corrupt, and data.max_corrupt, {max_corrupt:g}, bounds their share of the set")


def _looked_at(shards: ShardSet, read: Sequence[str], rest: Sequence[str]) -> Iterator[_Seen]:
    """What the run reads first, so that the time is spent on it."""
    end, rows = time.monotonic() + SECONDS, rows_to_look_at(shards.manifest)
    for row, column in itertools.chain(itertools.product(rows, read), itertools.product(rows, rest)):
        if (sides := _sides(shards, row, column)) is not None:
            wanted = side(column, shards.resolution)
            yield _Seen(row, column, sides, sides != (wanted, wanted) and _is_sound(shards, row, column, sides))
        if time.monotonic() > end:
            return


def rows_to_look_at(manifest: Manifest) -> list[int]:
    """Rows from all over a set: the first of each shard, then the last and the middle ones; of 32 shards at most."""
    starts = list(itertools.accumulate((shard.samples for shard in manifest.shards), initial=0))
    count = len(manifest.shards)
    few = min(count, SHARDS_LOOKED_AT)
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


def _is_sound(shards: ShardSet, row: int, column: str, sides: tuple[int, int]) -> bool:
    """Whether the bytes are those that were written: else the sample is corrupt, and its size means nothing."""
    try:
        return sides_of(shards.read(row, column)) == sides
    except (Failure, OSError, OverflowError):
        return False


def _beside(wrong: _Seen, seen: Sequence[_Seen]) -> _Seen | None:
    """Another sample of the same column, of another size if there is one."""
    of_column = [one for one in seen if one.column == wrong.column and one.row != wrong.row]
    return next((one for one in of_column if one.sides != wrong.sides), next(iter(of_column), None))


def _is_mixed(wrong: _Seen, seen: Sequence[_Seen]) -> bool:
    other = _beside(wrong, seen)
    return other is not None and other.sides != wrong.sides


def _told(shards: ShardSet, wrong: _Seen, seen: Sequence[_Seen]) -> str:
    wanted, other = side(wrong.column, shards.resolution), _beside(wrong, seen)
    beside = "" if other is None else f", and {_shown(shards, other)}"
    what = "holds images of different sizes" if _is_mixed(wrong, seen) else "does not hold what its manifest says"
    return f"{shards.folder} {what}: {_shown(shards, wrong)}{beside}, where {wanted}x{wanted} must stand"


def _remedy(shards: ShardSet, wrong: _Seen, seen: Sequence[_Seen]) -> str:
    folder = shards.folder
    if not _is_mixed(wrong, seen):
        return f"prepare the images again at one --resolution (`hires-gan shards check {folder}` names all that differ)"
    return (
        f"drop those that differ with `hires-gan shards check --repair {folder}`, prepare the images again at one "
        "--resolution, or raise data.max_corrupt to train without them"
    )


def _shown(shards: ShardSet, one: _Seen) -> str:
    height, width = one.sides
    place = shards.locate(one.row, one.column).path.name
    return f"sample {shards.key_of(one.row)} in {place}, column '{one.column}', has {width}x{height} pixels"
