"""NVIDIA DALI as the decoder of batches: on a GPU or on the CPU, in threads of this process.

Threads read the bytes that the order asks for and check their crc32; one more thread hands them to a DALI pipeline and
puts together what it decodes. Halving to the stage's resolution is the arithmetic of `decoders`, so that every decoder
gives the same image wherever it decodes to the same pixels. DALI is imported when it is used, not before.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hires_gan.data.advice import Advice
from hires_gan.data.batches import Decoded, Request
from hires_gan.data.dali_pipeline import (
    DEPTH,
    PIPELINE_ERRORS,
    DaliPipeline,
    OnGpu,
    OnHost,
    Place,
    check_installed,
    first_line,
    no_memory,
)
from hires_gan.data.decoders import decode, decode_square
from hires_gan.data.domains import Domains, in_one_set
from hires_gan.data.heartbeat import HEART
from hires_gan.data.reader import SampleReader
from hires_gan.data.reading_threads import ReadingThreads
from hires_gan.data.replacement import Report
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_reader import StreamReader
from hires_gan.data.waiting import SLICE, Asked, Deadline, Stopped, never
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

_AT_LEAST = 16
"""Samples that go through DALI at once, where the largest batch is smaller than so many of full size."""
_GRACE = 5.0
"""Seconds that the decoding thread gets to end by itself."""
_JPEG, _JPEG_END, _PNG = b"\xff\xd8\xff", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = slice(24, 25)
"""Place of the byte with the bits per channel."""


def check_dali(settings: DataSettings, data: Domains | ShardSet, device: torch.device) -> None:
    """Make sure that DALI is there and can decode where it is asked to; say where that is.

    Args:
        settings: The `data` block.
        data: The images.
        device: Where the run trains.

    Raises:
        UsageError: If DALI is not installed, or is to decode on a GPU where the run has none.
        Failure: If it cannot be loaded, or the GPU's driver is too old for it.
    """
    gpu = gpu_for(settings, device)
    version = check_installed(gpu)
    if gpu is not None:
        say(f"DALI {version} decodes on {gpu}")
        with contextlib.suppress(Failure, OSError):  # the run itself will say it
            if _has_png(in_one_set(data) if isinstance(data, ShardSet) else data):
                say("these images are PNG files, which DALI decodes on the CPU before it hands them to the GPU")
    else:
        say(f"DALI {version} decodes on the CPU")


def _has_png(data: Domains) -> bool:
    local = [source for source in data.sources if not source.shards.streamed]  # else it would fetch a shard to look
    return any(source.shards.read(0, column).startswith(_PNG) for source in local for column in source.columns)


def gpu_for(settings: DataSettings, device: torch.device) -> torch.device | None:
    """The GPU on which DALI is to decode, or None for the CPU.

    Raises:
        UsageError: If it is to decode on a GPU and the run trains on none.
    """
    if settings.decoder != "dali":
        return None
    if device.type != "cuda":
        raise UsageError(
            "data.decoder is dali, which decodes on the GPU that trains, but this run trains on the CPU: set "
            "data.decoder to dali-cpu, or to torchvision"
        )
    return device


def same_everywhere(data: bytes) -> None:
    """Refuse what DALI would decode and torchvision would not: other kinds of file, 16 bits per channel, half a JPEG.

    Of a JPEG that is cut a GPU may make half an image. What does not end as JPEG files do is decoded here to know: some
    have bytes behind their end, and are whole.

    Raises:
        Undecodable: As `decode`.
    """
    is_png = data.startswith(_PNG)
    whole_jpeg = data.startswith(_JPEG) and data.endswith(_JPEG_END)
    if not (whole_jpeg or is_png) or (is_png and data[_PNG_DEPTH] == b"\x10"):
        decode(data)


_Files = tuple[tuple[bytes, ...], Report]
"""What is read of a sample: its files, one for each domain, and what was replaced."""


@dataclass
class _Share:
    """What one stream shows in a batch.

    Attributes:
        stream: What reads.
        samples: Their numbers.
        columns: What is read of each of them.
        side: Of the images that are stored there.
        flips: Which samples are flipped.
        reads: The files of each sample, one for each domain, and what was replaced.
        images: Where they are put: uint8 `[domains, n, r, r, 3]`.
    """

    stream: StreamReader
    samples: range
    columns: tuple[str, ...]
    side: int
    flips: list[bool]
    reads: list[Future[_Files]]
    images: Tensor | None = None


@dataclass
class _Batch:
    """A batch on its way.

    Attributes:
        turn: Its number.
        request: What was asked for.
        shares: Of the streams.
        images: Where it is put together: uint8 `[domains * n, r, r, 3]`.
        left: How many of its parts are not there yet.
        report: What was replaced.
    """

    turn: int
    request: Request
    shares: list[_Share]
    images: Tensor | None = None
    left: int = 0
    report: Report = field(default_factory=Report)


@dataclass
class _Part:
    """As much of a share as goes through DALI at once: the samples in `places`, with their files once they are read."""

    batch: _Batch
    share: _Share
    places: range
    files: list[tuple[bytes, ...]] = field(default_factory=list)

    def is_read(self) -> bool:
        return all(self.share.reads[place].done() for place in self.places)

    def where(self, place: int) -> str:
        stream = self.share.stream
        return stream.where(stream.order.row(self.share.samples[place]))


@dataclass(frozen=True)
class _Finished:
    turn: int
    images: Tensor
    report: Report
    done: torch.cuda.Event | None


class DaliDecoder:
    """Reads in threads and decodes with DALI, on the GPU that trains or on the CPU.

    Args:
        reader: The order, and what reads.
        settings: The `data` block.
        advice: How many threads read and decode, and how many batches ahead.
        largest: Bytes of the largest batch that will be asked for, in one domain.
        device: Where the run trains.
        stopped: Asked again and again while this waits; the wait is given up once it is true.

    Raises:
        UsageError: If DALI is not installed, or is to decode on a GPU where the run has none.
        Failure: If it cannot be loaded, or the GPU's driver is too old for it.
    """

    def __init__(
        self,
        reader: SampleReader,
        settings: DataSettings,
        advice: Advice,
        largest: int,
        device: torch.device,
        stopped: Asked = never,
    ) -> None:
        gpu = gpu_for(settings, device)
        check_installed(gpu)
        self.slots, self._reader, self._timeout = advice.prefetch + 1, reader, settings.timeout
        self._stopped = stopped
        sources, domains = reader.data.sources, len(reader.domains)
        part = max(_AT_LEAST, largest // max(source.shards.resolution**2 * 3 for source in sources))
        files = part * max(len(source.domains) for source in sources)
        make = functools.partial(DaliPipeline, gpu, files, advice.threads, settings.mirror, settings.hw_decoder_load)
        self._place: Place = OnHost(self.slots, largest, domains) if gpu is None else OnGpu(gpu, domains)
        self._turns = itertools.count()
        self._finished: dict[int, _Finished] = {}
        self._reads: ReadingThreads[_Files] = ReadingThreads(advice.readers)
        self._line = _Line(reader, make, self._place, part)
        self._thread = threading.Thread(target=self._line.run, name="dali", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def pids(self) -> Sequence[int]:
        """None but this one."""
        return ()

    def begin(self, request: Request) -> int:
        """Start reading a batch; it is decoded behind those that were begun before."""
        turn = next(self._turns)
        self._finished.pop(turn - self.slots, None)
        shares = [self._read(stream, request) for stream in self._reader.streams]
        self._line.orders.put(_Batch(turn, request, shares))
        return turn

    def finish(self, turn: int) -> Decoded:
        """Wait for a batch; on a GPU, only until it is launched.

        Raises:
            Failure: If a sample cannot be read, or nothing comes for too long.
            Stopped: If somebody wants it to.
        """
        while turn not in self._finished:
            finished = self._next()
            self._finished[finished.turn] = finished
        batch = self._finished.pop(turn)
        self._place.hand_over(batch.images, batch.done)
        return Decoded(batch.images.permute(0, 3, 1, 2), batch.report)

    def close(self) -> None:
        """End the threads, once they are done with what they are at."""
        atexit.unregister(self.close)
        self._line.ended = True
        self._line.orders.put(None)
        self._reads.close()
        self._thread.join(_GRACE)

    def _read(self, stream: StreamReader, request: Request) -> _Share:
        """Start reading what a stream shows."""
        columns, side = stream.source.stored(request.resolution)
        samples = request.samples
        read = functools.partial(stream.fetch, columns=columns, check=same_everywhere)
        reads = [self._reads.submit(functools.partial(read, sample)) for sample in samples]
        return _Share(stream, samples, columns, side, stream.flips(samples), reads)

    def _next(self) -> _Finished:
        while True:
            progress = self._progress()
            finished = self._result()
            if isinstance(finished, BaseException):
                self._line.results.put(finished)  # whoever asks again hears it again
                raise finished
            if finished is not None:
                return finished
            if self._progress() == progress:
                raise self._hangs()

    def _result(self) -> _Finished | BaseException | None:
        """What the decoding thread has done, or None if that is nothing for too long."""
        deadline = Deadline(self._timeout)
        while True:
            with contextlib.suppress(queue.Empty):
                return self._line.results.get(timeout=deadline.slice)
            if self._stopped():
                raise Stopped
            if deadline.passed:
                return None

    def _progress(self) -> tuple[int, int]:
        """Grows with every part that is done, and with every sign of life from a shard that is on its way."""
        return self._line.progress, HEART.beats

    def _hangs(self) -> Failure:
        waits_for = self._line.waits_for
        doing = "DALI decodes" if waits_for is None else f"reading {waits_for[0].where(waits_for[1])}"
        return Failure(
            f"no image was decoded for {self._timeout:g} s, while {doing}; look at the "
            f"{'machine' if waits_for is None else 'disk or file system that holds the shards'}, or raise data.timeout"
        )


class _Line:
    """The decoding thread: parts of batches wait for their bytes, go through DALI, and are put together.

    Args:
        reader: Knows which domains there are.
        make: Makes a pipeline.
        place: Where batches are put together.
        part: The most samples that go through DALI at once.

    Attributes:
        orders: Batches to decode, in order; None ends the thread.
        results: Batches that are done, or what ended the thread.
        ended: Whether nobody waits for anything any more.
        progress: Grows with every part that is done.
        waits_for: The part and the place in it whose bytes it waits for.
    """

    def __init__(self, reader: SampleReader, make: Callable[[], DaliPipeline], place: Place, part: int) -> None:
        self.orders: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[_Finished | BaseException] = queue.SimpleQueue()
        self.ended = False
        self.progress = 0
        self.waits_for: tuple[_Part, int] | None = None
        self._reader, self._make, self._place, self._part = reader, make, place, part
        self._pipeline: DaliPipeline | None = None
        self._waiting: deque[_Part] = deque()
        self._inside: deque[_Part] = deque()
        self._inexplicable = 0

    def run(self) -> None:
        """Decode until the end; whatever goes wrong is for the one who waits."""
        try:
            while not self.ended:
                self._admit()
                self._step()
        except BaseException as error:
            self.results.put(error)
        finally:
            self._pipeline = None

    def _admit(self) -> None:
        """Take the orders that have come; wait for one if there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            while not self.ended:
                batch = self.orders.get(block=not self._waiting and not self._inside)
                if batch is None:
                    return
                parts = self._parts(batch)
                batch.left = len(parts)
                self._waiting += parts

    def _parts(self, batch: _Batch) -> list[_Part]:
        """Give a batch its memory, and cut it up; an empty one is a part for each stream, too."""
        count = len(batch.request.samples)
        batch.images = self._place.batch(batch.turn, count, batch.request.resolution)
        for share, images in zip(batch.shares, self._reader.split(batch.images), strict=True):
            share.images = images
        cuts = [range(first, min(first + self._part, count)) for first in range(0, max(1, count), self._part)]
        return [_Part(batch, share, places) for share in batch.shares for places in cuts]

    def _step(self) -> None:
        """Hand one part over to DALI, or take one out."""
        goes_in = self._waiting and len(self._inside) < DEPTH and (not self._inside or self._waiting[0].is_read())
        if goes_in and not self._waiting[0].files:
            self._gather(self._waiting[0])  # out here: what goes wrong while reading is no fault of DALI's
        try:
            if goes_in:
                self._hand_over()
            elif self._inside:
                self._take_out()
        except torch.OutOfMemoryError:
            raise
        except PIPELINE_ERRORS as error:
            self._mend(error)

    def _hand_over(self) -> None:
        part = self._waiting.popleft()
        if not part.files or part.batch.report.given_up:  # nothing to decode, or nobody will look at it
            self._count(part)
            return
        self._inside.append(part)
        if self._pipeline is None:
            self._pipeline = self._make()
        domains, flips = len(part.share.columns), [part.share.flips[place] for place in part.places]
        files = [files[domain] for domain in range(domains) for files in part.files]
        self._pipeline.feed(files, flips * domains)

    def _gather(self, part: _Part) -> None:
        for place in part.places:
            self.waits_for = part, place
            files, report = self._read(part.share.reads[place])
            part.files.append(files)
            part.batch.report.add(report)
        self.waits_for = None

    def _read(self, reading: Future[_Files]) -> _Files:
        while not wait([reading], SLICE).done:
            if self.ended:
                raise CancelledError
        return reading.result()

    def _take_out(self) -> None:
        part = self._inside[0]
        assert self._pipeline is not None
        assert part.share.images is not None
        images = part.share.images[:, part.places.start : part.places.stop]
        self._place.put(self._pipeline, part.share.side, images)
        self._inside.popleft()
        self._inexplicable = 0
        self._count(part)

    def _count(self, part: _Part) -> None:
        batch = part.batch
        batch.left -= 1
        self.progress += 1
        if not batch.left:
            assert batch.images is not None
            self.results.put(_Finished(batch.turn, batch.images, batch.report, self._place.done()))

    def _mend(self, error: Exception) -> None:
        """Behind an error a pipeline is dead: find the bad samples in it, replace them, and begin anew.

        Raises:
            Failure: If nothing is wrong with the samples, or there is no memory for them, for the second time.
        """
        lost = list(self._inside)
        self._pipeline = None
        self._inside.clear()
        self._waiting.extendleft(reversed(lost))
        found = [self._examine(part) for part in lost]
        if any(found):
            return
        self._inexplicable += 1
        if self._inexplicable > 1:
            names = ", ".join(lost[0].where(place) for place in lost[0].places[:2])
            raise no_memory(error) or Failure(
                f"DALI fails on images that torchvision can decode, around {names}: {first_line(error)}; "
                "set data.decoder to torchvision"
            ) from error

    def _examine(self, part: _Part) -> bool:
        """Decode each sample with torchvision, and replace those that it cannot decode either; were there any?"""
        share, bad = part.share, False

        def check(data: bytes) -> None:
            decode_square(data, share.side)

        for number, place in enumerate(part.places):
            files, report = share.stream.fetch(share.samples[place], share.columns, check)
            bad |= files != part.files[number]
            part.files[number] = files
            part.batch.report.add(report)
        return bad
