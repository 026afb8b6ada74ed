"""How much of pure decoding the input delivers: the loader against its decoder alone, in as many processes.

Both run in turns for several rounds, since other work on the machine comes and goes; the medians count.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch
from PIL import Image

from hires_gan.bench.identity import identity, write_record
from hires_gan.data.decoders import decode_into
from hires_gan.data.loader import Loader, Request, SampleReader
from hires_gan.data.manifest import IMAGE, Manifest
from hires_gan.data.pictures import encode, resize
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.writer import ShardWriter, write_manifest
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import ProgressBar, say
from hires_gan.settings import is_power_of_two

ROUNDS = 7
_IN_MEMORY = 48
"""Files that each process of the limit holds."""
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
_ROWS, _COLUMNS = 3, 4
"""Crops of each photograph; other crops would make other numbers."""
_SEED = 0


@dataclass(frozen=True)
class Row:
    """One line of the result; rates and times are medians over the rounds."""

    name: str
    images_per_second: float
    share: float
    """Of the limit, measured in the same round."""
    cpu_seconds_per_image: float
    """Of all processes together."""
    first_batch_seconds: float | None
    """From making the loader to its first batch, the start of the processes included."""
    memory_mib: float
    """Proportional set size of all processes, this one included; what they share is counted once."""


@dataclass(frozen=True)
class Sample:
    """What one round of one of the two measured."""

    images_per_second: float
    cpu_seconds_per_image: float


class Measured(Protocol):
    """Something whose speed can be taken for a while."""

    def run(self, seconds: float) -> Sample:
        """Work for about so long."""

    def memory(self) -> float:
        """MiB of all its processes."""


class DecoderAlone:
    """The limit: processes that decode files from memory into a ready channels_last batch of their own.

    Args:
        reader: Where the files come from.
        resolution: The side of the decoded images.
        processes: How many decode.
        batch: Images in the batch that they share among them.
    """

    def __init__(self, reader: SampleReader, resolution: int, processes: int, batch: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipes, self._processes = [], []
        for number in range(processes):
            ours, theirs = context.Pipe()
            samples = range(number, processes * _IN_MEMORY, processes)
            arguments = (theirs, reader, samples, resolution, -(-batch // processes))
            process = context.Process(target=_decode_alone, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, seconds: float) -> Sample:
        """Let all decode for so long."""
        for pipe in self._pipes:
            pipe.send(seconds)
        try:
            answers = [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise Failure("a process that decodes alone ended early; its own message stands above") from None
        images = sum(count for count, _, _ in answers)
        return Sample(sum(count / wall for count, wall, _ in answers), sum(cpu for _, _, cpu in answers) / images)

    def memory(self) -> float:
        """MiB of its processes and this one."""
        return _memory(os.getpid(), *(process.pid for process in self._processes))

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _decode_alone(orders: Connection, reader: SampleReader, samples: range, resolution: int, batch: int) -> None:
    torch.set_num_threads(1)
    column = reader.column(resolution)
    files = [reader.shards.read(reader.order.row(sample), column) for sample in samples]
    images = torch.zeros(batch, resolution, resolution, 3, dtype=torch.uint8)
    places = itertools.cycle(images)
    endless = itertools.cycle(files)
    for data, image in zip(files, places, strict=False):  # once unmeasured: the libraries and the caches are warm
        decode_into(data, image, False)
    with contextlib.suppress(EOFError):
        while True:
            orders.send(_decode_for(orders.recv(), endless, places))


def _decode_for(seconds: float, files: Iterator[bytes], places: Iterator[torch.Tensor]) -> tuple[int, float, float]:
    """Decode for so long: images, wall seconds and CPU seconds."""
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        decode_into(next(files), next(places), False)
        count += 1
    return count, time.perf_counter() - wall, time.process_time() - cpu


class WholeLoader:
    """The loader as a training run has it; its batches are taken and dropped.

    Args:
        shards: The images.
        resolution: The side of the decoded images.
        workers: Its processes.
        batch: Images in a batch.
    """

    def __init__(self, shards: ShardSet, resolution: int, workers: int, batch: int) -> None:
        start = time.perf_counter()
        settings = DataSettings(shards=str(shards.folder), workers=workers)
        self.loader = Loader(shards, settings, _SEED, batch * resolution * resolution * 3)
        requests = (Request(range(first, first + batch), resolution) for first in itertools.count(0, batch))
        self._batches = self.loader.batches(requests)
        next(self._batches)
        self.first_batch_seconds = time.perf_counter() - start
        self._ahead = settings.prefetch + 1
        self._workers = [psutil.Process(pid) for pid in self.loader.decoder.pids]

    def run(self, seconds: float) -> Sample:
        """Take batches for so long, after those that were decoded while it rested."""
        for _ in range(self._ahead):
            next(self._batches)
        count, wall, cpu = 0, time.perf_counter(), self._cpu()
        while time.perf_counter() - wall < seconds:
            count += len(next(self._batches).samples)
        return Sample(count / (time.perf_counter() - wall), (self._cpu() - cpu) / count)

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self._workers]
        return time.process_time() + sum(one.user + one.system for one in times)

    def memory(self) -> float:
        """MiB of its processes and this one."""
        return _memory(os.getpid(), *(process.pid for process in self._workers))


def bench_input(shards: Path | None, resolution: int, workers: int, seconds: float, out: Path | None) -> list[Row]:
    """Measure the limit and the loader.

    Args:
        shards: A shard folder; None for a set made of scikit-image's photographs in a temporary folder.
        resolution: The side at which the images are wanted.
        workers: Processes, of the limit and of the loader.
        seconds: How long to measure each of the two, in all.
        out: Where to write the result as JSON, with the machine, the versions, the commit and the date.

    Returns:
        The limit and the loader.

    Raises:
        UsageError: The arguments cannot be, or there is no such shard set.
        Failure: The images cannot be read or decoded, or the result cannot be written.
    """
    _check(resolution, workers, seconds)
    if out is not None:
        write_record(out, {})  # better now than after the measurement
    with tempfile.TemporaryDirectory(prefix="hires-gan-bench-") as made:
        opened = ShardSet(shards if shards is not None else make_shards(Path(made), resolution))
        if opened.resolution < resolution:
            raise UsageError(f"--resolution is {resolution}, but the images in {shards} have {opened.resolution}")
        load = os.getloadavg()[0]
        rows = _measure(opened, resolution, workers, seconds)
        images = describe(opened, made=shards is None)
        say(f"{workers} processes, batches of {_batch(workers)}, {images}")
        if out is not None:
            record = {"images": images, "resolution": resolution, "workers": workers, "batch": _batch(workers)}
            record |= {"rounds": ROUNDS, "seconds": seconds, "load_average_before": round(load, 2)}
            write_record(out, identity("input") | record | {"rows": [asdict(row) for row in rows]})
    return rows


def _check(resolution: int, workers: int, seconds: float) -> None:
    if resolution < 4 or not is_power_of_two(resolution):
        raise UsageError(f"--resolution is {resolution}; a power of two from 4 up is allowed, such as 1024")
    if not 1 <= workers <= 256:
        raise UsageError(f"--workers is {workers}; 1 to 256 are allowed")
    if not seconds > 0:
        raise UsageError(f"--seconds is {seconds:g}; a positive number is allowed")


def _batch(workers: int) -> int:
    """Images in a batch: enough to give every worker its share."""
    return max(16, 2 * workers)


def _measure(shards: ShardSet, resolution: int, workers: int, seconds: float) -> list[Row]:
    batch = _batch(workers)
    whole = WholeLoader(shards, resolution, workers, batch)
    with whole.loader, contextlib.closing(DecoderAlone(whole.loader.reader, resolution, workers, batch)) as alone:
        alone.run(0.1)
        rounds = []
        with ProgressBar("measuring", ROUNDS, "rounds") as bar:
            for number in range(ROUNDS):
                rounds.append(_round(alone, whole, seconds / ROUNDS, number % 2 == 1))
                bar.advance()
        limits, loads = zip(*rounds, strict=True)
        shares = [load.images_per_second / limit.images_per_second for limit, load in rounds]
        return [
            _row("decoder alone", limits, [1.0], None, alone.memory()),
            _row("loader", loads, shares, whole.first_batch_seconds, whole.memory()),
        ]


def _round(alone: Measured, whole: Measured, seconds: float, turned: bool) -> tuple[Sample, Sample]:
    """Measure both, one after the other; in every other round the loader comes first."""
    if turned:
        load = whole.run(seconds)
        return alone.run(seconds), load
    return alone.run(seconds), whole.run(seconds)


def _row(name: str, samples: tuple[Sample, ...], shares: list[float], first: float | None, memory: float) -> Row:
    return Row(
        name,
        statistics.median(sample.images_per_second for sample in samples),
        statistics.median(shares),
        statistics.median(sample.cpu_seconds_per_image for sample in samples),
        first,
        memory,
    )


def _memory(*pids: int | None) -> float:
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 2**20


def make_shards(folder: Path, resolution: int) -> Path:
    """Write crops of scikit-image's photographs, enlarged to the resolution, as JPEG of quality 95 with 4:4:4 chroma.

    Raises:
        Failure: If scikit-image is not installed.
    """
    try:
        import skimage.data
    except ModuleNotFoundError:
        raise Failure(
            "without --shards, images are made from scikit-image's photographs, which is not installed: "
            "pip install 'hires-gan[demo]', or name a shard folder with --shards"
        ) from None
    with (
        ShardWriter(folder, 0, (IMAGE,), labelled=False, first_row=0) as writer,
        ProgressBar("making images", len(_PHOTOGRAPHS) * _ROWS * _COLUMNS) as bar,
    ):
        for name in _PHOTOGRAPHS:
            photograph = Image.fromarray(getattr(skimage.data, name)())
            for crop in _crops(photograph):
                writer.write({IMAGE: encode(np.asarray(resize(crop, resolution, "lanczos")), "jpeg")}, None)
                bar.advance()
        entry = writer.finish()
    manifest = Manifest(resolution=resolution, count=entry.samples, columns=(IMAGE,), filter="lanczos", shards=(entry,))
    write_manifest(folder, manifest)
    return folder


def _crops(photograph: Image.Image) -> Iterator[Image.Image]:
    """Evenly spaced squares, each of four fifths of the photograph's shorter side."""
    side = min(photograph.size) * 4 // 5
    for row, column in itertools.product(range(_ROWS), range(_COLUMNS)):
        top = (photograph.height - side) * row // (_ROWS - 1)
        left = (photograph.width - side) * column // (_COLUMNS - 1)
        yield photograph.crop((left, top, left + side, top + side))


def describe(shards: ShardSet, made: bool) -> str:
    """Say in one line what was decoded."""
    size = sum(shards.locate(row).size for row in range(min(len(shards), 1000))) / min(len(shards), 1000)
    side = f"{shards.resolution}x{shards.resolution}"
    kind = "crops of scikit-image's photographs, enlarged, JPEG of quality 95 with 4:4:4 chroma" if made else "images"
    return f"{len(shards):,} {kind}, {side}, {size / 1024:,.0f} KiB each" + ("" if made else f", from {shards.folder}")


def table(rows: list[Row]) -> list[str]:
    """The result as lines for people."""
    lines = [f"{'':14}{'images/s':>10}{'of limit':>10}{'CPU ms/image':>14}{'first batch':>13}{'memory':>12}"]
    for row in rows:
        first = "" if row.first_batch_seconds is None else f"{row.first_batch_seconds:.1f} s"
        lines.append(
            f"{row.name:14}{row.images_per_second:>10.1f}{row.share:>9.1%}{row.cpu_seconds_per_image * 1e3:>14.2f}"
            f"{first:>13}{row.memory_mib:>8.0f} MiB"
        )
    return lines
