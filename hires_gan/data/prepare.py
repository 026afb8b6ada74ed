"""`hires-gan prepare`: images of any kind -> a finished shard set, in parallel, and continued after a kill.

Each shard is made of a fixed range of the images and of nothing else, so several processes, on machines that share a
file system, can make one set: `claims` says who makes which shard, `shard_records` what is finished. Whoever finds that
nothing is missing writes the manifest; if two do, they write the same.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hires_gan.cores import usable_cores
from hires_gan.data.claims import Claims
from hires_gan.data.command import Command, PrepareOptions, command, read_command
from hires_gan.data.conversion import Converted, convert_all
from hires_gan.data.manifest import MANIFEST, Manifest, read_manifest
from hires_gan.data.pairs import Inputs, Item, refuse_unmatched
from hires_gan.data.ranks import ALONE, Rank
from hires_gan.data.report import REJECTED, PrepareReport
from hires_gan.data.shard_records import Records, ShardRecord
from hires_gan.data.sources import Listing, list_sources
from hires_gan.data.working_folder import BEGUN, WORK, clear, look_afresh, working_folder
from hires_gan.data.writer import (
    ShardWriter,
    create_whole,
    disk_failure,
    publish_shard,
    write_atomically,
    write_manifest,
)
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar, say

__all__ = ["PrepareOptions", "PrepareReport", "Rank", "prepare"]

COMMAND = "prepare.json"
_KEY_DIGITS = 9
_TRIES = 10


class _OvertakenError(Exception):
    """Another rank finished the set, or gave it up, while this one was at work."""


@dataclass
class _Job:
    """One process's part in making a set."""

    out: Path
    inputs: Inputs
    listing: Listing
    options: PrepareOptions
    rank: Rank
    records: Records
    claims: Claims
    made: int = field(default=0)

    @classmethod
    def begin(cls, out: Path, inputs: Inputs, listing: Listing, options: PrepareOptions, rank: Rank) -> _Job:
        shards = -(-len(listing.items) // options.images_per_shard)
        records = Records(out, shards, listing.labels is not None)
        return cls(out, inputs, listing, options, rank, records, Claims(out / WORK, rank))

    def items(self, number: int) -> list[Item]:
        """The images, or pairs, of a shard."""
        first = number * self.options.images_per_shard
        return self.listing.items[first : first + self.options.images_per_shard]

    def count(self, numbers: Sequence[int]) -> int:
        """How many images, or pairs, these shards are made of."""
        return sum(len(self.items(number)) for number in numbers)

    def key(self, place: int, sample: int) -> str:
        """The key of an item's sample, by the item's place in the listing."""
        room = self.options.keys_per_image
        digits = max(_KEY_DIGITS, len(str(len(self.listing.items) * room - 1)))
        return f"{place * room + sample:0{digits}d}"


def prepare(
    sources: Sequence[str] | Mapping[str, str], out: Path, options: PrepareOptions, rank: Rank = ALONE
) -> PrepareReport:
    """Turn images into a shard set; started again with the same arguments, go on where it was.

    Args:
        sources: Folders, archives, shard sets or patterns; see `list_sources`. For pairs, whose pictures have names:
            the source of each picture by its name, or sources that hold all of them and `options.columns`.
        out: The folder to write; new, empty, or left by an interrupted start.
        options: What to make of the images.
        rank: Which of several processes this is that make the set together.

    Raises:
        UsageError: The sources or options cannot be, or `out` belongs to another command or other files.
        Failure: Too many images were rejected, the disk is full, a worker was killed, or an archive is damaged.
    """
    start = time.monotonic()
    inputs = Inputs.of(sources, options.columns)
    if (out / MANIFEST).is_file():
        return _already_complete(inputs, out, options, rank, start)
    _refuse_foreign(out)
    job: _Job | None = None
    with working_folder(out, rank.alone) as work:
        try:
            if not _is_finished(out):
                listing = list_sources(inputs, options.labels, work / "scratch")
                refuse_unmatched(inputs, listing.items, options.max_rejected)
                _claim(work, command(inputs, options, listing), rank)
                job = _Job.begin(out, inputs, listing, options, rank)
                return _work(job, start)
        except _OvertakenError:
            pass
        except OSError as error:  # the folder that this one works in may just have been cleared up by another rank
            if not _is_finished(out):
                given_up = job is not None and not (work / BEGUN).exists()
                raise (_ended(out) if given_up else disk_failure(out, _still_needed(job), error)) from None
        return _already_complete(inputs, out, options, rank, start, job.made if job else 0)


def _is_finished(out: Path) -> bool:
    with contextlib.suppress(OSError):
        look_afresh(out)
    return (out / MANIFEST).is_file()


def _already_complete(
    inputs: Inputs, out: Path, options: PrepareOptions, rank: Rank, start: float, made: int = 0
) -> PrepareReport:
    """Answer for a finished folder: the same command has nothing to do, any other must not overwrite it."""
    earlier = read_command(out / COMMAND)
    now = command(inputs, options, None)
    if earlier is None or (changed := earlier.differences(now, contents=False)):
        why = "; ".join(changed) if earlier else f"it has no {COMMAND} to compare with"
        raise UsageError(f"{out} holds a finished shard set of another command ({why}): choose another --out")
    clear(out)  # a kill between the manifest and the clearing up leaves it
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
        rank=rank,
        made=made,
    )


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds anything but what an interrupted or failed start leaves."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: --out must be a folder")
    if not out.exists() or (out / WORK).is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if path.name != REJECTED)
    if others and not {MANIFEST, WORK} & {*others}:  # which another rank may have made in between
        raise UsageError(f"{out} holds other files ({', '.join(others[:3])}): choose a new or an empty folder")


