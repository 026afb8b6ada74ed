"""`hires-gan shards check`: whether a shard set is what its manifest says, down to every image, in parallel."""

from __future__ import annotations

import contextlib
import csv
import functools
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self

from hires_gan.cores import usable_cores
from hires_gan.data.looks import Looks, in_decoders, look_at_huge
from hires_gan.data.manifest import MANIFEST, Manifest, ShardEntry, files_of, parse_manifest, samples_of
from hires_gan.data.scan import Layout, Problem, scan_shard
from hires_gan.data.shards import strangers
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar

WORK = ".repair"
"""The hidden folder of a repair that is running, or was interrupted."""
KINDS = {
    "manifest": "disagreements between the manifest and what it describes",
    "missing": "missing files",
    "unreadable": "files that cannot be read",
    "extra": "files that do not belong to the set",
    "interrupted": "repairs that were interrupted or still run",
    "changed": "shards whose sha256 is not the manifest's",
    "tar": "places where a tar is damaged",
    "key": "keys that are no numbers, repeated or out of order",
    "member": "samples with missing or superfluous files",
    "index": "disagreements between an index and its tar",
    "crc32": "images whose bytes were changed",
    "decode": "images that cannot be decoded to 8 bits",
    "size": "images of other sides than the manifest says",
    "label": "labels that are out of range or contradictory",
}
"""What can be wrong, and what it is called in the plural."""
_SHOWN = 3
_COLUMNS = ("problem", "file", "key", "column", "detail")

Verdict = Literal["whole", "rebuild", "rewrite", "lost", "unreadable"]
"""What a repair does with a shard: nothing; index and labels from the tar; a new tar; drop it; refuse to go on."""


class ShardCheck(NamedTuple):
    """What was found in one shard."""

    name: str
    """Of the tar."""
    verdict: Verdict
    """What a repair would do with it."""
    problems: tuple[Problem, ...]
    """What is wrong."""
    good: int = 0
    """Samples that can stay."""
    first: int = -1
    """The smallest key among them."""
    last: int = -1
    """The largest key among them."""
    bytes: int = 0
    """Of the tar as it is."""
    sha256: str = ""
    """Of the tar as it is; empty if it cannot be read."""


