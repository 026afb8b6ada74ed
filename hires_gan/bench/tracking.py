"""What tracking costs a step: the time that the training waits for it, and the processor time beside it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hires_gan.bench.identity import identity
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.bench.tracking_servers import LocalServer, SlowProxy
from hires_gan.errors import UsageError
from hires_gan.progress import say
from hires_gan.tracking.pictures import Picture
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker
from hires_gan.training.schedule import Cadence

Store = Literal["sqlite", "server", "slow"]
STORES: tuple[Store, ...] = ("sqlite", "server", "slow")
_WAIT = 120.0


@dataclass(frozen=True)
class Request:
    """What is measured.

    Attributes:
        step_ms: how long a step takes, in milliseconds.
        batch: images in it.
        kimg: how many thousand images the measured run shows.
        every_kimg: how often metrics are logged.
        samples_every_kimg: how often a grid is.
        side: of a grid, in pixels.
        metrics: how many are logged at once.
        delay: seconds for which the slow server's answers are late.
        stores: which stores.
        out: a JSON file for the result; written after every store.
    """

    step_ms: float = 60.0
    batch: int = 32
    kimg: float = 44.0
    every_kimg: float = 1.0
    samples_every_kimg: float = 40.0
    side: int = 2048
    metrics: int = 30
    delay: float = 2.0
    stores: tuple[str, ...] = STORES
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in ("step_ms", "batch", "kimg", "every_kimg", "samples_every_kimg", "side", "metrics"):
            if getattr(self, name) <= 0:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it has to be above 0")
        if unknown := set(self.stores) - set(STORES):
            raise UsageError(f"--store is {', '.join(sorted(unknown))}; {', '.join(STORES)} are allowed")
        if self.delay < 0:
            raise UsageError(f"--delay is {self.delay}; it has to be 0 or above")


def bench_tracking(request: Request) -> dict[str, Any]:
    """Log beside steps that wait as for a GPU, into each of the stores.

    Returns:
        The record: the request, and for every store the shares of the steps' time: `blocked`, which the steps waited;
        `beside`, the processor time of all other threads of the process; and `left`, the points that were not sent when
        the last step ended; `complete`, whether all stores are there.

    Raises:
        Failure: If the result cannot be written.
    """
    if request.out is not None:
        require_writable(request.out)
    settings = {name: value for name, value in vars(request).items() if name not in ("out", "stores")}
    record = identity("tracking") | {"settings": settings, "stores": {}}
    for store in request.stores:
        with tempfile.TemporaryDirectory() as folder, _opened(store, Path(folder), request.delay) as uri:
            say(f"{store}: {request.kimg:g} kimg, {_steps(request) * request.step_ms / 1000:.0f} s")
            record["stores"][store] = _measure(request, uri, Path(folder))
        record["complete"] = len(record["stores"]) == len(set(request.stores))
        if request.out is not None:
            write_record(request.out, record)
    return record


def table(record: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = ["store   waits for it  processor beside  longest wait  left to send at the end"]
    lines += [
        f"{name:<7} {one['blocked']:>12.3%}  {one['beside']:>16.2%}  {one['longest'] * 1000:>9.1f} ms  {one['left']:>8}"
        for name, one in record["stores"].items()
    ]
    return lines


@contextlib.contextmanager
def _opened(store: str, folder: Path, delay: float) -> Iterator[str]:
    """The URI of a fresh store of that kind."""
    if store == "sqlite":
        yield f"sqlite:///{folder}/mlflow.db"
        return
    with LocalServer(folder) as server:
        if store == "server":
            yield server.uri
        else:
            with SlowProxy(server.port, delay) as proxy:
                yield proxy.uri


def _steps(request: Request) -> int:
    return max(1, round(request.kimg * 1000 / request.batch))


def _measure(request: Request, uri: str, folder: Path) -> dict[str, Any]:
    tracker = _start(uri, folder)
    log, samples = Cadence(request.every_kimg), Cadence(request.samples_every_kimg)
    values, grid = {f"loss/{index}": 0.5 for index in range(request.metrics)}, _grid(request.side)
    longest = 0.0
    start, others = time.perf_counter(), _beside()
    for step in range(1, _steps(request) + 1):
        time.sleep(request.step_ms / 1000)
        before, nimg = tracker.blocked, step * request.batch
        if log.due(nimg):
            tracker.log_metrics(nimg, values)
            log.done(nimg)
        if samples.due(nimg):
            tracker.log_image("samples/grid", nimg, grid)
            samples.done(nimg)
        longest = max(longest, tracker.blocked - before)
    # The two clocks are read one after the other, so that nothing may come out as less than nothing.
    seconds, beside, left = time.perf_counter() - start, max(_beside() - others, 0.0), tracker.waiting
    tracker.finish("FINISHED", _WAIT)
    shares = {"blocked": tracker.blocked / seconds, "beside": beside / seconds}
    return {**shares, "longest": longest, "left": left, "seconds": seconds}


def _start(uri: str, folder: Path) -> Tracker:
    config = folder / "config.yaml"
    config.write_text("{}\n")
    settings = TrackingSettings(uri=uri)
    return Tracker.start(settings, folder, folder, "bench-tracking", None, {}, {}, config)


def _beside() -> float:
    """Seconds of processor time that the other threads of this process took."""
    return time.process_time() - time.thread_time()


def _grid(side: int) -> Picture:
    """As hard to compress as photographs are: smooth, with a little noise."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, side, dtype=np.float32)
    pixels = ramp[:, None, None] * 0.5 + ramp[None, :, None] * np.asarray([0.5, 0.4, 0.3], np.float32)
    return (pixels + random.normal(0, 4, (side, side, 3))).clip(0, 255).astype(np.uint8)
