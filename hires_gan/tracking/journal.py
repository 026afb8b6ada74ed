"""The journal: every point is written here first, one line each, and sent to MLflow from here.

The folder `<run>/tracking` holds `journal.jsonl` (append-only), `sent.json` (up to which byte it was sent, and to
which run), `run.json` (the MLflow run) and `images/` (those not sent yet).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hires_gan.errors import Failure
from hires_gan.progress import say

Entry = dict[str, Any]
"""One line: {time, nimg, metrics, protocols?} | {time, nimg, image, files, raw} | {artifact, folder} | {model, ...}."""


@dataclass(frozen=True)
class Batch:
    """Consecutive entries that are sent together.

    Attributes:
        entries: several of metrics, or a single one of another kind, oldest first; damaged lines are left out.
        end: the byte of the journal behind the last of them.
        lines: how many lines that is.
    """

    entries: list[Entry]
    end: int
    lines: int


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Replace a small JSON file as a whole, so that a reader never sees half of it."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a small JSON file; empty where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Journal:
    """Points in the order in which they were logged, and how many of them were sent.

    One thread appends, another one reads and marks; a point of a key at an nimg that the journal already went past
    is not taken again, so that a resumed run, which repeats the steps since its last checkpoint, logs none twice.

    Args:
        folder: the tracking folder of a run; made if it is missing. A torn last line is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"
        self.images = folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.reached: dict[str, int] = {}
        """Per key the last nimg at which it was logged."""
        self._sent_file = folder / "sent.json"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._count = threading.Lock()
        self._size = self._repair()
        self._sent, self._waiting = 0, self._scan()

    @property
    def waiting(self) -> int:
        """How many points were not sent yet."""
        return self._waiting

    @property
    def empty(self) -> bool:
        """Whether nothing was ever logged."""
        return self._size == 0

    def destine(self, run_id: str) -> None:
        """Say which run the points go to: what was sent to another run is to be sent again."""
        sent = read_json(self._sent_file)
        offset = int(sent.get("offset", 0)) if sent.get("run_id") == run_id else 0
        self._run_id, self._sent = run_id, min(offset, self._size)
        waiting = self._lines_from(self._sent)
        self._waiting = len(waiting)
        self._drop_images({name for line in waiting for name in images_of(_parse(line) or {})})

    def fresh(self, keys: Iterable[str], nimg: int) -> list[str]:
        """Those keys that were not logged at this nimg or beyond."""
        return [key for key in keys if nimg > self.reached.get(key, -1)]

    def append(self, entry: Entry) -> None:
        """Write one line; when this returns it outlives the process.

        Raises:
            Failure: the disk is full or gone; the journal stays whole.
        """
        line = json.dumps(entry).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes written")
        except OSError as problem:
            os.ftruncate(self._file, self._size)
            raise Failure(f"cannot write to {self.path} ({problem}): free space there and run again") from problem
        with self._count:
            self._size += len(line)
            self._waiting += 1
        self._note(entry)

    def next_batch(self, limit: int) -> Batch | None:
        """The oldest points not sent yet: at most about `limit` metric values, or one entry of another kind."""
        entries: list[Entry] = []
        end, lines, values = self._sent, 0, 0
        with self.path.open("rb") as journal:
            journal.seek(end)
            while values < limit and end < self._size:
                line = journal.readline()
                entry = _parse(line)
                if entries and entry is not None and "metrics" not in entry:
                    break
                end, lines = end + len(line), lines + 1
                if entry is None:
                    continue
                entries.append(entry)
                if "metrics" not in entry:
                    break
                values += len(entry["metrics"])
        return Batch(entries, end, lines) if lines else None

    def mark_sent(self, batch: Batch) -> None:
        """Record that a batch arrived; its images are not needed any more."""
        write_json(self._sent_file, {"run_id": self._run_id, "offset": batch.end})
        with self._count:
            self._sent = batch.end
            self._waiting -= batch.lines
        for entry in batch.entries:
            for name in images_of(entry):
                (self.images / name).unlink(missing_ok=True)

    def close(self) -> None:
        """No more points are logged; reading stays possible."""
        os.close(self._file)

    def _repair(self) -> int:
        """Cut off what a killed process left of its last line, and return the size."""
        content = self.path.read_bytes()
        size = content.rfind(b"\n") + 1
        if size != len(content):
            os.ftruncate(self._file, size)
        return size

    def _scan(self) -> int:
        """Learn how far each key got; return the number of lines."""
        lines = damaged = 0
        with self.path.open("rb") as journal:
            for line in journal:
                lines += 1
                entry = _parse(line)
                if entry is None:
                    damaged += 1
                else:
                    self._note(entry)
        if damaged:
            say(f"{self.path}: {damaged} damaged lines are skipped")
        return lines

    def _note(self, entry: Entry) -> None:
        keys = entry["metrics"] if "metrics" in entry else [f"image:{entry['image']}"] if "image" in entry else []
        for key in keys:
            self.reached[key] = max(entry["nimg"], self.reached.get(key, -1))

    def _lines_from(self, start: int) -> list[bytes]:
        with self.path.open("rb") as journal:
            journal.seek(start)
            return journal.readlines()

    def _drop_images(self, wanted: set[str]) -> None:
        """Remove images that a killed process sent without removing them, or saved without an entry."""
        for file in self.images.iterdir():
            if file.name not in wanted:
                file.unlink()


def images_of(entry: Entry) -> list[str]:
    """The files in `images/` that an entry may have: what is sent, and what that is made of."""
    return [*entry.get("files", []), *([entry["raw"]] if "raw" in entry else [])]


def _parse(line: bytes) -> Entry | None:
    """The entry of a line; None if a broken disk or a lost power supply left something else there."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
