"""The tar of a shard from header to header: also past damaged ones, wherever the next can be known to lie."""

from __future__ import annotations

import bisect
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
_KEY = re.compile(r"\d{9,}", re.ASCII)


class Member(NamedTuple):
    """One file in a tar."""

    name: str
    """As its header says."""
    offset: int
    """First byte of the data; the header is the block before."""
    size: int
    """Of the data in bytes."""

    @property
    def key(self) -> str:
        """The stem of the name, which all files of a sample share."""
        return self.name.partition(".")[0]

    @property
    def ending(self) -> str:
        """What follows the key: `jpg`, `64.png`, `cls`."""
        return self.name.partition(".")[2]

    @property
    def end(self) -> int:
        """The first byte behind the data and its padding."""
        return self.offset + padded(self.size)


class Damage(NamedTuple):
    """A place where a tar cannot be followed."""

    offset: int
    """In bytes."""
    reason: str
    """What is wrong there."""


def padded(size: int) -> int:
    """Return what a file of this many bytes takes in a tar, without its header."""
    return -(-size // BLOCK) * BLOCK


def is_key(text: str) -> bool:
    """Tell whether this is the key of a sample: a number of at least nine digits."""
    return _KEY.fullmatch(text) is not None


def parse_header(block: bytes, offset: int) -> Member | Damage:
    """Read the header block of a member.

    Args:
        block: 512 bytes.
        offset: Where they lie in the tar.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return Damage(offset, f"no header of a file ({error})")
    if not info.isreg() or info.size < 0:
        return Damage(offset, f"{info.name!r} is no plain file")
    return Member(info.name, offset + BLOCK, info.size)


def walk(read: Callable[[int, int], bytes], length: int, starts: Sequence[int]) -> Iterator[Member | Damage]:
    """Follow a tar from its first byte to its end.

    Args:
        read: Gives bytes by (offset, size), fewer only at the end of the file.
        length: Of the file.
        starts: Where headers are known to lie, ascending: behind a damaged one, the walk goes on at the next of these.

    Yields:
        The members in their order, and the damage between them.
    """
    position: int | None = 0
    while position is not None and position < length:
        block = read(position, BLOCK)
        later = bisect.bisect_right(starts, position)
        following = starts[later] if later < len(starts) else None
        if len(block) == BLOCK and not any(block):  # the mark of the end
            if not starts or starts[-1] < position:
                return
            found: Member | Damage = Damage(position, "the end of the tar, but its index knows files behind it")
        else:
            found = parse_header(block, position)
        if isinstance(found, Member) and found.end > length:
            found = Damage(position, f"{found.name!r} should end at byte {found.end}, behind the end of the file")
        yield found
        position = found.end if isinstance(found, Member) else following
    if position is not None:
        yield Damage(length, "the file ends without the mark of its end: it was cut short")
