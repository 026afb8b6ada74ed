"""`hires-gan prepare`: images of any kind -> a finished shard set, in parallel, and continued after a kill."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hires_gan.cores import usable_cores
from hires_gan.data.command import Command, PrepareOptions, command, read_command
from hires_gan.data.conversion import Converted, image_workers
from hires_gan.data.manifest import MANIFEST, Manifest, ShardEntry, index_name, labels_name, read_manifest
from hires_gan.data.sources import Listing, list_sources
from hires_gan.data.working_folder import BEGUN, WORK, working_folder
from hires_gan.data.writer import ShardWriter, disk_failure, shard_name, write_atomically, write_manifest
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar, say
from hires_gan.settings import Settings

__all__ = ["PrepareOptions", "PrepareReport", "prepare"]

COMMAND = "prepare.json"
REJECTED = "rejected.csv"

_NOTES = {
    "kept": "kept their very bytes",
    "oriented": "turned upright as their EXIF data says",
    "profile_converted": "converted to sRGB by their ICC profile",
    "profile_ignored": "had an ICC profile that cannot be used: their colours were taken as sRGB",
    "alpha_flattened": "had transparent parts, laid over white",
    "first_frame": "had several frames: the first was taken",
    "enlarged": "were smaller than the resolution, and enlarged",
}


@dataclass(frozen=True)
class PrepareReport:
    """What a `prepare` did."""

    out: Path
    """The shard folder."""
    images: int
    """Images that the sources hold."""
    samples: int
    """Samples in the shards."""
    rejected: int
    """Images that could not be used."""
    counts: Counter[str]
    """What was done to how many images (or samples)."""
    passed_over: Counter[str]
    """Endings of the files that are no images."""
    shards: int
    """Shards written in all."""
    bytes: int
    """Of all shards."""
    seconds: float
    """That this command took."""
    was_complete: bool = False
    """Whether there was nothing left to do."""

    def lines(self) -> list[str]:
        """Return the summary for people."""
        size = f"{self.samples:,} samples in {self.shards:,} shards, {self.bytes / 2**20:,.1f} MiB"
        if self.was_complete:
            return [f"{self.out} is complete already: {size}; nothing was done"]
        notes = [f"  {self.counts[name]:,} {note}" for name, note in _NOTES.items() if self.counts[name]]
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in self.passed_over.most_common())
            notes.append(f"  files that are no images were passed over: {kinds}")
        if self.rejected:
            notes.append(f"  {self.rejected:,} rejected: the reasons stand in {self.out / REJECTED}")
        return [f"{self.out}: {self.images:,} images -> {size}, in {self.seconds:.0f} s", *notes]


class ShardRecord(Settings):
    """What is known about a finished shard until the manifest is written."""

    entry: ShardEntry | None
    """None if every image of it was rejected."""
    rejected: tuple[tuple[str, str], ...]
    """Path and reason of each rejected image."""
    counts: dict[str, int]
    """What was done to how many images."""


@dataclass
class _Progress:
    """The shards that are finished, in order."""

    records: list[ShardRecord] = field(default_factory=list)

    @property
    def entries(self) -> tuple[ShardEntry, ...]:
        return tuple(record.entry for record in self.records if record.entry is not None)

    @property
    def samples(self) -> int:
        return sum(entry.samples for entry in self.entries)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    @property
    def rejected(self) -> list[tuple[str, str]]:
        return [one for record in self.records for one in record.rejected]

    @property
    def counts(self) -> Counter[str]:
        return sum((Counter(record.counts) for record in self.records), Counter())


def prepare(sources: Sequence[str], out: Path, options: PrepareOptions) -> PrepareReport:
    """Turn images into a shard set; started again with the same arguments, go on where it was.

    Args:
        sources: Folders, archives, shard sets or patterns; see `list_sources`.
        out: The folder to write; new, empty, or left by an interrupted start.
        options: What to make of the images.

    Raises:
        UsageError: The sources or options cannot be, or `out` belongs to another command or other files.
        Failure: Too many images were rejected, the disk is full, a worker was killed, or an archive is damaged.
    """
    start = time.monotonic()
    if (out / MANIFEST).is_file():
        return _already_complete(sources, out, options, start)
    _refuse_foreign(out)
    with working_folder(out) as work:
        if (out / MANIFEST).is_file():  # another process finished it in between
            return _already_complete(sources, out, options, start)
        try:
            listing = list_sources(sources, options.labels, work / "scratch")
            _claim(work, command(sources, options, listing))
            progress = _make_shards(out, listing, options)
            _finish(out, listing, options, progress)
        except OSError as error:
            raise disk_failure(out, None, error) from None
    return _report(out, listing, progress, start)


def _already_complete(sources: Sequence[str], out: Path, options: PrepareOptions, start: float) -> PrepareReport:
    """Answer for a finished folder: the same command has nothing to do, any other must not overwrite it."""
    earlier = read_command(out / COMMAND)
    now = command(sources, options, None)
    if earlier is None or (changed := earlier.differences(now, contents=False)):
        why = "; ".join(changed) if earlier else f"it has no {COMMAND} to compare with"
        raise UsageError(f"{out} holds a finished shard set of another command ({why}): choose another --out")
    shutil.rmtree(out / WORK, ignore_errors=True)  # a kill between the manifest and the clearing up leaves it
    manifest = read_manifest(out)
    size = sum(shard.bytes for shard in manifest.shards)
    return PrepareReport(
        out=out,
        images=earlier.images,
        samples=manifest.count,
        rejected=0,
        counts=Counter(),
        passed_over=Counter(),
        shards=len(manifest.shards),
        bytes=size,
        seconds=time.monotonic() - start,
        was_complete=True,
    )


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds anything but what an interrupted or failed start leaves."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: --out must be a folder")
    if not out.exists() or (out / WORK).is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if path.name != REJECTED)
    if others:
        raise UsageError(f"{out} holds other files ({', '.join(others[:3])}): choose a new or an empty folder")


def _claim(work: Path, now: Command) -> None:
    """Record the command, or check that an interrupted one was the same."""
    earlier = read_command(work / BEGUN)
    if earlier is None:
        write_atomically(work / BEGUN, (now.model_dump_json(indent=1) + "\n").encode())
        return
    changed = earlier.differences(now, contents=True)
    if changed:
        raise UsageError(
            f"{work.parent} was begun by another command ({'; '.join(changed)}): "
            "repeat that one to continue, or choose another --out"
        )


def _make_shards(out: Path, listing: Listing, options: PrepareOptions) -> _Progress:
    """Write the shards that are missing."""
    per_shard = options.images_per_shard
    progress = _Progress(_finished_records(out, listing, per_shard))
    done = min(len(progress.records) * per_shard, len(listing.references))
    if done:
        say(f"continuing in {out}: {done:,} of {len(listing.references):,} images are done")
    rest = listing.references[done:]
    workers = image_workers(options.picture_options(), min(options.processes or usable_cores(), len(rest) or 1))
    with ProgressBar("prepare", len(rest)) as bar, contextlib.closing(workers.map(rest)) as results:
        for first in range(done, len(listing.references), per_shard):
            try:
                record = _make_shard(out, listing, options, progress, first, results, bar)
            except OSError as error:
                raise disk_failure(out, _still_needed(progress, listing, first), error) from None
            progress.records.append(record)
    return progress


def _make_shard(
    out: Path,
    listing: Listing,
    options: PrepareOptions,
    progress: _Progress,
    first: int,
    results: Iterator[Converted],
    bar: ProgressBar,
) -> ShardRecord:
    """Write the shard of the images from `first` on, and its record."""
    number = len(progress.records)
    labels = listing.labels
    rejected: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    references = listing.references[first : first + options.images_per_shard]
    with ShardWriter(out, number, options.columns, labels is not None, progress.samples) as writer:
        # zip would draw one result too many at the end of the references
        for place, converted in enumerate(itertools.islice(results, len(references))):
            for sample in converted.samples:
                writer.write(sample, labels[first + place] if labels is not None else None)
            if converted.rejected is not None:
                rejected.append((references[place].shown, converted.rejected))
            counts += converted.counts
            bar.advance()
        entry = writer.finish() if writer.count else None
    record = ShardRecord(entry=entry, rejected=tuple(rejected), counts=dict(counts))
    write_atomically(_record_path(out, number), record.model_dump_json().encode())
    return record


def _still_needed(progress: _Progress, listing: Listing, done: int) -> int | None:
    """Estimate the bytes of the missing shards from those that are there."""
    return progress.bytes * (len(listing.references) - done) // done if done else None


def _record_path(out: Path, number: int) -> Path:
    return out / WORK / f"{shard_name(number)}.json"


def _finished_records(out: Path, listing: Listing, per_shard: int) -> list[ShardRecord]:
    """Read the records of an earlier start, up to the first shard that is not whole."""
    records = []
    for number in range(-(-len(listing.references) // per_shard)):
        try:
            record = ShardRecord.model_validate_json(_record_path(out, number).read_bytes())
        except (FileNotFoundError, ValidationError):
            break
        if record.entry is not None and not _is_whole(out, record.entry, listing.labels is not None):
            break
        records.append(record)
    return records


def _is_whole(out: Path, entry: ShardEntry, labelled: bool) -> bool:
    beside = [index_name(entry.name), *([labels_name(entry.name)] if labelled else [])]
    tar = out / entry.name
    return tar.is_file() and tar.stat().st_size == entry.bytes and all((out / name).is_file() for name in beside)


def _finish(out: Path, listing: Listing, options: PrepareOptions, progress: _Progress) -> None:
    """Write the rejections and, if they are few enough, the manifest.

    Raises:
        Failure: Too many images were rejected, or all.
    """
    rejected, images = progress.rejected, len(listing.references)
    (out / REJECTED).unlink(missing_ok=True)
    if rejected:
        write_atomically(out / REJECTED, _csv(rejected))
    reasons = f"the reasons stand in {out / REJECTED}"
    if not progress.samples:
        (out / WORK / BEGUN).unlink()
        raise Failure(f"none of the {images} images could be used: {reasons}")
    if len(rejected) > options.max_rejected * images:
        raise Failure(
            f"{len(rejected)} of {images} images were rejected, more than the share of {options.max_rejected:g} that "
            f"--max-rejected allows: {reasons}; run the same command with a larger share to finish without them"
        )
    shutil.copyfile(out / WORK / BEGUN, out / COMMAND)
    manifest = Manifest(
        resolution=options.resolution,
        count=progress.samples,
        columns=options.columns,
        filter=options.filter,
        label_names=listing.label_names,
        shards=progress.entries,
    )
    write_manifest(out, manifest)


def _csv(rows: Sequence[tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "reason"))
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _report(out: Path, listing: Listing, progress: _Progress, start: float) -> PrepareReport:
    return PrepareReport(
        out=out,
        images=len(listing.references),
        samples=progress.samples,
        rejected=len(progress.rejected),
        counts=progress.counts,
        passed_over=listing.passed_over,
        shards=len(progress.entries),
        bytes=progress.bytes,
        seconds=time.monotonic() - start,
    )