def _claim(work: Path, now: Command, rank: Rank) -> None:
    """Record the command, or check that an interrupted start, or another rank, has the same.

    Raises:
        UsageError: It is another one, or the images are not the same here.
        _OvertakenError: The set was finished in between.
    """
    for _ in range(_TRIES):  # a rank that fails to list its sources takes the folder away if it is empty
        try:
            work.mkdir(parents=True, exist_ok=True)
            create_whole(work / BEGUN, (now.model_dump_json(indent=1) + "\n").encode())
            break
        except FileNotFoundError:
            continue
    if _is_finished(work.parent):
        raise _OvertakenError
    earlier = read_command(work / BEGUN)
    if earlier is None:
        raise _ended(work.parent)
    changed = earlier.differences(now, contents=True)
    if changed:
        late = "if the images are still being copied, wait until every machine sees all of them; "
        syncing = not rank.alone and earlier.sources == now.sources and earlier.options == now.options
        raise UsageError(
            f"{work.parent} was begun by another command ({'; '.join(changed)}): {late if syncing else ''}"
            "repeat that one to continue, or choose another --out"
        )


def _ended(out: Path) -> Failure:
    return Failure(f"{out} was given up by another process of this command: see what that one said, and start again")


def _work(job: _Job, start: float) -> PrepareReport:
    """Make shards until there is none left to take, and finish the set if none is missing."""
    missing = job.records.look()
    done = job.count(job.records.finished)
    if done:
        say(f"continuing in {job.out}: {done:,} of {len(job.listing.items):,} {job.inputs.noun} are done")
    if job.claims.others:
        worlds = " and ".join(map(str, job.claims.others))
        say(f"what an earlier start with --world-size {worlds} left half-done is made again: end it if it still runs")
    while missing and _make_shards(job, missing):
        missing = job.records.look()
    holders = job.claims.holders(missing)
    if missing:
        _check_going_on(job)
    else:
        _finish(job)
    return PrepareReport(
        out=job.out,
        images=len(job.listing.items),
        samples=job.records.samples,
        rejected=len(job.records.rejected),
        counts=job.records.counts,
        passed_over=job.listing.passed_over,
        shards=len(job.records.entries),
        bytes=job.records.bytes,
        seconds=time.monotonic() - start,
        rank=job.rank,
        made=job.made,
        missing=len(missing),
        holders=holders,
        noun=job.inputs.noun,
    )


