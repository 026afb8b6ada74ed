"""One shard set of a run: sample numbers to rows, rows to bytes, and what is done about bad ones."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hires_gan.data.decoders import Undecodable, decode_into
from hires_gan.data.domains import Source
from hires_gan.data.heartbeat import nobody
from hires_gan.data.lanes import LaneOrder
from hires_gan.data.order import Order
from hires_gan.data.replacement import CorruptRow, Report
from hires_gan.data.shards import CorruptSample
from hires_gan.errors import Failure
from hires_gan.randomness import Purpose, RandomSource

_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt to read, where the file system may recover."""
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}

Use = Callable[[int, bytes], None]
"""Takes the number of a domain of the source and the bytes of its image; raises `Undecodable` if they are none."""


class StreamReader:
    """One source in an order of its own: plain images, one domain of unpaired data, or pairs.

    A sample of pairs is one thing: its images are flipped together, and replaced together if one of them is corrupt.

    Args:
        source: What is read.
        order: The row of each sample.
        number: Tells the streams of a run apart; each has its own flips.
        random: The run's.
        mirror: Whether every other sample is flipped.
        allowed: How many corrupt rows are passed over before it gives up.
    """

    def __init__(
        self,
        source: Source,
        order: Order | LaneOrder,
        number: int,
        random: RandomSource,
        mirror: bool,
        allowed: int,
    ) -> None:
        self.source, self.order, self.number = source, order, number
        self.shards, self.random, self.mirror, self.allowed = source.shards, random, mirror, allowed
        self._corrupt: dict[tuple[int, str], CorruptRow] = {}
        self._rows: set[int] = set()

    def fill(self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None]) -> Report:
        """Decode samples number start, start + step, ... of the range into their places.

        Args:
            images: uint8 `[domains, len(samples), r, r, 3]`, written in place.
            samples: Sample numbers of the run.
            start: Position of the first one in the range.
            step: Distance to the next one.
            reading: Told of every row before it is read.

        Returns:
            What was replaced, and why.

        Raises:
            Failure: Naming the sample that cannot be read for another reason than being corrupt.
        """
        report = Report()
        mine = samples[start::step]
        columns, side = self.source.stored(images.shape[2])
        for place, (sample, flip) in enumerate(zip(mine, self.flips(mine), strict=True)):
            use = functools.partial(_decode, images[:, start + place * step], flip, side)
            report.add(self.show(sample, columns, use, reading))
        return report

    def show(self, sample: int, columns: tuple[str, ...], use: Use, reading: Callable[[int], None]) -> Report:
        """Do something with the images of a sample, or with those of the next good row if one of them is corrupt.

        Args:
            sample: Its number in the run.
            columns: What is read of it: one for each domain.
            use: Called for each domain in turn; once more for all of them where a row turns out corrupt.
            reading: Told of every row before it is read.

        Returns:
            What was replaced, and why.

        Raises:
            Failure: Naming the sample, if it cannot be read for another reason than being corrupt.
        """
        report = Report()
        row = self.order.row(sample)
        for step in range(len(self.shards)):
            shown = (row + step) % len(self.shards)
            corrupt = self._try(sample, shown, columns, use, reading, report)
            if corrupt is None:
                if step:
                    report.shown[self.number, sample] = shown
                return report
            report.corrupt.append(corrupt)
            if len(self._rows) > self.allowed:
                report.corrupt += self._corrupt.values()
                report.given_up = True
                return report
        raise Failure(f"no sample in {self.shards.folder} can be shown; the last of them: {report.corrupt[-1].problem}")

    def fetch(
        self, sample: int, columns: tuple[str, ...], check: Callable[[bytes], None]
    ) -> tuple[tuple[bytes, ...], Report]:
        """The bytes of a sample, or of the next good row: what `show` would use.

        Args:
            sample: Its number in the run.
            columns: What is read of it: one for each domain.
            check: Raises `Undecodable` if the bytes are no image that can be shown.

        Returns:
            The bytes, one file for each domain, of no use if there are too many corrupt rows; and what was replaced.

        Raises:
            Failure: As `show`.
        """
        files = [b""] * len(columns)

        def use(domain: int, data: bytes) -> None:
            check(data)
            files[domain] = data

        report = self.show(sample, columns, use, nobody)
        return tuple(files), report

    def label(self, sample: int, report: Report) -> int:
        """The class of what is shown as a sample."""
        return self.shards.label(report.shown.get((self.number, sample), self.order.row(sample)))

    def flips(self, samples: range) -> list[bool]:
        """Whether each sample is flipped from left to right."""
        if not self.mirror or not samples:
            return [False] * len(samples)
        numbers = torch.arange(samples.start, samples.stop, samples.step)
        words = self.random.bits(Purpose.MIRROR, numbers, self.number + 1)[:, self.number]
        flips: list[bool] = (words >= 2**31).tolist()
        return flips

    def where(self, row: int) -> str:
        """A row and its shard, for people; known without reading anything, since the file system may hang."""
        first = 0
        for shard in self.shards.manifest.shards:
            first += shard.samples
            if row < first:
                return f"row {row}, in {self.shards.folder / shard.name}"
        raise IndexError(f"row {row} of a set of {first} samples")

    def _try(
        self,
        sample: int,
        row: int,
        columns: tuple[str, ...],
        use: Use,
        reading: Callable[[int], None],
        report: Report,
    ) -> CorruptRow | None:
        """Use a row, or say why it is corrupt; what was found corrupt once is not read again."""
        known = next((found for column in columns if (found := self._corrupt.get((row, column)))), None)
        if known is not None:
            return known
        reading(row)
        for domain, column in enumerate(columns):
            try:
                use(domain, self._read(row, column, report))
            except (CorruptSample, Undecodable) as error:
                return self._remember(row, column, error)
            except (Failure, OSError) as error:
                raise Failure(f"sample {sample} of the run ({self.where(row)}): {error}") from error
        return None

    def _remember(self, row: int, column: str, error: Failure) -> CorruptRow:
        shard = self.shards.locate(row, column).path.name
        name, problem = f"{shard}, sample {self.shards.key_of(row)}", str(error)
        if not isinstance(error, CorruptSample):  # which names its place itself
            # By where the set is: a copy in a cache is another one's tomorrow.
            problem = f"{self.shards.folder}/{name}, column '{column}': {problem}"
        self._rows.add(row)
        corrupt = CorruptRow(row, name, problem, str(self.shards.folder), len(self.shards))
        return self._corrupt.setdefault((row, column), corrupt)

    def _read(self, row: int, column: str, report: Report) -> bytes:
        """The bytes, after a few more attempts where the file system says that it failed."""
        for pause in _PAUSES:
            try:
                return self.shards.read(row, column)
            except (Failure, OSError) as error:
                fault = _passing_fault(error)
                if fault is None:
                    raise
                report.retries.append(f"{self.where(row)} could not be read ({fault.strerror}); trying again")
            time.sleep(pause)
            self.shards.close_files()  # a stale handle stays stale
        return self.shards.read(row, column)


def _decode(images: Tensor, flip: bool, side: int, domain: int, data: bytes) -> None:
    decode_into(data, images[domain], flip, side)


def _passing_fault(error: BaseException) -> OSError | None:
    """The fault of the file system behind an error, if it is of a kind that may pass."""
    fault = error if isinstance(error, OSError) else error.__context__
    return fault if isinstance(fault, OSError) and fault.errno in _PASSING else None
