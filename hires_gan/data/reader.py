"""Sample numbers to rows, and rows to bytes and pixels: the order, the shards and what is done about bad ones."""

from __future__ import annotations

import copy
import errno
import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hires_gan.data.decoders import Undecodable, decode_into
from hires_gan.data.manifest import side
from hires_gan.data.order import Order
from hires_gan.data.replacement import CorruptRow, Report
from hires_gan.data.shards import IMAGE, CorruptSample, ShardSet
from hires_gan.errors import Failure
from hires_gan.randomness import Purpose, RandomSource

_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt to read, where the file system may recover."""
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}


def _nobody(row: int) -> None:
    pass


class SampleReader:
    """Sample numbers to pixels: the order, the shards and the decoder in one place, handed to every worker.

    Args:
        shards: The images.
        seed: The run's seed.
        mirror: Whether every other image is flipped.
        allowed: How many corrupt rows are passed over before it gives up.
    """

    def __init__(self, shards: ShardSet, seed: int, mirror: bool, allowed: int = 0) -> None:
        self.shards, self.mirror, self.allowed = shards, mirror, allowed
        self.order = Order(seed, len(shards))
        self.random = RandomSource(seed)
        self._corrupt: dict[tuple[int, str], CorruptRow] = {}
        self._rows: set[int] = set()

    def fill(
        self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None] = _nobody
    ) -> Report:
        """Decode samples number start, start + step, ... of the range into their places.

        Args:
            images: uint8 `[len(samples), r, r, 3]`, written in place.
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
        if not mine:
            return report
        flips, column = self.flips(mine), self.column(images.shape[1])
        stored = self.side(column)
        for place, (sample, flip) in enumerate(zip(mine, flips, strict=True)):
            use = functools.partial(decode_into, out=images[start + place * step], mirror=flip, side=stored)
            report.add(self.show(sample, self.order.row(sample), column, use, reading))
        return report

    def show(
        self,
        sample: int,
        row: int,
        column: str,
        use: Callable[[bytes], None],
        reading: Callable[[int], None] = _nobody,
    ) -> Report:
        """Do something with the bytes of a sample, or with those of the next good row if its own is corrupt.

        Args:
            sample: Its number in the run.
            row: Its row in the set.
            column: What is read of it.
            use: Takes the bytes; raises `Undecodable` if they are no image that can be shown.
            reading: Told of every row before it is read.

        Returns:
            What was replaced, and why.

        Raises:
            Failure: Naming the sample, if it cannot be read for another reason than being corrupt.
        """
        report = Report()
        for step in range(len(self.shards)):
            shown = (row + step) % len(self.shards)
            corrupt = self._try(sample, shown, column, use, reading, report)
            if corrupt is None:
                if step:
                    report.shown[sample] = shown
                return report
            report.corrupt.append(corrupt)
            if len(self._rows) > self.allowed:
                report.corrupt += self._corrupt.values()
                report.given_up = True
                return report
        raise Failure(f"no sample in {self.shards.folder} can be shown; the last of them: {report.corrupt[-1].problem}")

    def fetch(self, sample: int, row: int, column: str, check: Callable[[bytes], None]) -> tuple[bytes, Report]:
        """The bytes of a sample, or of the next good row: what `show` would use.

        Args:
            sample: Its number in the run.
            row: Its row in the set.
            column: What is read of it.
            check: Raises `Undecodable` if the bytes are no image that can be shown.

        Returns:
            The bytes, empty if there are too many corrupt rows, and what was replaced.

        Raises:
            Failure: As `show`.
        """
        kept: list[bytes] = [b""]

        def use(data: bytes) -> None:
            check(data)
            kept[0] = data

        report = self.show(sample, row, column, use)
        return kept[0], report

    def column(self, resolution: int) -> str:
        """The column of the smallest stored copy of the images that is large enough for a resolution."""
        prefix = f"{IMAGE}."
        columns = self.shards.manifest.columns
        levels = [int(column.removeprefix(prefix)) for column in columns if column.startswith(prefix)]
        smallest = min((level for level in levels if level >= resolution), default=None)
        return IMAGE if smallest is None else f"{prefix}{smallest}"

    def side(self, column: str) -> int:
        """Height and width in pixels of the images in a column."""
        return side(column, self.shards.resolution)

    def labels(self, samples: range, report: Report) -> Tensor | None:
        """The class labels of what is shown, int64 `[n]`, or None for data without labels."""
        if self.shards.label_counts is None:
            return None
        rows = (report.shown.get(sample, self.order.row(sample)) for sample in samples)
        return torch.tensor([self.shards.label(row) for row in rows], dtype=torch.int64)

    def flips(self, samples: range) -> list[bool]:
        """Whether each sample is flipped from left to right."""
        if not self.mirror or not samples:
            return [False] * len(samples)
        numbers = torch.arange(samples.start, samples.stop, samples.step)
        flips: list[bool] = (self.random.bits(Purpose.MIRROR, numbers, 1)[:, 0] >= 2**31).tolist()
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
        column: str,
        use: Callable[[bytes], None],
        reading: Callable[[int], None],
        report: Report,
    ) -> CorruptRow | None:
        """Use a row, or say why it is corrupt; what was found corrupt once is not read again."""
        known = self._corrupt.get((row, column))
        if known is not None:
            return known
        reading(row)
        try:
            use(self._read(row, column, report))
        except (CorruptSample, Undecodable) as error:
            return self._remember(row, column, error)
        except (Failure, OSError) as error:
            raise Failure(f"sample {sample} of the run ({self.where(row)}): {error}") from error
        return None

    def _remember(self, row: int, column: str, error: Failure) -> CorruptRow:
        path = self.shards.locate(row).path
        name, problem = f"{path.name}, sample {self.shards.key_of(row)}", str(error)
        if not isinstance(error, CorruptSample):  # which names its place itself
            problem = f"{path.parent / name}, column '{column}': {problem}"
        self._rows.add(row)
        return self._corrupt.setdefault((row, column), CorruptRow(row, name, problem))

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
            self.shards = copy.copy(self.shards)  # with no file open: a stale handle stays stale
        return self.shards.read(row, column)


def _passing_fault(error: BaseException) -> OSError | None:
    """The fault of the file system behind an error, if it is of a kind that may pass."""
    fault = error if isinstance(error, OSError) else error.__context__
    return fault if isinstance(fault, OSError) and fault.errno in _PASSING else None
