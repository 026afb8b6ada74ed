"""What `auto` means for this machine and these images: a start-up probe decodes a few real samples, and a rule follows.

The probe reads rows of its own choice past the order of the run: it takes nothing from the training and changes no
result. How many processes decode, and how many batches ahead, never does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hires_gan.cores import usable_cores
from hires_gan.data.decoders import Undecodable, decode_square
from hires_gan.data.domains import Source
from hires_gan.data.pictures import halve
from hires_gan.data.reader import SampleReader
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import CorruptSample
from hires_gan.errors import Failure
from hires_gan.memory import available_memory

_SECONDS = 2.0
"""The longest that the probe goes on; an image that it has begun is finished."""
_FEWEST, _MOST = 8, 64
"""Images that it decodes: enough for a standard error of `_PRECISION`, between these."""
_PRECISION = 0.05

_WAITING = 0.25
"""The share of its time that a worker may wait for the file system before more of them pay."""
_CROWD = 4
"""Workers per core at most, however long they wait."""
_MOST_WAITING = 64
"""More workers than this are not started because they wait."""
_MOST_WORKERS = 256
_PREFETCH = 3
"""Batches that are decoded ahead where nothing asks for more."""
_MOST_PREFETCH = 16
_MEMORY = 0.125
"""The share of the available memory that all rings on this machine may take."""

_CPUS = Path("/sys/devices/system/cpu")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """What may be used here.

    Attributes:
        cores: Logical cores that this process may keep busy.
        threads_per_core: How many of them are one physical core.
        memory: Bytes that are available.
        share: How many training processes divide all this among themselves.
        on_gpu: Whether the training computes on a GPU, and leaves the cores alone.
    """

    cores: int
    threads_per_core: int
    memory: int
    share: int
    on_gpu: bool


@dataclass(frozen=True)
class Measured:
    """What one image cost, on average over those that were decoded.

    Computing is counted in time of the processor, which other work on the machine does not make longer.

    Attributes:
        images: How many were decoded.
        waiting: Seconds that the file system or a disk kept it waiting.
        reading: Seconds of computing until its bytes were there and checked.
        decoding: Seconds of computing its pixels.
        slowest: Seconds that the slowest image took in all.
    """

    images: int
    waiting: float
    reading: float
    decoding: float
    slowest: float

    @property
    def whole(self) -> float:
        """Seconds of a worker's time."""
        return self.waiting + self.reading + self.decoding

    def part(self, seconds: float) -> float:
        """What share of a worker's time some seconds are, 0 to 1."""
        return seconds / self.whole if self.whole else 0.0


@dataclass(frozen=True)
class Advice:
    """What `auto` takes.

    Attributes:
        workers: Processes in which torchvision decodes.
        threads: Threads in which DALI decodes.
        readers: Threads that read the files for DALI.
        prefetch: Batches that are decoded ahead.
        sentence: What was measured and is suggested, for people; empty where the settings leave nothing open.
    """

    workers: int
    threads: int
    readers: int
    prefetch: int
    sentence: str


@dataclass(frozen=True)
class Wish:
    """What the settings leave open, and what is to be decoded.

    Attributes:
        decoder: The setting.
        workers: Their number, or None for auto; likewise `threads` and `prefetch`.
        threads: See `workers`.
        prefetch: See `workers`.
        resolution: Of the images.
        batch: Images of one batch in all domains.
    """

    decoder: str
    workers: int | None
    threads: int | None
    prefetch: int | None
    resolution: int
    batch: int

    @property
    def open(self) -> bool:
        """Whether anything that this decoder needs is left to decide."""
        return (self.workers if self.decoder == "torchvision" else self.threads) is None or self.prefetch is None


