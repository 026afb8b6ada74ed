"""How the processes of a run tell each other that they are well, and what they are doing.

They do so through a store, never through the process group, which is what hangs. It is the store at which the launch
has met: its address is known to all and reached by all, and under torchrun it outlives the first process. A store may
fail to answer for ever, so that a thread of its own talks to it, and nobody waits for that thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from hires_gan.errors import Failure
from hires_gan.progress import say
from hires_gan.training.activity import current
from hires_gan.training.signals import StopRequest
from hires_gan.training.stacks import own_stacks
from hires_gan.training.world import World

ANSWER = 10.0
"""Seconds that the store has for one answer."""
LEAVING = 5.0
"""Seconds that those who answer have to hear that it is over."""
_WORD = "word"
"""What the leader tells all others."""
_END = "end"
"""There once all may end."""


@dataclass(frozen=True)
class Beat:
    """How a process is, as it tells itself.

    Attributes:
        number: Of the beat, from 1.
        host: Its machine.
        pid: Its process.
        nimg: Images shown.
        activity: What it is doing.
        seconds: For how long.
        waits: Whether it waits for the others in that.
        progress: A count that stands still when it hangs.
        meetings: How often it has met the others.
        signal: The signal that came to it, or None.
    """

    number: int
    host: str
    pid: int
    nimg: int
    activity: str
    seconds: float
    waits: bool
    progress: int
    meetings: int
    signal: str | None


def own_beat(number: int, nimg: int, signal: str | None) -> Beat:
    """How this process is now."""
    now = current()
    return Beat(
        number=number,
        host=socket.gethostname(),
        pid=os.getpid(),
        nimg=nimg,
        activity=now.name,
        seconds=time.monotonic() - now.since,
        waits=now.waits,
        progress=now.progress,
        meetings=now.meetings,
        signal=signal,
    )


@dataclass
class Heard:
    """What is known of a process, by the clock of the one who hears.

    Attributes:
        beat: Its last one.
        at: When that came, by `time.monotonic`.
        changed: When one came that told of progress.
    """

    beat: Beat
    at: float
    changed: float

    def hear(self, beat: Beat, now: float) -> None:
        """Take the beat that is there now, maybe the same as before."""
        if beat.progress != self.beat.progress:
            self.changed = now
        if beat.number != self.beat.number:
            self.beat, self.at = beat, now


class Exchange:
    """Beats, and hears: the leader hears all, and the others hear the leader's word.

    Args:
        world: The processes; all of them have to make one.
        stop: Told of signals that came to others.
        nimg: Images shown so far.
        interval: Seconds between two beats.

    Attributes:
        leads: Whether this process hears all others; the first one does, and who takes its place.
        heard: By rank, with the leader.
        led: When the leader's word was last heard, by `time.monotonic`, with the others.
        asks: Whether the leader wants to have everybody's stacks.
        stacks: By rank, what has come of them.
        over: Whether the leader has the others end.
        ready: Those who have heard that, by rank, and end with the leader.
        yielded: Whether this process wanted to lead, and another one had begun to.
    """

    def __init__(self, world: World, stop: StopRequest, nimg: Callable[[], int], interval: float) -> None:
        self._world, self._stop, self._nimg, self._interval = world, stop, nimg, interval
        self.leads, self.asks, self.over, self.yielded = world.first, False, False, False
        self.heard: dict[int, Heard] = {}
        self.stacks: dict[int, str] = {}
        self.ready: set[int] = set()
        self._ending = False
        self.led = time.monotonic()
        self._number, self._gave, self._owns = 0, False, world.first
        self._last = (0, 0)
        self._closing = threading.Event()
        self._store = _open_store(world)
        self._beat()
        if world.first:
            self._tell()
        world.gathered(None)  # behind this, nobody asks for what is not there yet
        self._thread = threading.Thread(target=self._run, name="watch: beats", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Beat no more; returns within a second, also where the store does not answer."""
        self._closing.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self._turn()
            except dist.DistStoreError:
                continue  # it did not answer in time: seen by who looks at when something was heard
            except RuntimeError as error:
                self._lose(error)
                return

    def _lose(self, error: RuntimeError) -> None:
        """The store is gone, with the launcher or the first process: then collectives fail by themselves."""
        if not self._closing.is_set():
            reason = str(error).strip().splitlines()[0]
            say(f"the store of the launch is gone ({reason}): from here on, each process watches itself alone")

    def _turn(self) -> None:
        self._beat()
        if self.leads and not self._owns:
            self._claim()
        if self.leads:
            self._hear_all()
            self._tell()
        else:
            self._follow()
        if self.leads and self.asks:
            self._collect()

    def _claim(self) -> None:
        """Take the place of a leader that is silent, unless another one has; yield only once: that one may end, too."""
        name = str(self._world.rank)
        self._owns = self._store.compare_set("successor", "", name).decode() == name or self.yielded
        if not self._owns:
            self.leads, self.asks, self.yielded, self.led = False, False, True, time.monotonic()

    def _beat(self) -> None:
        self._number += 1
        beat = own_beat(self._number, self._nimg(), self._stop.wanted)
        self._store.set(f"beat/{self._world.rank}", json.dumps(asdict(beat)))

    def _hear_all(self) -> None:
        texts = self._store.multi_get([f"beat/{rank}" for rank in range(self._world.size)])
        now = time.monotonic()
        for rank, text in enumerate(texts):
            beat = Beat(**json.loads(text))
            self.heard.setdefault(rank, Heard(beat, now, now)).hear(beat, now)
            if beat.signal is not None and rank != self._world.rank:
                self._stop.hear(rank, beat.signal)

    def _tell(self) -> None:
        signals = ([rank, heard.beat.signal] for rank, heard in self.heard.items() if heard.beat.signal is not None)
        word = {"leader": self._world.rank, "number": self._number, "signal": next(signals, None)}
        self._store.set(_WORD, json.dumps(word | {"asks": self.asks, "over": self.over}))

    def _follow(self) -> None:
        word: dict[str, Any] = json.loads(self._store.get(_WORD))
        if (word["leader"], word["number"]) != self._last:
            self._last, self.led = (word["leader"], word["number"]), time.monotonic()
        if word["signal"] is not None:
            self._stop.hear(*word["signal"])
        if word["asks"] and not self._gave:
            self._gave = True
            self._store.set(f"stacks/{self._world.rank}", own_stacks())
        if word["over"] and not self._closing.is_set():
            self._end_with_all()

    def _collect(self) -> None:
        self.stacks[self._world.rank] = own_stacks()
        for rank in self.heard.keys() - self.stacks.keys():
            if self._store.check([f"stacks/{rank}"]):
                self.stacks[rank] = self._store.get(f"stacks/{rank}").decode()
        self.ready |= {rank for rank in self.heard if self._store.check([f"ready/{rank}"])}

    def dismiss(self) -> None:
        """Let all end who are ready to; they do so by themselves, a little later, where the store has ended."""
        with contextlib.suppress(RuntimeError):
            self._store.set(_END, "")
            self._store.check([_END])  # `set` waits for no answer: behind this one, theirs are on the way, too

    def stay(self) -> None:
        """Do not return where this process is about to end with all others."""
        if self._ending:
            time.sleep(2 * LEAVING)

    def _end_with_all(self) -> None:
        """End once all have heard that it is over, and not before: what waits for a process that ends would break.

        The training thread hangs, so that nothing gentler ends it; why, the leader has said.
        """
        self._ending = True
        with contextlib.suppress(RuntimeError):  # the store may end with the leader, or say that the time is over
            self._store.set(f"ready/{self._world.rank}", "")
            self._store.wait([_END], timedelta(seconds=LEAVING))
        os._exit(1)


def _open_store(world: World) -> Any:
    """The launch's, under a name of its own: a store that outlives its workers keeps what those before have left."""
    if world.alone:
        return HashStore()
    name = world.from_first(secrets.token_hex(8))
    with world.together():
        return PrefixStore(f"hires_gan/{name}", _connected())


def _connected() -> Any:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = timedelta(seconds=ANSWER)
    try:
        return TCPStore(host, port, is_master=False, timeout=wait, wait_for_workers=False)
    except RuntimeError as error:
        raise Failure(
            f"the store of the launch at {host}:{port} does not answer ({str(error).splitlines()[0]}): look at the "
            "network between the machines"
        ) from error
