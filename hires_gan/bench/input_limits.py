"""What no input can pass on this machine: its decoders alone, and reading alone."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from hires_gan.bench.input_contestants import Family, Measurement, Task
from hires_gan.bench.input_images import stored
from hires_gan.data.dali_pipeline import DEPTH, DaliPipeline, OnGpu, OnHost, Place
from hires_gan.data.decoders import decode_into
from hires_gan.data.order import Order
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure

_IN_MEMORY = 48
"""Files that each process holds."""
_ON_DISK = 2048
"""Files that each process reads before it begins anew."""
_SEED = 0
_HW_DECODER_LOAD = 0.65


class Counted(NamedTuple):
    """What one of several processes did."""

    images: int
    wall: float
    cpu: float


Work = Callable[[ShardSet, Task, int, Callable[[], None]], Counted]
"""Works on the share of a process, by its number, for a round; calls the function when it is ready to begin."""


def torchvision_alone(folder: Path, task: Task) -> Measurement:
    """Processes that decode files from memory into a ready channels_last batch of their own."""
    return _in_processes(_decode, folder, task)


def reading_alone(folder: Path, task: Task) -> Measurement:
    """Processes that read files by the index and check their crc32, from the page cache."""
    return _in_processes(_read_warm, folder, task)


def reading_cold(folder: Path, task: Task) -> Measurement:
    """The same from the disk: the page cache is told to forget them before each pass.

    Raises:
        Failure: If the page cache keeps them.
    """
    return _in_processes(_read_cold, folder, task)


def dali_alone(gpu: str | None, folder: Path, task: Task) -> Measurement:
    """DALI's pipeline, fed from memory, into a ready channels_last batch; as many threads as there were processes."""
    shards = ShardSet(folder)
    column, side = stored(shards, task.resolution)
    device = None if gpu is None else torch.device(gpu)
    pipeline = DaliPipeline(device, task.batch, task.workers, False, _HW_DECODER_LOAD)
    place: Place = OnHost(1, task.batch * task.resolution**2 * 3, 1) if device is None else OnGpu(device, 1)
    images = place.batch(0, task.batch, task.resolution).unsqueeze(0)  # one domain
    held = [shards.read(row, column) for row in range(min(len(shards), _IN_MEMORY * task.workers))]
    files = itertools.cycle(held)

    def feed() -> None:
        pipeline.feed(list(itertools.islice(files, task.batch)), [False] * task.batch)

    def one() -> None:
        place.put(pipeline, side, images)
        feed()

    for _ in range(DEPTH):
        feed()
    for _ in range(2 * DEPTH):
        one()
    settle = settled(device)
    settle()
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while count == 0 or time.perf_counter() - wall < task.seconds:
        one()
        count += task.batch
    settle()
    elapsed = time.perf_counter() - wall
    return Measurement(count / elapsed, (time.process_time() - cpu) / count, None, Family().memory())


def settled(device: torch.device | None) -> Callable[[], None]:
    """What waits until a GPU has done all that was launched; for None, the CPU, it has nothing to wait for."""
    if device is None:
        return lambda: None
    return functools.partial(torch.cuda.synchronize, device)


def _in_processes(work: Work, folder: Path, task: Task) -> Measurement:
    """Let as many processes work side by side, each on its own samples."""
    context = multiprocessing.get_context("fork")  # this one has a single thread, and has loaded what they need
    pipes: list[Connection] = []
    for number in range(task.workers):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        arguments = (theirs, tuple(pipes), work, folder, task, number)
        context.Process(target=_answer, args=arguments, daemon=True).start()
        theirs.close()
    try:
        for pipe in pipes:
            pipe.recv()  # it is warm
        for pipe in pipes:
            pipe.send(None)
        answers = [pipe.recv() for pipe in pipes]
    except EOFError:
        raise Failure("one of its processes ended early; what it said stands above") from None
    if problem := next((answer for answer in answers if isinstance(answer, str)), None):
        raise Failure(problem)
    memory = Family().memory()
    for pipe in pipes:
        pipe.close()
    images = sum(answer.images for answer in answers)
    rate = sum(answer.images / answer.wall for answer in answers)
    return Measurement(rate, sum(answer.cpu for answer in answers) / images, None, memory)


