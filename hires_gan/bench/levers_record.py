"""The record of `bench levers`: how a later call goes on with it, and how its rows compare with each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hires_gan.bench.identity import NAME_THE_COMMIT, UNKNOWN
from hires_gan.errors import UsageError

Record = dict[str, Any]
_SAME = ("git.commit", "code.", "version.", "cpu.", "gpu.", "settings.")
"""What rows of several calls have in common."""
_REMEDY = "name another file, or remove it"
_HOUR = timedelta(hours=1)


def read_earlier(out: Path | None, head: Record) -> Record | None:
    """The record that an earlier call has left, if there is one with rows.

    Args:
        out: Its file.
        head: What `identity` says now, and `settings`.

    Raises:
        UsageError: The file is no such record, or its rows were measured on something else, or with other settings.
    """
    if out is None or not out.is_file():
        return None
    found = _read(out)
    if not found["rows"]:
        return None
    for name, before, here in told_apart(found, head, _SAME):
        raise UsageError(
            f"--out is {out}, whose rows were measured with {name} {_shown(before)}, and here it is "
            f"{_shown(here)}: {_REMEDY}"
        )
    if head["git.commit"] == UNKNOWN:
        raise UsageError(
            f"--out is {out}, whose rows were measured with a commit that is not known, as it is not known here: "
            f"{_REMEDY}, and {NAME_THE_COMMIT}"
        )
    return found


def _read(out: Path) -> Record:
    try:
        found = json.loads(out.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--out is {out}, which cannot be read as JSON: {error}; {_REMEDY}") from None
    if not isinstance(found, dict) or found.get("bench") != "levers" or not isinstance(found.get("rows"), list):
        raise UsageError(f"--out is {out}, which is no record of `bench levers`: {_REMEDY}")
    return found


def told_apart(found: Record, head: Record, beginnings: tuple[str, ...]) -> Iterator[tuple[str, object, object]]:
    """What has to be the same of two records and is not: its name, as one has it, and as the other has it.

    Args:
        found: One of them.
        head: The other one.
        beginnings: Of the names that are compared, in which `settings.` stands before those of the settings.
    """
    before, here = _flat(found), _flat(head)
    for name in dict.fromkeys([*before, *here]):
        if name.startswith(beginnings) and before.get(name) != here.get(name):
            yield name, before.get(name), here.get(name)


def _flat(record: Record) -> Record:
    return record | {f"settings.{name}": value for name, value in record.get("settings", {}).items()}


def _shown(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, str) else str(value)


def with_gains(rows: Sequence[Record], ladder: Sequence[str], first: str) -> list[Record]:
    """Each row that was measured, beside the one that it adds to, and beside the first one.

    Args:
        rows: In the order of the ladder, with those aside.
        ladder: Names of the rows that hand on what they add, in order; the others stand aside.
        first: The name of what all are compared with.
    """
    measured = [row for row in rows if row["status"] == "measured"]
    return [row | _gains(row, measured, ladder, first) if row["status"] == "measured" else row for row in rows]


def _gains(row: Record, measured: Sequence[Record], ladder: Sequence[str], first: str) -> Record:
    above = measured[: measured.index(row)]
    handed = [one for one in above if one["name"] in ladder and _adds_to(row, one, ladder)]
    rates = {one["name"]: one["images_per_s"] for one in above}
    rate, over = row["images_per_s"], handed[-1]["name"] if handed else None
    return {
        "gain": rate / rates[over] if over else None,
        "over": over,
        "over_reference": rate / rates[first] if first in rates else None,
    }


def _adds_to(row: Record, above: Record, ladder: Sequence[str]) -> bool:
    """Whether a row has what another has, and besides nothing but what rows below that one add; one aside, nothing.

    Rows of several calls may differ in more: what failed at first and was measured later is in one, and not in another.
    """
    here, there = set(row["has"]), set(above["has"])
    if row["name"] not in ladder:
        return here == there
    below = ladder[ladder.index(above["name"]) + 1 :]
    return there <= here and here - there <= set(below)


def hours(record: Record) -> Iterator[str]:
    """Says which rows were measured more than an hour later than the first of them: they compare less well."""
    dates = {row["name"]: row.get("date", record["date"]) for row in record["rows"] if row["status"] == "measured"}
    if not dates:
        return
    earliest = min(dates, key=lambda name: datetime.fromisoformat(dates[name]))
    start = datetime.fromisoformat(dates[earliest])
    late = [f"{name} {date}" for name, date in dates.items() if datetime.fromisoformat(date) - start > _HOUR]
    if late:
        yield (
            f"Not of one hour, and clocks and neighbours change: {earliest} {dates[earliest]}; more than an hour later "
            f"{', '.join(late)}"
        )
