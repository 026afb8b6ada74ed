"""Who makes which shard of a set that several machines prepare, settled by nothing but files in the shared folder.

A rank claims a shard before it makes it, by creating a file that must not be there yet: first the shards rank, rank +
world, rank + 2 world, ... and then, from the end, whatever nobody has claimed. So a fast machine takes over what a slow
one has not come to, a rank that never starts costs nothing, and yet nearly all claims are made without a contest. The
claim goes away with the shard's record, so that only what is being made is claimed.

A claim only saves double work; nothing is wrong if two make one shard, since its record (see `shard_records`) is
created exclusively, and whoever comes second throws his own away. So no claim needs a clock, a lease or a lock:

- a rank that was killed and starts again finds its own claims, and goes on with them;
- a rank that never comes back leaves the few shards that it was making claimed; a claim is made in the name of a number
  of ranks, and a start with any other number of ranks does not heed it;
- two processes with one number at most repeat what the first was making when the second started.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from hires_gan.data.ranks import Rank
from hires_gan.data.writer import create_whole, shard_name, unique, write_atomically
from hires_gan.progress import say
from hires_gan.settings import Settings

_NAME = re.compile(r"shard-(\d+)\.tar\.claim-of-(\d+)")
_NAMED = 5


class Claim(Settings):
    """What a claim's file says, for other ranks and for people."""

    rank: int
    """Who is making the shard."""
    host: str
    """On which machine."""
    process: int
    """By which process there."""
    word: str
    """What tells this process from all others."""


class Claims:
    """The claims of one process.

    Args:
        work: The working folder.
        rank: Which process this is.
    """

    def __init__(self, work: Path, rank: Rank) -> None:
        self.work, self.rank = work, rank
        self.own = Claim(rank=rank.number, host=socket.gethostname(), process=os.getpid(), word=unique())
        self.held: set[int] = set()
        found = [match for name in os.listdir(work) if (match := _NAME.fullmatch(name))]  # noqa: PTH208 - names suffice
        mine = {int(match[1]) for match in found if int(match[2]) == rank.world}
        claims = {number: self._read(number) for number in mine}
        self.inherited = {n for n, claim in claims.items() if claim is None or claim.rank == rank.number}
        self.others = sorted({int(match[2]) for match in found} - {rank.world})
        """Numbers of ranks in whose name there are claims that this process does not heed."""
        self._told = False

    def order(self, numbers: Sequence[int]) -> list[int]:
        """Return shards in the order in which this rank tries to claim them."""
        own = [number for number in numbers if number in self.inherited]
        first = [n for n in numbers if n % self.rank.world == self.rank.number and n not in self.inherited]
        taken = {*own, *first}
        return own + first + [number for number in reversed(numbers) if number not in taken]

    def take(self, number: int) -> bool:
        """Claim a shard; False if it is in somebody else's hands."""
        data = (self.own.model_dump_json() + "\n").encode()
        if number in self.inherited:
            self.inherited.discard(number)
            write_atomically(self._path(number), data)
        elif not create_whole(self._path(number), data):
            self._mention_twin(number)
            return False
        self.held.add(number)
        return True

    def give_back(self, number: int) -> None:
        """Drop a claim, because the shard is made or will not be."""
        self.held.discard(number)
        self._path(number).unlink(missing_ok=True)

    def give_all_back(self) -> None:
        """Drop every claim of this process."""
        for number in list(self.held):
            self.give_back(number)

    def holders(self, numbers: Iterable[int]) -> str:
        """Name those who are making these shards, for people."""
        claims = {claim.word: claim for number in numbers if (claim := self._read(number))}
        named = [f"rank {claim.rank} (process {claim.process} on {claim.host})" for claim in claims.values()]
        more = [f"{len(named) - _NAMED} more"] if len(named) > _NAMED else []
        return ", ".join(sorted(named)[:_NAMED] + more)

    def _mention_twin(self, number: int) -> None:
        """Say once that another process has this one's number."""
        claim = None if self._told else self._read(number)
        if claim is not None and claim.rank == self.rank.number and claim.word != self.own.word:
            self._told = True
            say(
                f"warning: process {claim.process} on {claim.host} is {self.rank} as well: the two share the work, and "
                "nothing gets lost; give each process a number of its own"
            )

    def _read(self, number: int) -> Claim | None:
        """Return who claims a shard; None if nobody does, or a kill cut the claim short."""
        try:
            return Claim.model_validate_json(self._path(number).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _path(self, number: int) -> Path:
        return self.work / f"{shard_name(number)}.claim-of-{self.rank.world}"
