"""One shard, looked at as a whole: the samples that its tar holds, and everything that is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from hires_gan.data.looks import Looks, look
from hires_gan.data.manifest import INDEX_ROW, LABEL, Manifest, ShardEntry, column_of, index_name, labels_name, side
from hires_gan.data.tar_walk import BLOCK, Damage, Member, is_key, walk

LABEL_ENDING = "cls"


class Problem(NamedTuple):
    """Something that is not as it should be."""

    kind: str
    """One of `check.KINDS`."""
    file: str
    """Name of the file in the shard folder."""
    key: str
    """Of the sample; empty if a whole file is meant."""
    column: str
    """Of the sample's; empty if all are meant."""
    detail: str
    """What was found, and what should have been."""


class Layout(NamedTuple):
    """What a manifest says about the samples of every shard."""

    resolution: int
    """Height and width of the images in pixels."""
    columns: tuple[str, ...]
    """What each sample holds."""
    classes: int | None
    """How many there are; None for a set without labels."""

    @classmethod
    def of(cls, manifest: Manifest) -> Layout:
        """Return the layout of a set."""
        names = manifest.label_names
        return cls(manifest.resolution, manifest.columns, None if names is None else len(names))

    @property
    def row_size(self) -> int:
        """Bytes that a sample takes in an index."""
        return len(self.columns) * INDEX_ROW.itemsize


@dataclass
class Sample:
    """One sample of a tar."""

    key: str
    """The stem of its files' names."""
    members: dict[str, Member] = field(default_factory=dict)
    """By column, the label's under `cls`; in the order of the tar."""
    crc32: dict[str, int] = field(default_factory=dict)
    """By column: of the bytes as they are now."""
    label: int | None = None
    """Its class, if the set has labels and its own can be read."""
    bad: bool = False
    """Whether it cannot stay in the set."""


@dataclass
class Scan:
    """What a shard holds."""

    sha256: str
    """Of the tar as it is."""
    bytes: int
    """Of the tar as it is."""
    intact: bool
    """Whether that is the sha256 of the manifest: then the tar is right, and what disagrees with it is wrong."""
    samples: list[Sample] = field(default_factory=list)
    """In the order of the tar."""
    problems: list[Problem] = field(default_factory=list)
    """Everything found, whatever the sha256 says of the tar left out."""
    untidy: bool = False
    """Whether the tar holds anything but the files of samples and the mark of its end."""
    rows_right: bool = True
    """Whether index and labels are those of the tar; means something if the tar is intact."""

    @property
    def good(self) -> list[Sample]:
        """The samples that can stay."""
        return [sample for sample in self.samples if not sample.bad]


def scan_shard(
    folder: Path, entry: ShardEntry, layout: Layout, source: str | None = None, looks: Looks | None = None
) -> Scan:
    """Look at everything in a shard.

    A tar with the manifest's sha256 is right; its index and labels are compared with it. In any other a sample is good
    only if the index vouches for its bytes and the labels file for its class.

    Args:
        folder: The shard folder.
        entry: The shard as the manifest has it.
        layout: What the manifest says about every sample.
        source: Name of a file that has the entry's sha256, if the shard's own has not.
        looks: What is known about images in this tar; whatever is missing is found out here.

    Raises:
        FileNotFoundError: The tar is not there.
        OSError: The tar, its index or its labels cannot be read.
    """
    with open_regular(folder / (source or entry.name)) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        scan = Scan(sha256, os.fstat(file.fileno()).st_size, sha256 == entry.sha256)
        _Scanner(folder, entry, layout, file, scan, looks or {}).run()
    return scan


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading; a pipe or a folder of this name is an OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.open("rb")


def expected_index(samples: list[Sample], layout: Layout) -> np.ndarray:
    """Return the index of these samples: `INDEX_ROW` [samples, columns]."""
    rows = [[(*s.members[c][1:], s.crc32[c]) for c in layout.columns] for s in samples]
    return np.array(rows, INDEX_ROW).reshape(len(samples), len(layout.columns))