@dataclass
class CheckReport:
    """What a check found."""

    folder: Path
    """The shard folder."""
    manifest: Manifest
    """As it was found."""
    shards: list[ShardCheck] = field(default_factory=list)
    """In the order of the manifest, each without its problems."""
    counts: Counter[str] = field(default_factory=Counter)
    """Problems by kind."""
    first: dict[str, list[Problem]] = field(default_factory=dict)
    """The first few of each kind."""
    extra: list[str] = field(default_factory=list)
    """Names of the files that do not belong to the set."""
    seconds: float = 0.0
    """That it took."""
    written: Path | None = None
    """The CSV file with all problems."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.counts

    def lines(self) -> list[str]:
        """Return the report for people."""
        size = sum(shard.bytes for shard in self.shards) / 2**20
        what = f"{self.manifest.count:,} samples in {len(self.shards):,} shards, {size:,.1f} MiB"
        if self.ok:
            return [f"{self.folder}: all is well: {what}, in {self.seconds:.0f} s"]
        lines = [f"{self.folder}: problems: {self.counts.total():,}, in {what}, in {self.seconds:.0f} s"]
        for kind in KINDS:
            if self.counts[kind]:
                lines.append(f"  {KINDS[kind]}: {self.counts[kind]:,}")
                lines += [f"    {_shown(problem)}" for problem in self.first[kind]]
                more = self.counts[kind] - len(self.first[kind])
                lines += [f"    and {more:,} more"] if more else []
        return [*lines, f"  every one stands in {self.written}"] if self.written else lines


def _shown(problem: Problem) -> str:
    place = [problem.file, problem.key and f"sample {problem.key}", problem.column and f"column '{problem.column}'"]
    return f"{', '.join(part for part in place if part)}: {problem.detail}"


def check_shards(
    folder: Path, workers: int | None = None, report: Path | None = None, repairing: bool = False
) -> CheckReport:
    """Read everything in a shard folder and compare it with what it should be.

    Args:
        folder: The shard folder.
        workers: Processes; None for one per usable core.
        report: A CSV file for all problems.
        repairing: Whether it is this process that holds the folder of a repair.

    Raises:
        UsageError: There is no such folder, it holds no shard set, or there is no folder for the report.
        Failure: The manifest or the folder cannot be read, the report not be written, or a worker was killed.
    """
    start = time.monotonic()
    manifest = parse_manifest(folder)
    found = CheckReport(folder, manifest, written=report)
    with _Collector(found, report) as collector:
        collector.add(_around(folder, manifest, found, repairing))
        names = {entry.sha256: entry.name for entry in manifest.shards}
        last = -1
        with contextlib.closing(_checked(folder, manifest, workers or usable_cores())) as results:
            for entry, shard in zip(manifest.shards, results, strict=True):
                collector.add(_against(entry, shard, names, last))
                collector.add(shard.problems)
                last = max(last, shard.last)
                found.shards.append(shard._replace(problems=()))
    found.seconds = time.monotonic() - start
    return found


def _checked(folder: Path, manifest: Manifest, processes: int) -> Generator[ShardCheck, None, None]:
    """Look at every shard, in their order; at the images of huge ones first, with all processes."""
    shards, layout = manifest.shards, Layout.of(manifest)
    with ProgressBar("check", samples_of(manifest), "samples") as bar:
        names = [(entry.name, entry.name) for entry in shards]
        huge = look_at_huge(folder, names, len(manifest.columns), processes, bar.advance)
        jobs = ((entry, huge.pop(entry.name, None)) for entry in shards)
        seen = {*huge}
        job = functools.partial(_check_shard, folder, layout)
        with contextlib.closing(in_decoders(job, jobs, min(processes, len(shards)))) as results:
            for entry, shard in zip(shards, results, strict=True):
                yield shard
                bar.advance(0 if entry.name in seen else entry.samples)


def _check_shard(folder: Path, layout: Layout, job: tuple[ShardEntry, Looks | None]) -> ShardCheck:
    return check_shard(folder, layout, *job)


def check_shard(folder: Path, layout: Layout, entry: ShardEntry, looks: Looks | None = None) -> ShardCheck:
    """Look at one shard; whatever is wrong is in the result."""
    try:
        scan = scan_shard(folder, entry, layout, looks=looks)
    except FileNotFoundError:
        missing = [name for name in files_of(entry.name, layout.classes is not None) if not (folder / name).exists()]
        lost = tuple(Problem("missing", name, "", "", "it is not in the folder") for name in missing)
        return ShardCheck(entry.name, "lost", lost)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else entry.name
        return ShardCheck(
            entry.name, "unreadable", (Problem("unreadable", name, "", "", error.strerror or str(error)),)
        )
    good = scan.good
    verdict: Verdict = "whole"
    if not scan.intact or scan.untidy or len(good) < len(scan.samples):
        verdict = "rewrite"
    elif not scan.rows_right or (entry.samples, entry.bytes) != (len(good), scan.bytes):
        verdict = "rebuild"
    problems = scan.problems
    if scan.intact and entry.samples != len(scan.samples):
        detail = f"the manifest says {entry.samples} samples, the tar has {len(scan.samples)}"
        problems.insert(0, Problem("manifest", entry.name, "", "", detail))
    first, last = (int(good[0].key), int(good[-1].key)) if good else (-1, -1)
    return ShardCheck(entry.name, verdict, tuple(problems), len(good), first, last, scan.bytes, scan.sha256)


def _against(entry: ShardEntry, shard: ShardCheck, names: dict[str, str], last: int) -> Iterator[Problem]:
    """Compare a shard with its entry in the manifest, and with the shards before.

    Args:
        entry: From the manifest.
        shard: What was found.
        names: The manifest's shards by their sha256.
        last: The largest key of the shards before.
    """
    if shard.sha256 and shard.bytes != entry.bytes:
        yield Problem("manifest", entry.name, "", "", f"the manifest says {entry.bytes} bytes, it has {shard.bytes}")
    if shard.sha256 and shard.sha256 != entry.sha256:
        other = names.get(shard.sha256)
        whose = f", that of {other} in the manifest: files were swapped" if other else ""
        yield Problem("changed", entry.name, "", "", f"{shard.sha256}{whose}; the manifest says {entry.sha256}")
    if shard.good and shard.first <= last:
        detail = f"its first key, {shard.first}, is not above those of the shards before, up to {last}"
        yield Problem("key", entry.name, "", "", detail)


def _around(folder: Path, manifest: Manifest, found: CheckReport, repairing: bool) -> Iterator[Problem]:
    """Look at the manifest itself, and at what else lies in the folder."""
    if samples_of(manifest) != manifest.count:
        detail = f"it says that there are {manifest.count} samples, but its shards add up to {samples_of(manifest)}"
        yield Problem("manifest", MANIFEST, "", "", detail)
    ours: frozenset[str] = frozenset()
    if not repairing and (folder / WORK).exists():
        from hires_gan.data.repair import names_of_interrupted

        ours = names_of_interrupted(folder)
        yield Problem("interrupted", WORK, "", "", "--repair finishes it or begins anew, unless it still runs")
    try:
        names = strangers(folder, manifest, (".tar", ".index", ".labels"))
    except OSError as error:
        raise Failure(f"{folder} cannot be listed: {error.strerror}") from None
    found.extra = [name for name in names if name not in ours]
    for name in found.extra:
        yield Problem("extra", name, "", "", "the manifest does not name it; if it is not needed, move it away")


class _Collector:
    """Counts problems, keeps the first of each kind, and writes all into a CSV file that appears when it is whole."""

    def __init__(self, found: CheckReport, path: Path | None) -> None:
        self._found, self._path = found, path
        self._file: IO[str] | None = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        if self._path is not None:
            if not self._path.parent.is_dir():
                raise UsageError(f"--report is {self._path}, but there is no folder {self._path.parent}: make it first")
            try:
                self._file = self._partial.open("w", newline="", encoding="utf-8", errors="surrogateescape")
            except OSError as error:
                raise Failure(f"the report {self._path} cannot be written: {error.strerror}") from None
            self._writer = csv.writer(self._file)
            self._writer.writerow(_COLUMNS)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._path is None or self._file is None:
            return
        try:
            self._file.close()
            if kind is None:
                self._partial.replace(self._path)
        except OSError as error:
            raise Failure(f"the report {self._path} cannot be written: {error.strerror}") from None
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, problems: Iterable[Problem]) -> None:
        """Take in some problems."""
        for problem in problems:
            self._found.counts[problem.kind] += 1
            first = self._found.first.setdefault(problem.kind, [])
            if len(first) < _SHOWN:
                first.append(problem)
            if self._writer is not None:
                try:
                    self._writer.writerow(problem)
                except OSError as error:
                    raise Failure(f"the report {self._path} cannot be written: {error.strerror}") from None

    @property
    def _partial(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f".{self._path.name}.partial")
