"""What becomes of a corrupt sample: the next good row is shown instead, it is counted, and too many stop the run.

Row r is replaced by r + 1, r + 2, ... (the first row follows the last) until one is good: a function of the row alone,
so that a run that goes on from a checkpoint sees what it would have seen. Of a pair, all images are replaced together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hires_gan.data.store import remedy
from hires_gan.errors import Failure
from hires_gan.progress import say

_NAMED = 3
"""How many of the corrupt samples the last sentence of a run names."""


@dataclass(frozen=True)
class CorruptRow:
    """A sample that cannot be shown.

    Attributes:
        row: Its number in the set.
        name: Its shard and key, for people.
        problem: What is wrong with it, its place included.
        folder: The set.
        total: How many samples that set has.
    """

    row: int
    name: str
    problem: str
    folder: str
    total: int


@dataclass
class Report:
    """What happened while the samples of a batch, or of a part of it, were read.

    Attributes:
        shown: By the numbers of the stream and of the sample, the row that is shown in place of its own.
        corrupt: The rows that were passed over, however often they have been reported before.
        retries: What was read again after a passing fault of the file system: one sentence for each time.
        given_up: Whether the reader found more corrupt rows than are allowed, and left places of the batch empty.
    """

    shown: dict[tuple[int, int], int] = field(default_factory=dict)
    corrupt: list[CorruptRow] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)
    given_up: bool = False

    def add(self, other: Report) -> None:
        """Take over what another part of the batch reports."""
        self.shown |= other.shown
        self.corrupt += other.corrupt
        self.retries += other.retries
        self.given_up |= other.given_up


def allowed_rows(share: float, count: int) -> int:
    """How many rows of a set of `count` may be corrupt, if that share of them may."""
    return math.floor(share * count + 1e-9)


class CorruptRows:
    """The corrupt samples that this process has found so far, in all of its loaders.

    Args:
        allowed: The share of a set's samples that may be corrupt, 0 to 1; it holds for each set by itself.

    Attributes:
        retries: How often something was read again after a passing fault of the file system.
    """

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._found: dict[str, dict[int, CorruptRow]] = {}
        self._said: set[str] = set()
        self.retries = 0

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._found.values())

    def add(self, report: Report) -> None:
        """Count what a batch's report names, and say what has not been said before.

        Raises:
            Failure: If there are more corrupt samples in a set than are allowed.
        """
        for corrupt in report.corrupt:
            rows = self._found.setdefault(corrupt.folder, {})
            if corrupt.row not in rows:
                rows[corrupt.row] = corrupt
                say(f"skipped a corrupt sample: {corrupt.problem}")
        self.retries += len(report.retries)
        for retry in report.retries:
            if retry not in self._said:
                self._said.add(retry)
                say(retry)
        for rows in self._found.values():
            found = list(rows.values())
            if len(found) > allowed_rows(self._allowed, found[0].total):
                raise self._too_many(found)
        assert not report.given_up

    def learn(self, told: Iterable[Mapping[str, Any]]) -> list[str]:
        """Count what another process found.

        Args:
            told: What `rows` gave there.

        Returns:
            A sentence for each that was not known.
        """
        new = [CorruptRow(**row) for row in told if row["row"] not in self._found.get(row["folder"], {})]
        for corrupt in new:
            self._found.setdefault(corrupt.folder, {})[corrupt.row] = corrupt
        return [f"skipped a corrupt sample: {corrupt.problem}" for corrupt in new]

    def rows(self) -> list[dict[str, Any]]:
        """All that were found so far, for a checkpoint's JSON; no more than `data.max_corrupt` allows."""
        return [asdict(row) for rows in self._found.values() for row in rows.values()]

    def remember(self, saved: Iterable[Mapping[str, Any]], moved: Mapping[str, str]) -> None:
        """Count what was found, and said, before the run went on from a checkpoint.

        Args:
            saved: What `rows` gave.
            moved: From the folders of the sets as they were to where the same sets are now.
        """
        for entry in saved:
            row = CorruptRow(**entry)
            row = replace(row, folder=moved.get(row.folder, row.folder))
            self._found.setdefault(row.folder, {}).setdefault(row.row, row)

    def _too_many(self, found: list[CorruptRow]) -> Failure:
        folder, total = found[0].folder, found[0].total
        named = "; ".join(corrupt.name for corrupt in found[:_NAMED]) + ("; ..." if len(found) > _NAMED else "")
        return Failure(
            f"{len(found)} of the {total} samples in {folder} have turned out corrupt, a share of "
            f"{len(found) / total:.2g}, and data.max_corrupt allows {self._allowed:g}: {named}. To go on, "
            f"{remedy(folder)} (dropping makes another data set, for a new run); or raise data.max_corrupt"
        )
