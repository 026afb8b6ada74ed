"""The rows of `bench levers` for people."""

from __future__ import annotations

from collections.abc import Iterator

from hires_gan.bench.levers_record import Record, hours
from hires_gan.bench.levers_rows import FIRST, LADDER


def table(record: Record) -> Iterator[str]:
    """The lines of a record."""
    settings = record["settings"]
    yield f"{settings['config']}: micro-batch {settings['micro']}, {settings['data']} images, on {settings['device']}"
    figures = f"{'images/s':>10}{'ms/step':>10}{'peak GiB':>10}{'gain':>8}{'in all':>8}"
    yield f"{'lever':18}{figures}  {'over':15}what it adds"
    for row in record["rows"]:
        yield _line(row)
    yield from hours(record)
    yield (
        "Each row has what those above it add, but for rows aside, and for what it is said to be without. gain: "
        "images/s by those of the row under `over`, the last one above that is not aside and differs by nothing but "
        f"what this row and those in between add, of a row aside by itself alone; in all: by those of {FIRST}"
    )


def _line(row: Record) -> str:
    if row["status"] != "measured":
        return f"{row['name']:18}{row['status']}: {row['reason']}{_before_that(row)}"
    gains = "".join(f"{_times(row[name]):>8}" for name in ("gain", "over_reference"))
    figures = f"{row['images_per_s']:>10.2f}{row['ms_per_step']:>10.1f}{row['peak_memory'] / 2**30:>10.2f}{gains}"
    aside = "" if row["name"] in LADDER else "aside: "
    return f"{row['name']:18}{figures}  {row['over'] or '':15}{aside}{row['adds']}{_lacking(row)}{_compiled(row)}"


def _before_that(row: Record) -> str:
    earlier = row.get("earlier")
    return "" if earlier is None else f"; before, {earlier['images_per_s']:.2f} images/s{_lacking(earlier)}"


def _lacking(row: Record) -> str:
    names = dict.fromkeys([*row["lost"], *row["without"]])
    return f"; without {', '.join(names)}" if names else ""


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _compiled(row: Record) -> str:
    if not row["compile_seconds"]:
        return ""
    again = row["compile_seconds_cached"]
    with_code = f"failed: {row['not_cached']}" if again is None else f"{again:.0f} s"
    return f" ({row['compile_seconds']:.0f} s to compile, again from its cache: {with_code})"