def _answer(
    pipe: Connection, inherited: tuple[Connection, ...], work: Work, folder: Path, task: Task, number: int
) -> None:
    for end in inherited:  # else nobody would hear that the parent has ended
        end.close()
    shards = ShardSet(folder)

    def ready() -> None:
        pipe.send(None)
        pipe.recv()

    try:
        pipe.send(work(shards, task, number, ready))
    except Failure as error:
        pipe.send(str(error))
    try:
        pipe.recv()  # its memory is looked at before it ends
    except EOFError:
        return


def _rows(shards: ShardSet, task: Task, number: int, most: int) -> list[int]:
    """The rows of one process in the order of a run, none of them another's."""
    order = Order(_SEED, len(shards))
    rows = [order.row(sample) for sample in range(number, min(len(shards), most * task.workers), task.workers)]
    return rows or [order.row(number % len(shards))]


def _decode(shards: ShardSet, task: Task, number: int, ready: Callable[[], None]) -> Counted:
    column, side = stored(shards, task.resolution)
    files = [shards.read(row, column) for row in _rows(shards, task, number, _IN_MEMORY)]
    images = torch.zeros(-(-task.batch // task.workers), task.resolution, task.resolution, 3, dtype=torch.uint8)
    places, endless = itertools.cycle(images), itertools.cycle(files)
    for data, image in zip(files, places, strict=False):  # once unmeasured: the libraries and the caches are warm
        decode_into(data, image, False, side)
    ready()
    return _for_a_round(task, lambda: decode_into(next(endless), next(places), False, side))


def _read_warm(shards: ShardSet, task: Task, number: int, ready: Callable[[], None]) -> Counted:
    column, _ = stored(shards, task.resolution)
    rows = _rows(shards, task, number, _IN_MEMORY)
    for row in rows:
        shards.read(row, column)
    ready()
    endless = itertools.cycle(rows)
    return _for_a_round(task, lambda: shards.read(next(endless), column))


def _for_a_round(task: Task, one: Callable[[], object]) -> Counted:
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while count == 0 or time.perf_counter() - wall < task.seconds:
        one()
        count += 1
    return Counted(count, time.perf_counter() - wall, time.process_time() - cpu)


def _read_cold(shards: ShardSet, task: Task, number: int, ready: Callable[[], None]) -> Counted:
    column, _ = stored(shards, task.resolution)
    rows = _rows(shards, task, number, _ON_DISK)
    ready()
    count, wall, cpu, size, fetched = 0, 0.0, 0.0, 0, 0
    while wall < task.seconds:
        _forget(shards, column, rows)
        before, start, used = _fetched(), time.perf_counter(), time.process_time()
        for row in rows:
            size += len(shards.read(row, column))
            count += 1
            if wall + time.perf_counter() - start >= task.seconds:
                break
        wall, cpu = wall + time.perf_counter() - start, cpu + time.process_time() - used
        fetched += _fetched() - before
        if fetched < size // 2:
            raise Failure("the page cache does not forget these files, so that nothing is read from the disk")
    return Counted(count, wall, cpu)


def _forget(shards: ShardSet, column: str, rows: list[int]) -> None:
    """Ask the system to drop the pages of these files; what was just written has to be on the disk for that."""
    for path, places in itertools.groupby(sorted(shards.locate(row, column) for row in rows), lambda one: one.path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for place in places:
                os.posix_fadvise(descriptor, place.offset, place.size, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _fetched() -> int:
    """Bytes that this process had fetched from storage.

    Raises:
        Failure: If this system does not tell.
    """
    try:
        lines: Iterator[str] = iter(Path("/proc/self/io").read_text().splitlines())
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
    except (OSError, StopIteration) as error:
        raise Failure("this system does not tell how much is read from the disk (/proc/self/io)") from error
