"""What is known about the finished shards of an unfinished set: one file for each, in the working folder.

A record settles a shard. It is created exclusively, whole or not at all, when the shard's files are durable under names
of their own; it names these, and only then do they get their final names. So of several that made one shard exactly one
counts, whoever was killed at whatever moment, and anybody can do the rest of it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from hires_gan.data.manifest import ShardEntry, files_of
from hires_gan.data.working_folder import WORK, look_afresh
from hires_gan.data.writer import create_whole, publish_shard, shard_name
from hires_gan.settings import Settings

_NAME = re.compile(r"shard-(\d+)\.tar\.json")


class ShardRecord(Settings):
    """What is known about a finished shard until the manifest is written."""

    entry: ShardEntry | None
    """None if every image of it was rejected."""
    rejected: tuple[tuple[str, str], ...]
    """Path and reason of each rejected image."""
    counts: dict[str, int]
    """What was done to how many images."""
    attempt: str = ""
    """Of the writer whose files count."""


class Records:
    """The records of the finished shards that this process knows of.

    Args:
        out: The shard folder; its working folder exists.
        shards: How many there are to be.
        labelled: Whether they have labels.
    """

    def __init__(self, out: Path, shards: int, labelled: bool) -> None:
        self.out, self.shards, self.labelled = out, shards, labelled
        self._known: dict[int, ShardRecord] = {}

    def look(self) -> list[int]:
        """Read what was added since the last look, and return the shards that are missing, in order."""
        look_afresh(self.out / WORK)
        names = (_NAME.fullmatch(name) for name in os.listdir(self.out / WORK))  # noqa: PTH208 - names suffice
        there = {int(match[1]) for match in names if match}
        return [n for n in range(self.shards) if n not in self._known and not (n in there and self.has(n))]

    def has(self, number: int) -> bool:
        """Tell whether a shard is finished and whole."""
        try:
            record = ShardRecord.model_validate_json(self._path(number).read_bytes())
        except (FileNotFoundError, ValidationError):
            return False
        if record.entry is not None and not self._is_whole(record.entry):
            publish_shard(self.out, record.entry.name, self.labelled, record.attempt)
            look_afresh(self.out)
            if not self._is_whole(record.entry):
                return False
        self._known[number] = record
        return True

    def add(self, number: int, record: ShardRecord) -> bool:
        """Settle a shard, unless somebody else did; the caller gives its files their names."""
        if not create_whole(self._path(number), record.model_dump_json().encode()):
            return False
        self._known[number] = record
        return True

    def drop(self, number: int) -> None:
        """Forget a shard whose record or files are damaged, to make it again."""
        self._path(number).unlink(missing_ok=True)

    @property
    def finished(self) -> list[int]:
        """The shards that are known to be finished, in order."""
        return sorted(self._known)

    @property
    def entries(self) -> tuple[ShardEntry, ...]:
        """The finished shards that hold samples, in order."""
        return tuple(entry for number in self.finished if (entry := self._known[number].entry) is not None)

    @property
    def samples(self) -> int:
        """Of all finished shards."""
        return sum(entry.samples for entry in self.entries)

    @property
    def bytes(self) -> int:
        """Of all finished shards."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """Path and reason of each rejected image, in order."""
        return [one for number in self.finished for one in self._known[number].rejected]

    @property
    def counts(self) -> Counter[str]:
        """What was done to how many images."""
        return sum((Counter(record.counts) for record in self._known.values()), Counter())

    def _path(self, number: int) -> Path:
        return self.out / WORK / f"{shard_name(number)}.json"

    def _is_whole(self, entry: ShardEntry) -> bool:
        tar = self.out / entry.name
        whole = all((self.out / name).is_file() for name in files_of(entry.name, self.labelled))
        return whole and tar.stat().st_size == entry.bytes
