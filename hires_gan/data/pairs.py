"""What a sample is made of: one image, or several named ones that belong together, as their paths tell."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

from hires_gan.data.archives import Reference
from hires_gan.data.manifest import IMAGE
from hires_gan.errors import UsageError

Item: TypeAlias = "tuple[Reference | None, ...]"
"""What becomes of one sample (or of its tiles): an image file for each name; None where there is none."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TAKEN = (IMAGE, "cls")
_SHOWN = 3


@dataclass(frozen=True)
class Inputs:
    """The sources of a set, and the names of the pictures in each of its samples."""

    places: tuple[str, ...]
    """Each SRC as the user named it."""
    names: tuple[str, ...] = (IMAGE,)
    """Of the pictures: `image` alone, or two and more."""
    apart: bool = False
    """Whether each picture comes from a source of its own, in the order of the names."""

    @classmethod
    def of(cls, sources: Sequence[str] | Mapping[str, str], columns: Sequence[str] = ()) -> Inputs:
        """Check what was asked for.

        Args:
            sources: Of images; or, by its name, where each picture of a pair comes from.
            columns: The names of the pictures in each sample of the sources, if there are several.

        Raises:
            UsageError: The names cannot be.
        """
        if isinstance(sources, Mapping):
            if columns:
                raise UsageError(
                    f"--columns {','.join(columns)} is for samples of one source: leave it out with --pair"
                )
            _check_names("--pair", tuple(sources))
            return cls(tuple(sources.values()), tuple(sources), apart=True)
        if columns:
            _check_names("--columns", columns)
        return cls(tuple(sources), tuple(columns) or (IMAGE,))

    @property
    def paired(self) -> bool:
        """Whether a sample holds several pictures."""
        return self.names != (IMAGE,)

    @property
    def noun(self) -> str:
        """What the things are called that become samples."""
        return "pairs" if self.paired else "images"


def parse_pairs(options: Iterable[str]) -> dict[str, str]:
    """Read `NAME=SRC` once for every picture of a pair.

    Raises:
        UsageError: One is not of this form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for option in options:
        name, equals, place = option.partition("=")
        if not (name and equals and place):
            raise UsageError(f"--pair {option} is not of the form NAME=SRC, such as --pair a=photos --pair b=maps")
        if name in found:
            raise UsageError(f"--pair names '{name}' twice, {found[name]} and {place}: each name has one source")
        found[name] = place
    return found


def _check_names(option: str, names: Sequence[str]) -> None:
    """Refuse names that cannot be columns; webdataset hides names behind an underscore, and lowers all letters."""
    shown = ", ".join(names)
    if len(names) < 2:
        raise UsageError(f"{option} names only '{shown}': two pictures or more make a pair; single images need no name")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{option} names '{name}': letters, digits and underscores are allowed, a letter first")
        if name in _TAKEN:
            raise UsageError(
                f"{option} names '{name}', which means something else in a shard ({IMAGE}: the one image of a sample, "
                "cls: its label): choose another name"
            )
    if len({name.lower() for name in names}) < len(names):
        raise UsageError(f"{option} names {shown}: all have to differ, by more than capital letters")


def key_of(reference: Reference, endings: frozenset[str]) -> str:
    """Return by what the partners of an image in other sources are found: its path there, without the ending.

    Args:
        reference: To the image.
        endings: Of image files. A name without one is a sample's of a shard set, where only the key counts.
    """
    path = PurePosixPath(reference.name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in endings else path.name


def column_and_key(reference: Reference, names: Sequence[str], endings: frozenset[str]) -> tuple[str, str] | None:
    """Tell which picture of which sample a file is: `x/12.a.jpg` is `a` of `x/12`; None if it is none of these."""
    path = PurePosixPath(reference.name)
    bare = path.with_suffix("") if path.suffix.lower() in endings else path
    name = bare.suffix.removeprefix(".")
    if name not in names:
        return None
    tar = f"{reference.path}/" if reference.offset is not None else ""  # two tars may use the same keys
    return name, tar + bare.with_suffix("").as_posix()


def by_key(keyed: Iterable[tuple[str, Reference]], where: str) -> dict[str, Reference]:
    """Collect images by their keys.

    Raises:
        UsageError: Several have one key, so that nobody knows which of them is meant.
    """
    found: dict[str, Reference] = {}
    again: list[str] = []
    for key, reference in keyed:
        if key in found:
            again.append(f"{found[key].name} and {reference.name}")
        found.setdefault(key, reference)
    if again:
        raise UsageError(
            f"{where}: {some(again)} have one path without their endings, by which pairs are matched: keep one of each"
        )
    return found


def match(halves: Sequence[Mapping[str, Reference]]) -> list[Item]:
    """Join what has the same key: in the order of the first name's images, then those that this one lacks."""
    keys = dict.fromkeys(itertools.chain.from_iterable(halves))
    return [tuple(half.get(key) for half in halves) for key in keys]


def lacking(names: Sequence[str], item: Item) -> str | None:
    """Say what is missing in an item; None if it is whole."""
    missing = [name for name, reference in zip(names, item, strict=True) if reference is None]
    return f"no {' and no '.join(missing)}" if missing else None


def first_of(item: Item) -> Reference:
    """Return the first image of an item, which stands for it where one is to be named."""
    return next(reference for reference in item if reference is not None)


def refuse_unmatched(inputs: Inputs, items: Sequence[Item], share: float) -> None:
    """Refuse pairs that are incomplete, before hours are spent on the others.

    Args:
        inputs: What was asked for.
        items: What was found.
        share: Of all pairs, the most that may be unusable.

    Raises:
        UsageError: More than the share is incomplete, or all.
    """
    broken = [(item, lack) for item in items if (lack := lacking(inputs.names, item))]
    if not broken or (len(broken) < len(items) and len(broken) <= share * len(items)):
        return
    named = some([f"{first_of(item).shown} ({lack})" for item, lack in broken])
    if len(broken) == len(items):
        remedy = "give their files the same names"
    else:
        remedy = f"add what is missing, or leave these out with --max-rejected {_rounded_up(len(broken), len(items))}"
    how = "their paths inside the sources without the endings" if inputs.apart else "what stands before .NAME.ENDING"
    raise UsageError(
        f"{len(broken):,} of {len(items):,} pairs are incomplete: {named}: pictures are matched by {how}; {remedy}"
    )


def _rounded_up(part: int, whole: int) -> float:
    return min(1.0, -(-1000 * part // whole) / 1000)


def some(texts: Sequence[str]) -> str:
    """Name the first few of many."""
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
