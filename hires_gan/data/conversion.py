"""Converting images in worker processes: what becomes of the files of each sample."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from hires_gan.data.archives import read_bytes
from hires_gan.data.pairs import Item, first_of, lacking
from hires_gan.data.pictures import PictureOptions, samples
from hires_gan.data.pool import in_order
from hires_gan.data.rejection import Rejected, blaming
from hires_gan.data.writer import Encoded
from hires_gan.errors import Failure


@dataclass(frozen=True)
class Converted:
    """What became of one image, or of the images of one pair."""

    samples: tuple[dict[str, Encoded], ...]
    """One, or one per tile; none if it was rejected."""
    counts: Counter[str]
    """Everything noteworthy that was done."""
    rejected: tuple[str, str] | None = None
    """Which file cannot be used, and why."""


def convert(options: PictureOptions, names: Sequence[str], item: Item) -> Converted:
    """Read the images of one item and make its samples; if one of them cannot be used, the others are not either.

    Args:
        options: How a picture becomes samples.
        names: Of the item's pictures.
        item: Where they are.
    """
    counts: Counter[str] = Counter()
    try:
        files = _read(names, item)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on odd metadata, which nothing here uses
            made = tuple(samples(files, options, counts))
    except Rejected as reason:
        at_fault = dict(zip(names, item, strict=True)).get(reason.picture) or first_of(item)
        return Converted((), Counter(), (at_fault.shown, str(reason)))
    return Converted(made, +counts)


def _read(names: Sequence[str], item: Item) -> dict[str, bytes]:
    files = {}
    for name, reference in zip(names, item, strict=True):
        if reference is None:
            raise Rejected(f"the pair is incomplete: it has {lacking(names, item)}")
        with blaming(name):
            files[name] = read_bytes(reference)
    return files


def convert_all(
    options: PictureOptions, names: Sequence[str], items: Iterable[Item], processes: int
) -> Generator[Converted, None, None]:
    """Convert items in several processes; the results come in the order of the items.

    Args:
        options: How a picture becomes samples.
        names: Of each item's pictures.
        items: Where they are; drawn a bounded number ahead.
        processes: How many; 1 works in this process.

    Raises:
        Failure: A worker was killed, or there is not enough memory.
    """
    try:
        yield from in_order(functools.partial(convert, options, names), items, processes, "--processes", [__name__])
    except MemoryError:
        raise Failure(
            "there is not enough memory to convert an image: run the same command again to continue, with fewer "
            "--processes or a smaller --max-pixels"
        ) from None