def advise(
    reader: SampleReader, settings: DataSettings, share: int, resolution: int, batch: int, device: torch.device = _CPU
) -> Advice:
    """Decide what the settings leave open; it takes two seconds at most, and far less for small images.

    Args:
        reader: Of the run; it is left as it is.
        settings: The `data` block.
        share: How many training processes this machine runs.
        resolution: The side at which images are wanted; the largest of the run.
        batch: Samples that one process shows in a step.
        device: Where the run trains.
    """
    wish = wish_of(settings, resolution, batch * len(reader.domains))
    sources = reader.data.sources
    if not wish.open:
        measured = None
    elif any(source.shards.streamed for source in sources):
        measured = None  # any row of ours would fetch a whole shard that the run does not need yet
    else:
        measured = probe(sources, resolution)
    return suggest(measured, this_machine(share, device.type != "cpu"), wish)


def wish_of(settings: DataSettings, resolution: int, batch: int) -> Wish:
    """What the `data` block leaves open; see `Wish`."""

    def number(setting: int | str) -> int | None:
        return None if isinstance(setting, str) else setting

    return Wish(
        settings.decoder,
        number(settings.workers),
        number(settings.threads),
        number(settings.prefetch),
        resolution,
        batch,
    )


def suggest(measured: Measured | None, machine: Machine, wish: Wish) -> Advice:
    """Decide by a rule: the same for the same arguments.

    - Workers and threads: the cores of this process (the machine's, divided by `share`), but for one physical core that
      drives the GPU; where the training computes on the CPU, half of them.
    - Workers that wait for the file system more than a quarter of their time leave cores idle: as many more of them as
      keep the cores busy, at most four times as many, and 64.
    - Threads that read for DALI: as many as there would be workers, which wait for the same file system; beside a GPU
      no more than the cores of this process, which launch and decode, too.
    - Prefetch: 3 batches, and as many more as are decoded in the time that the slowest image took; bounded by an eighth
      of the available memory.

    Args:
        measured: What the probe found; None if nothing was measured.
        machine: What may be used.
        wish: What is left open.
    """
    own = max(1, machine.cores // machine.share)
    busy = min(max(1, own - machine.threads_per_core if machine.on_gpu else own // 2), _MOST_WORKERS)
    workers = busy if wish.workers is None else wish.workers
    if wish.workers is None and measured is not None and (idle := measured.part(measured.waiting)) > _WAITING:
        wanted = math.ceil(busy / max(1 - idle, 1 / _CROWD))
        workers = max(busy, min(wanted, _MOST_WAITING))
    threads = busy if wish.threads is None else wish.threads
    readers = max(1, min(workers, own) if machine.on_gpu else workers)
    prefetch = wish.prefetch
    if prefetch is None:
        prefetch = _prefetch(measured, machine, wish, workers if wish.decoder == "torchvision" else threads)
    advice = Advice(workers, threads, readers, prefetch, "")
    return replace(advice, sentence=_sentence(measured, machine, wish, own, advice))


def _prefetch(measured: Measured | None, machine: Machine, wish: Wish, workers: int) -> int:
    wanted = _PREFETCH
    if measured is not None and measured.whole > 0:
        batch = max(1, wish.batch) * measured.whole / max(1, workers)
        # A batch that is late by so much is made good by those before it.
        wanted += int(min(measured.slowest / batch, _MOST_PREFETCH)) if batch else 0
    slot = max(1, wish.batch * wish.resolution**2 * 3)
    affordable = int(machine.memory * _MEMORY / machine.share / slot) - 1  # one slot is the caller's
    return max(1, min(wanted, _MOST_PREFETCH, affordable))


def _sentence(measured: Measured | None, machine: Machine, wish: Wish, own: int, advice: Advice) -> str:
    if not wish.open:
        return ""
    in_workers = wish.decoder == "torchvision"
    parts = []
    if (wish.workers if in_workers else wish.threads) is None:
        cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
        if machine.share > 1:
            cores += f" for each of {machine.share} training processes"
        name, count = ("data.workers", advice.workers) if in_workers else ("data.threads", advice.threads)
        crowd = f"{count} on {cores}" if count > own else f"{count} of {cores}"
        parts.append(f"{name}: auto takes {crowd}: {_found(measured, wish)}")
    if wish.prefetch is None:
        ahead = advice.prefetch
        parts.append(f"prefetch {ahead}" if parts else f"data.prefetch: auto takes {ahead}: {_found(measured, wish)}")
    if not in_workers:
        parts.append("1 thread reads" if advice.readers == 1 else f"{advice.readers} threads read")
    return "; ".join(parts)


def _found(measured: Measured | None, wish: Wish) -> str:
    if measured is None:
        return "nothing could be measured beforehand"
    side = f"{wish.resolution}x{wish.resolution}"
    rate = 1 / measured.whole if measured.whole else math.inf
    share, idle = measured.part(measured.waiting + measured.reading), measured.part(measured.waiting)
    waits = f", most of it waiting for the file system ({idle:.0%})" if idle > _WAITING else ""
    who = (
        "one decodes"
        if wish.decoder == "torchvision"
        else "measured with torchvision on the CPU, where one process decodes"
    )
    return f"{who} {rate:,.0f} images/s at {side}, reading takes {share:.0%} of its time{waits}"


def this_machine(share: int, on_gpu: bool) -> Machine:
    """What this process may use of the machine, as its affinity and its control group say."""
    return Machine(usable_cores(), threads_per_core(), available_memory(), share, on_gpu)


def threads_per_core(cpus: Path = _CPUS) -> int:
    """Logical cores of a physical one, at least 1; 1 where the system does not tell."""
    try:
        text = (cpus / "cpu0" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    except (OSError, ValueError):
        return 1
    return max(1, sum(part[-1] - part[0] + 1 for part in ends))


def probe(
    sources: Sequence[Source],
    resolution: int,
    wall: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.thread_time,
) -> Measured | None:
    """Read and decode samples from all over the sets, one after the other, as a worker would.

    Args:
        sources: The sets.
        resolution: The side at which images are wanted.
        wall: A clock, in seconds.
        cpu: What this thread has computed, in seconds.

    Returns:
        What an image cost; None if none of them could be read and decoded: the run itself will say why.
    """
    out = np.empty((resolution, resolution, 3), np.uint8)
    found: list[tuple[float, float, float]] = []
    begun = wall()
    for number, (source, row) in enumerate(_rows(sources)):
        try:
            one = _one(source, row, number, out, wall, cpu)
        except (CorruptSample, Undecodable):
            continue
        except (Failure, OSError):
            break
        finally:
            late = wall() - begun >= _SECONDS
        if number >= len(sources) or late:  # the first of each set loads libraries and opens files
            found.append(one)
        if late or len(found) == _MOST or _is_clear([sum(times) for times in found]):
            break
    return _mean(found) if found else None


def _rows(sources: Sequence[Source]) -> Iterator[tuple[Source, int]]:
    """Rows spread over the sets in turns, each from another part than the one before."""
    for number in range(2 * _MOST + len(sources)):
        source = sources[number % len(sources)]
        spread = (number // len(sources) + 0.5) * (math.sqrt(5) - 1) / 2
        yield source, int(spread % 1 * len(source.shards))


def _one(
    source: Source, row: int, number: int, out: np.ndarray, wall: Callable[[], float], cpu: Callable[[], float]
) -> tuple[float, float, float]:
    """Seconds of waiting, of computing while it reads, and of computing while it decodes.

    numpy writes the image where torch does in a worker: this process has not been told to compute in a single thread,
    as a worker has, and threads that wait for each other would be measured, too.
    """
    columns, side = source.stored(len(out))
    start, idle = wall(), cpu()
    data = source.shards.read(row, columns[number % len(columns)])
    elapsed, read = wall() - start, cpu()
    image = decode_square(data, side).numpy()
    while len(image) > len(out):
        image = halve(image)
    np.copyto(out, image)
    return max(0.0, elapsed - (read - idle)), read - idle, cpu() - read


def _is_clear(seconds: Sequence[float]) -> bool:
    """Whether more images would hardly change the mean."""
    if len(seconds) < _FEWEST:
        return False
    error = statistics.stdev(seconds) / math.sqrt(len(seconds))
    return error <= _PRECISION * statistics.fmean(seconds)


def _mean(found: Sequence[tuple[float, float, float]]) -> Measured:
    waiting, reading, decoding = (statistics.fmean(times) for times in zip(*found, strict=True))
    return Measured(len(found), waiting, reading, decoding, max(sum(times) for times in found))
