"""What becomes of a corrupt sample: the next good row is shown instead, it is counted, and too many stop the run.

Row r is replaced by r + 1, r + 2, ... (the first row follows the last) until one is good: a function of the row alone,
so that a run that goes on from a checkpoint sees what it would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hires_gan.data.shards import ShardSet
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
    """

    row: int
    name: str
    problem: str


@dataclass
class Report:
    """What happened while the samples of a batch, or of a part of it, were read.

    Attributes:
        shown: By sample number, the row that is shown in place of its own.
        corrupt: The rows that were passed over, however often they have been reported before.
        retries: What was read again after a passing fault of the file system: one sentence for each time.
        given_up: Whether the reader found more corrupt rows than are allowed, and left places of the batch empty.
    """

    shown: dict[int, int] = field(default_factory=dict)
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
        shards: The images.
        allowed: The share of the set's rows that may be corrupt, 0 to 1.

    Attributes:
        retries: How often something was read again after a passing fault of the file system.
    """

    def __init__(self, shards: ShardSet, allowed: float) -> None:
        self._folder, self._total, self._allowed = shards.folder, len(shards), allowed
        self._rows: dict[int, CorruptRow] = {}
        self._said: set[str] = set()
        self.retries = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, report: Report) -> None:
        """Count what a batch's report names, and say what has not been said before.

        Raises:
            Failure: If there are more corrupt samples than are allowed.
        """
        for corrupt in report.corrupt:
            if corrupt.row not in self._rows:
                self._rows[corrupt.row] = corrupt
                say(f"skipped a corrupt sample: {corrupt.problem}")
        self.retries += len(report.retries)
        for retry in report.retries:
            if retry not in self._said:
                self._said.add(retry)
                say(retry)
        if len(self) > allowed_rows(self._allowed, self._total):
            raise self._too_many()
        assert not report.given_up

    def _too_many(self) -> Failure:
        found = [corrupt.name for corrupt in self._rows.values()]
        named = "; ".join(found[:_NAMED]) + ("; ..." if len(found) > _NAMED else "")
        share = len(found) / self._total
        return Failure(
            f"{len(found)} of the {self._total} samples in {self._folder} have turned out corrupt, a share of "
            f"{share:.2g}, and data.max_corrupt allows {self._allowed:g}: {named}. Copy the shards again and go on, or "
            f"drop what is damaged with `hires-gan shards check {self._folder} --repair` (that makes another data set, "
            f"for a new run), or raise data.max_corrupt"
        )
