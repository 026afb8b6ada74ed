"""`hires-gan shards check --repair`: what is bad is dropped, what is lost can be said, and a kill harms nothing.

Everything new is first written into the hidden folder `.repair`, under names that the set does not use. Then a plan is
written, the new files are moved beside the old ones, the manifest is replaced, and the old files are removed. Until the
manifest is replaced the old set is what it was; from then on the new one is whole. Of an interrupted repair, the next
one finishes the removing, or else takes back what was moved and begins anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import RECORDSIZE
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from hires_gan.cores import usable_cores
from hires_gan.data.check import WORK, CheckReport, check_shards
from hires_gan.data.folder_lock import LOCK, held
from hires_gan.data.looks import Looks, in_decoders, look_at_huge
from hires_gan.data.manifest import (
    LABEL,
    MANIFEST,
    Manifest,
    ShardEntry,
    files_of,
    index_name,
    labels_name,
    parse_manifest,
    samples_of,
)
from hires_gan.data.scan import Layout, Sample, Scan, expected_index, open_regular, scan_shard
from hires_gan.data.tar_walk import BLOCK, padded
from hires_gan.data.writer import sync_folder, write_atomically
from hires_gan.errors import Failure
from hires_gan.progress import ProgressBar, say
from hires_gan.settings import Settings

_PLAN = "plan.json"
_GENERATION = re.compile(r"-r\d+$")
_SHOWN = 5


class Plan(Settings):
    """What an interrupted repair leaves to the next one; written once everything new is."""

    manifest: Manifest
    """The new one."""
    new: tuple[str, ...]
    """Files that the set did not have."""
    old: tuple[str, ...]
    """Files that the new set does not need."""


class Job(NamedTuple):
    """A shard to be mended."""

    entry: ShardEntry
    """As the manifest has it."""
    source: str
    """The file to read: the shard itself, or another one that has its sha256."""
    name: str
    """The name of a new tar, should there have to be one."""
    above: int
    """Samples with keys up to this one belong to the shards before."""
    looks: Looks | None = None
    """What is known about the images of a huge one."""


class Mended(NamedTuple):
    """What became of a shard."""

    entry: ShardEntry
    """For the new manifest."""
    first: int
    """The smallest key."""
    is_new: bool
    """Whether the tar has a new name."""


@dataclass
class RepairReport:
    """What a repair did."""

    folder: Path
    """The shard folder."""
    before: Manifest
    """As it was found."""
    after: Manifest
    """As it is now."""
    notes: list[str] = field(default_factory=list)
    """What became of each shard that was not whole."""
    extra: list[str] = field(default_factory=list)
    """Files that do not belong to the set, left alone."""

    @property
    def ok(self) -> bool:
        """Whether nothing is left that a check would complain about."""
        return not self.extra

    def lines(self) -> list[str]:
        """Return the report for people."""
        stay, dropped = self.after.count, samples_of(self.before) - self.after.count
        lines = [f"{self.folder}: repaired: {stay:,} samples in {len(self.after.shards):,} shards; {dropped:,} dropped"]
        lines += [f"  {note}" for note in self.notes[:_SHOWN]]
        lines += [f"  and {len(self.notes) - _SHOWN:,} shards more"] if len(self.notes) > _SHOWN else []
        if self.before.digest() == self.after.digest():
            lines.append("  the set's digest is what it was: runs trained on it resume")
        else:
            old, new = self.before.digest()[:12], self.after.digest()[:12]
            lines.append(f"  the set's digest changed from {old} to {new}: runs trained on it will refuse to resume")
        if self.extra:
            few = ", ".join(self.extra[:_SHOWN]) + (", ..." if len(self.extra) > _SHOWN else "")
            lines.append(f"  left alone, because they do not belong to the set: {few}; move them away")
        return lines


@contextlib.contextmanager
def repair_folder(folder: Path) -> Iterator[Path]:
    """Hold `.repair` in a shard folder, alone, after what an interrupted repair left there was finished or taken back.

    Raises:
        UsageError: There is no such folder, or it holds no shard set.
        Failure: Another process holds it, or it cannot be written.
    """
    parse_manifest(folder)  # before anything is made in a folder that is something else
    work = folder / WORK
    with held(work, "repaired", "repair a copy on a file system with locks"):
        try:
            _recover(folder, work)
            yield work
        except OSError as error:
            raise Failure(
                f"{folder} cannot be repaired: {error.filename or folder}: {error.strerror}; run the "
                "same command again when that is mended"
            ) from None
        finally:
            if not (work / _PLAN).exists():  # else the next repair needs it
                shutil.rmtree(work, ignore_errors=True)


def _read_plan(folder: Path) -> Plan | None:
    try:
        return Plan.model_validate_json((folder / WORK / _PLAN).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def names_of_interrupted(folder: Path) -> frozenset[str]:
    """Return the files in a shard folder that belong to an interrupted repair, as far as the manifest lacks them."""
    plan = _read_plan(folder)
    return frozenset() if plan is None else frozenset((*plan.new, *plan.old))


def _recover(folder: Path, work: Path) -> None:
    """Finish an interrupted repair, or take it back; no file that the manifest names is touched."""
    plan = _read_plan(folder)
    if plan is not None:
        manifest = parse_manifest(folder)
        done = manifest == plan.manifest
        _remove(folder, plan.old if done else plan.new, manifest)
        say(f"{folder}: an interrupted repair was {'finished' if done else 'taken back'}")
    for path in work.iterdir():
        if path.name != LOCK and path.name != _PLAN:
            path.unlink()
    (work / _PLAN).unlink(missing_ok=True)


def _remove(folder: Path, names: Sequence[str], manifest: Manifest) -> None:
    kept = {name for shard in manifest.shards for name in files_of(shard.name, manifest.label_names is not None)}
    for name in names:
        if name not in kept:
            (folder / name).unlink(missing_ok=True)
    sync_folder(folder)


def repair_shards(work: Path, found: CheckReport, workers: int | None = None) -> RepairReport:
    """Drop what a check found to be bad.

    Args:
        work: The folder that `repair_folder` gave.
        found: What the check found.
        workers: Processes; None for one per usable core.

    Raises:
        Failure: Nothing would be left, or a file cannot be read or written; then nothing was changed.
    """
    folder, before = found.folder, found.manifest
    jobs = _jobs(found)
    mended = _mended(folder, before, jobs, workers or usable_cores())
    after = _new_manifest(found, mended)
    report = RepairReport(folder, before, after, _notes(found, mended), found.extra)
    _commit(folder, work, before, after)
    return report


def _mended(folder: Path, manifest: Manifest, jobs: Sequence[Job], processes: int) -> dict[str, Mended | None]:
    """Mend every shard that needs it; the images of huge ones are looked at before, by all processes."""
    samples = sum(job.entry.samples for job in jobs)
    with ProgressBar("repair", samples, "samples", lasting=bool(jobs)) as bar:
        huge = look_at_huge(folder, [(job.source, job.entry.name) for job in jobs], len(manifest.columns), processes)
        whole = (job._replace(looks=huge.pop(job.entry.name, None)) for job in jobs)
        one = functools.partial(mend, folder, Layout.of(manifest))
        mended: dict[str, Mended | None] = {}
        with contextlib.closing(in_decoders(one, whole, min(processes, len(jobs)))) as results:
            for job, result in zip(jobs, results, strict=True):
                mended[job.entry.name] = result
                bar.advance(job.entry.samples)
    return mended


def _jobs(found: CheckReport) -> list[Job]:
    """Say what there is to do, in the order of the keys.

    Raises:
        Failure: Something cannot be read, or nothing would be left.
    """
    unreadable = [shard.name for shard in found.shards if shard.verdict == "unreadable"]
    if unreadable:
        problem = found.first["unreadable"][0]
        raise Failure(
            f"{found.folder / problem.file} cannot be read ({problem.detail}): nothing was changed, since its samples "
            "may be whole; mend that, or remove the file to have them dropped"
        )
    entries = {entry.name: entry for entry in found.manifest.shards}
    sources, names, foreign = _sources(found), _new_names(found), _foreign(found)
    jobs, last = [Job(entries[name], source, names[name], -1) for name, source in sources.items()], -1
    for shard in sorted(found.shards, key=lambda shard: shard.first):
        if shard.name in sources or shard.name in foreign:
            continue
        overlaps = shard.good > 0 and shard.first <= last
        if overlaps or shard.verdict in ("rebuild", "rewrite"):
            jobs.append(Job(entries[shard.name], shard.name, names[shard.name], last))
        last = max(last, shard.last)
    return jobs


def _foreign(found: CheckReport) -> set[str]:
    """Return the shards whose files are copies of other shards: their samples belong there."""
    known = {entry.sha256 for entry in found.manifest.shards}
    pairs = zip(found.manifest.shards, found.shards, strict=True)
    return {entry.name for entry, shard in pairs if shard.sha256 != entry.sha256 and shard.sha256 in known}


def _sources(found: CheckReport) -> dict[str, str]:
    """Find lost and changed shards under other names: files that were swapped or renamed have their sha256."""
    by_sha256 = {shard.sha256: shard.name for shard in found.shards if shard.sha256}
    broken = [e for e, shard in zip(found.manifest.shards, found.shards, strict=True) if e.sha256 != shard.sha256]
    sizes = {entry.bytes for entry in broken}
    for name in found.extra:
        path = found.folder / name
        with contextlib.suppress(OSError):
            if name.endswith(".tar") and path.stat().st_size in sizes:
                with open_regular(path) as file:
                    by_sha256.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), name)  # type: ignore[arg-type]
    return {entry.name: by_sha256[entry.sha256] for entry in broken if entry.sha256 in by_sha256}


def _new_names(found: CheckReport) -> dict[str, str]:
    """Choose a name for every shard that may have to be written: shard-000003-r1.tar, the first that is free."""
    with os.scandir(found.folder) as entries:
        taken = {entry.name for entry in entries}
    names = {}
    for shard in found.shards:
        stem = _GENERATION.sub("", shard.name.removesuffix(".tar"))
        for number in itertools.count(1):
            name = f"{stem}-r{number}.tar"
            if taken.isdisjoint(files_of(name, True)):
                break
        names[shard.name] = name
        taken.add(name)
    return names


def mend(folder: Path, layout: Layout, job: Job) -> Mended | None:
    """Write what a shard needs into the folder `.repair`.

    Args:
        folder: The shard folder.
        layout: What the manifest says about every sample.
        job: What to do.

    Returns:
        The shard as it will be, or None if no sample of it can stay.

    Raises:
        Failure: Something cannot be read or written.
    """
    try:
        scan = scan_shard(folder, job.entry, layout, job.source, job.looks)
        samples = [sample for sample in scan.good if int(sample.key) > job.above]
        return _write(folder, layout, job, scan, samples) if samples else None
    except OSError as error:
        raise Failure(
            f"{folder} cannot be repaired: {error.filename or job.name}: {error.strerror or error}; nothing was changed"
        ) from None


def _write(folder: Path, layout: Layout, job: Job, scan: Scan, samples: list[Sample]) -> Mended:
    """Write index and labels, and the tar unless it is right where it is."""
    work, source = folder / WORK, folder / job.source
    whole = scan.intact and not scan.untidy and len(samples) == len(scan.samples)
    stays = whole and job.source == job.entry.name
    name = job.entry.name if stays else job.name
    entry = ShardEntry(name=name, samples=len(samples), bytes=scan.bytes, sha256=scan.sha256)
    if whole and not stays:
        shutil.copyfile(source, work / name)
        _sync(work / name)
    elif not stays:
        entry, samples = _write_tar(source, work / name, samples)
    (work / index_name(name)).write_bytes(expected_index(samples, layout).tobytes())
    _sync(work / index_name(name))
    if layout.classes is not None:
        (work / labels_name(name)).write_bytes(np.array([s.label for s in samples], LABEL).tobytes())
        _sync(work / labels_name(name))
    return Mended(entry, int(samples[0].key), not stays)


def _write_tar(source: Path, target: Path, samples: list[Sample]) -> tuple[ShardEntry, list[Sample]]:
    """Copy samples from one tar to another, headers and all; return also where their files lie in the new one."""
    sha256, position, moved = hashlib.sha256(), 0, []
    with source.open("rb") as old, target.open("wb") as new:

        def put(data: bytes) -> None:
            sha256.update(data)
            new.write(data)

        for sample in samples:
            members = {}
            for column, member in sample.members.items():
                old.seek(member.offset - BLOCK)
                put(old.read(BLOCK + member.size))
                put(bytes(padded(member.size) - member.size))
                members[column] = member._replace(offset=position + BLOCK)
                position = members[column].end
            moved.append(Sample(sample.key, members, sample.crc32, sample.label))
        end = -(-(position + 2 * BLOCK) // RECORDSIZE) * RECORDSIZE
        put(bytes(end - position))
        new.flush()
        os.fsync(new.fileno())
    return ShardEntry(name=target.name, samples=len(moved), bytes=end, sha256=sha256.hexdigest()), moved


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _new_manifest(found: CheckReport, mended: dict[str, Mended | None]) -> Manifest:
    entries = {entry.name: entry for entry in found.manifest.shards}
    shards: list[tuple[int, ShardEntry]] = []
    for shard in found.shards:
        if shard.name in mended:
            result = mended[shard.name]
            if result is not None:
                shards.append((result.first, result.entry))
        elif shard.verdict == "whole":
            shards.append((shard.first, entries[shard.name]))
    if not shards:
        raise Failure(
            f"no sample of {found.folder} would be left: nothing was changed; copy the set again, or prepare the "
            "images again"
        )
    ordered = tuple(entry for _, entry in sorted(shards, key=lambda one: one[0]))
    count = sum(entry.samples for entry in ordered)
    return found.manifest.model_copy(update={"shards": ordered, "count": count})


def _notes(found: CheckReport, mended: dict[str, Mended | None]) -> list[str]:
    """Say what became of every shard that was not whole."""
    notes = []
    for entry, shard in zip(found.manifest.shards, found.shards, strict=True):
        if shard.name not in mended:
            if shard.verdict != "whole":
                why = "is lost" if shard.verdict == "lost" else "is a copy of another one"
                notes.append(f"{entry.name} {why}: dropped, with {entry.samples:,} samples")
            continue
        result = mended[shard.name]
        if result is None:
            notes.append(f"{entry.name} has no sample that can stay: dropped, with {entry.samples:,} samples")
        elif result.is_new:
            notes.append(
                f"{entry.name} is now {result.entry.name}: {result.entry.samples:,} of {entry.samples:,} samples"
            )
        else:
            notes.append(f"{entry.name} stays as it is: what lies beside it was made anew from it")
    return notes


def _commit(folder: Path, work: Path, before: Manifest, after: Manifest) -> None:
    """Put the new files and the new manifest into place; see the module's description."""
    had, needed = (
        {name for shard in manifest.shards for name in files_of(shard.name, manifest.label_names is not None)}
        for manifest in (before, after)
    )
    moved = sorted(path.name for path in work.iterdir() if path.name != LOCK)
    plan = Plan(manifest=after, new=tuple(sorted(set(moved) - had)), old=tuple(sorted(had - needed)))
    (work / MANIFEST).write_text(after.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _sync(work / MANIFEST)
    write_atomically(work / _PLAN, plan.model_dump_json().encode())
    for name in moved:
        (work / name).replace(folder / name)
    sync_folder(folder)
    if after != before:
        (work / MANIFEST).replace(folder / MANIFEST)
        sync_folder(folder)
    _remove(folder, plan.old, after)
    (work / _PLAN).unlink()


def check_and_repair(folder: Path, workers: int | None, report: Path | None, tell: Callable[[str], None]) -> bool:
    """Check a shard set, and mend what is wrong.

    Args:
        folder: The shard folder.
        workers: Processes; None for one per usable core.
        report: A CSV file for all problems.
        tell: Takes the lines for people.

    Returns:
        Whether a check would now find nothing wrong.

    Raises:
        UsageError: There is no such folder, or it holds no shard set.
        Failure: Something cannot be read or written, or nothing would be left.
    """
    with repair_folder(folder) as work:
        found = check_shards(folder, workers, report, repairing=True)
        for line in found.lines():
            tell(line)
        if not set(found.counts) - {"extra"}:
            tell(f"{folder}: nothing to repair")
            return found.ok
        result = repair_shards(work, found, workers)
    for line in result.lines():
        tell(line)
    return result.ok