class _Scanner:
    """Fills a `Scan`."""

    def __init__(
        self, folder: Path, entry: ShardEntry, layout: Layout, file: IO[bytes], scan: Scan, looks: Looks
    ) -> None:
        self.entry, self.layout, self.scan, self.looks = entry, layout, scan, looks
        self._descriptor = file.fileno()
        self._index = self._read_beside(folder / index_name(entry.name))
        self._raw_labels = self._read_beside(folder / labels_name(entry.name)) if layout.classes is not None else None
        labels = self._raw_labels or b""
        self._labels = np.frombuffer(labels[: len(labels) // LABEL.itemsize * LABEL.itemsize], LABEL)
        raw, size = self._index or b"", layout.row_size
        self._rows = np.frombuffer(raw[: len(raw) // size * size], INDEX_ROW).reshape(-1, len(layout.columns))
        self._places = {int(cell["offset"]): (r, c) for r, row in enumerate(self._rows) for c, cell in enumerate(row)}

    def run(self) -> None:
        """Look at everything."""
        last = -1
        for number, sample in enumerate(self._found()):
            if not is_key(sample.key) or int(sample.key) <= last:
                self._spoil(sample, "key", "", f"no number of nine digits above the one before, {last}")
            else:
                last = int(sample.key)
            self._look(sample, number)
            self.scan.samples.append(sample)
        if self.scan.intact:
            self._compare_index()
        else:
            self._mourn()

    def _found(self) -> Iterator[Sample]:
        """Group the files of the tar into samples."""
        starts = sorted(offset - BLOCK for offset in self._places if offset >= BLOCK)
        sample: Sample | None = None
        for found in walk(self._read, self.scan.bytes, starts):
            if isinstance(found, Damage):
                self._add("tar", "", "", f"byte {found.offset}: {found.reason}")
                self.scan.untidy = True
                continue
            if sample is None or found.key != sample.key:
                if sample is not None:
                    yield sample
                sample = Sample(found.key)
            self._assign(sample, found)
        if sample is not None:
            yield sample

    def _assign(self, sample: Sample, member: Member) -> None:
        """Find the column of a file, by its name."""
        column = LABEL_ENDING if member.ending == LABEL_ENDING else column_of(member.ending)
        wanted = {*self.layout.columns, *([LABEL_ENDING] if self.layout.classes is not None else [])}
        if column not in wanted or column is None:
            self._add("member", sample.key, "", f"{member.name!r} is of no column that the manifest names")
            self.scan.untidy = True
        elif column in sample.members:
            self._spoil(sample, "member", column, f"there are two: {sample.members[column].name}, {member.name}")
        else:
            sample.members[column] = member

    def _look(self, sample: Sample, number: int) -> None:
        """Look at the files of one sample.

        Args:
            sample: The sample.
            number: Its place in the tar.
        """
        missing = [column for column in self.layout.columns if column not in sample.members]
        for column in missing:
            self._spoil(sample, "member", column, "the tar has no such file of this sample")
        if not missing and not self.scan.intact:
            number = self._vouch(sample)
        for column in self.layout.columns:
            if column in sample.members:
                self._look_at_image(sample, column)
        if self.layout.classes is not None:
            self._look_at_label(sample, number, self.layout.classes)

    def _vouch(self, sample: Sample) -> int:
        """Find the index row of a sample in a tar that was changed; a sample without one is lost."""
        columns = self.layout.columns
        places = [self._places.get(sample.members[column].offset) for column in columns]
        row = places[0][0] if places[0] is not None else -1
        if places != [(row, number) for number in range(len(columns))]:
            self._spoil(sample, "index", "", "the shard was changed, and its index has no row for this sample")
        return row

    def _look_at_image(self, sample: Sample, column: str) -> None:
        member = sample.members[column]
        seen = self.looks.get((member.offset, member.size)) or look(self._read(member.offset, member.size))
        sample.crc32[column] = found = seen.crc32
        place = self._places.get(member.offset)
        if not self.scan.intact and place is not None:
            cell = self._rows[place]
            if (member.size, found) != (int(cell["size"]), int(cell["crc32"])):
                detail = f"{member.size} bytes with crc32 {found:08x}, the index says {cell['size']} and "
                self._spoil(sample, "crc32", column, f"{detail}{int(cell['crc32']):08x}")
                return
        wanted = side(column, self.layout.resolution)
        if seen.fault:
            self._spoil(sample, "decode", column, seen.fault)
        elif (seen.height, seen.width) != (wanted, wanted):
            self._spoil(sample, "size", column, f"{seen.width}x{seen.height} pixels, {wanted}x{wanted} by the manifest")

    def _look_at_label(self, sample: Sample, number: int, classes: int) -> None:
        member = sample.members.get(LABEL_ENDING)
        if member is None:
            self._spoil(sample, "label", "", "the tar has no .cls file of this sample")
            return
        text = self._read(member.offset, min(member.size, 20))
        if not text.isdigit() or int(text) >= classes:
            self._spoil(
                sample,
                "label",
                "",
                f"the .cls file says {text.decode('ascii', 'replace')!r}; 0 to {classes - 1} is allowed",
            )
            return
        sample.label = int(text)
        beside = int(self._labels[number]) if 0 <= number < len(self._labels) else None
        if beside == sample.label:
            return
        detail = f"the .cls file says {sample.label}, the labels file {'nothing' if beside is None else beside}"
        if not self.scan.intact:  # either may be wrong
            self._spoil(sample, "label", "", detail)
            return
        self.scan.rows_right = False
        if self._raw_labels is not None:  # that it is missing is said already
            self._add("label", sample.key, "", detail)

    def _compare_index(self) -> None:
        """Compare index and labels of an intact tar with what they must be."""
        whole = [sample for sample in self.scan.samples if all(c in sample.members for c in self.layout.columns)]
        if len(whole) < len(self.scan.samples) or self._index is None:
            self.scan.rows_right = False
            return
        wanted = expected_index(whole, self.layout)
        if self._raw_labels is not None and len(self._raw_labels) != len(whole) * LABEL.itemsize:
            self.scan.rows_right = False
            size = len(whole) * LABEL.itemsize
            self._add("label", "", "", f"the labels file has {len(self._raw_labels)} bytes, {size} are right")
        if self._index == wanted.tobytes():
            return
        self.scan.rows_right = False
        if len(self._index) != wanted.nbytes:
            found = f"the index has {len(self._index)} bytes, {wanted.nbytes} are right for {len(whole)} samples"
            self._add("index", "", "", found)
        for sample, row, right in zip(whole, self._rows, wanted, strict=False):
            for number, column in enumerate(self.layout.columns):
                if row[number] != right[number]:
                    detail = f"the index says {_cell(row[number])}, the intact tar {_cell(right[number])}"
                    self._add("index", sample.key, column, detail)

    def _mourn(self) -> None:
        """Name the samples that the index or the manifest knows, and a damaged tar does not hold."""
        met = {self._places.get(member.offset, (-1, 0))[0] for s in self.scan.samples for member in s.members.values()}
        for row in sorted(set(range(len(self._rows))) - met):
            self._add("member", "", "", f"sample number {row} of the shard, by its index, is not where it should be")
        if self._index is not None and len(self._index) != self.entry.samples * self.layout.row_size:
            size = self.entry.samples * self.layout.row_size
            self._add("index", "", "", f"the index has {len(self._index)} bytes, {size} by the manifest")

    def _read_beside(self, path: Path) -> bytes | None:
        try:
            with open_regular(path) as file:
                return file.read()
        except FileNotFoundError:
            self.scan.rows_right = False
            self.scan.problems.append(Problem("missing", path.name, "", "", "it is not in the folder"))
            return None

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0 and (part := os.pread(self._descriptor, min(size, 2**30), offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _add(self, kind: str, key: str, column: str, detail: str) -> None:
        self.scan.problems.append(Problem(kind, self.entry.name, key, column, detail))

    def _spoil(self, sample: Sample, kind: str, column: str, detail: str) -> None:
        sample.bad = True
        self._add(kind, sample.key, column, detail)


def _cell(cell: np.void) -> str:
    return f"{cell['size']} bytes at {cell['offset']} with crc32 {int(cell['crc32']):08x}"