def _make_shards(job: _Job, missing: Sequence[int]) -> bool:
    """Make those of the missing shards that nobody else is making; False if there is none."""
    taken: deque[int] = deque()
    images = job.count(missing)
    cores = job.options.processes or max(1, usable_cores() // job.rank.neighbours)
    options, items = job.options.picture_options(), _take(job, missing, taken)
    converted = convert_all(options, job.inputs.names, items, min(cores, images))
    title, total = ("prepare", images) if job.rank.alone else (f"prepare, {job.rank}", None)
    any_made = False
    try:
        with contextlib.closing(converted) as results, contextlib.ExitStack() as stack:
            for first in results:
                if not any_made:
                    bar = stack.enter_context(ProgressBar(title, total, job.inputs.noun))
                    any_made = True
                number = taken.popleft()
                rest = itertools.islice(results, len(job.items(number)) - 1)
                _make_shard(job, number, itertools.chain([first], rest), bar)
    finally:
        job.claims.give_all_back()
    return any_made


def _take(job: _Job, missing: Sequence[int], taken: deque[int]) -> Iterator[Item]:
    """Claim one shard after another, as the workers come to it, and yield what it is made of."""
    for number in job.claims.order(missing):
        if not job.claims.take(number):
            continue
        if job.records.has(number):  # it was made between the look and the claim
            job.claims.give_back(number)
            continue
        job.records.drop(number)
        taken.append(number)
        yield from job.items(number)


def _make_shard(job: _Job, number: int, results: Iterator[Converted], bar: ProgressBar) -> None:
    """Write a shard and its record, unless somebody else was faster."""
    labels, options = job.listing.labels, job.options
    rejected: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    columns, begin = options.shard_columns(job.inputs.names), number * options.images_per_shard
    with ShardWriter(job.out, number, columns, labels is not None, begin) as writer:
        # zip would draw one result too many at the end of the images
        for place, converted in enumerate(results, begin):
            for index, sample in enumerate(converted.samples):
                writer.write(sample, labels[place] if labels is not None else None, job.key(place, index))
            if converted.rejected is not None:
                rejected.append(converted.rejected)
            counts += converted.counts
            bar.advance()
        entry = writer.seal() if writer.count else None
        record = ShardRecord(entry=entry, rejected=tuple(rejected), counts=dict(counts), attempt=writer.attempt)
        _check_copies(job, job.items(number))
        if job.records.add(number, record):
            _check_going_on(job)
            if entry is not None:
                publish_shard(job.out, entry.name, labels is not None, writer.attempt)
            job.made += 1
    job.claims.give_back(number)


def _check_copies(job: _Job, items: Sequence[Item]) -> None:
    """Refuse rejections whose cause is that another process took the decompressed archives away."""
    scratch = job.out / WORK / "scratch"
    paths = {Path(file.path) for item in items for file in item if file is not None}
    gone = [path for path in paths if path.is_relative_to(scratch) and not path.exists()]
    if gone:
        _check_going_on(job)
        raise Failure(f"{gone[0]}, the copy of a compressed tar, is gone: run the same command again to continue")


def _check_going_on(job: _Job) -> None:
    """End the work if another rank finished the set, or gave it up: what it settled must stay as it is."""
    if _is_finished(job.out):
        raise _OvertakenError
    if not (job.out / WORK / BEGUN).exists():
        raise _ended(job.out)


def _still_needed(job: _Job | None) -> int | None:
    """Estimate the bytes of the missing shards from those that are there."""
    done = job.count(job.records.finished) if job else 0
    return job.records.bytes * (len(job.listing.items) - done) // done if job and done else None


def _finish(job: _Job) -> None:
    """Write the rejections and, if they are few enough, the manifest.

    Raises:
        Failure: Too many images were rejected, or all.
    """
    out, options = job.out, job.options
    rejected, images, noun = job.records.rejected, len(job.listing.items), job.inputs.noun
    if rejected:
        write_atomically(out / REJECTED, _csv(rejected))
    else:
        (out / REJECTED).unlink(missing_ok=True)
    reasons = f"the reasons stand in {out / REJECTED}"
    if not job.records.samples:
        clear(out)
        raise Failure(f"none of the {images} {noun} could be used: {reasons}")
    if len(rejected) > options.max_rejected * images:
        raise Failure(
            f"{len(rejected)} of {images} {noun} were rejected, more than the share of {options.max_rejected:g} that "
            f"--max-rejected allows: {reasons}; run the same command with a larger share to finish without them"
        )
    write_atomically(out / COMMAND, (out / WORK / BEGUN).read_bytes())
    manifest = Manifest(
        resolution=options.resolution,
        count=job.records.samples,
        columns=options.shard_columns(job.inputs.names),
        filter=options.filter,
        label_names=job.listing.label_names,
        shards=job.records.entries,
    )
    write_manifest(out, manifest)
    clear(out)


def _csv(rows: Sequence[tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "reason"))
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
