"""The watch over the processes of a run: it ends a run that hangs, or that does not stop in time, and says where it is.

One thread of each process watches, and another one talks to the others (`beats`). The training thread is never held up
by either, and none of them takes part in anything collective. The first process judges. It goes by its own clock alone,
and by one rule: the run hangs when no process gets on. So those that wait for one that is slow do not count as hanging.
If the first process itself does not answer any more, another one takes its place: one alone, as the store knows.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from hires_gan.errors import Failure
from hires_gan.progress import console
from hires_gan.training.activity import current
from hires_gan.training.beats import LEAVING, Exchange, own_beat
from hires_gan.training.run_folder import RunFolder
from hires_gan.training.signals import StopRequest
from hires_gan.training.silence import Silences
from hires_gan.training.stacks import own_stacks
from hires_gan.training.standing import Standing, advice, in_words, page
from hires_gan.training.world import World

_BEAT = 1.0
"""Seconds between two beats, at most."""
_STALE = 5
"""Beats after which a process counts as not answering."""
_STACKS = {"hang": 5.0, "grace": 2.0}
"""Seconds that are waited for the others' stacks. Launchers kill soon after the grace."""
_WRITING = 10.0
"""Seconds that the report may take: what hangs may be the file system."""


class Watch:
    """While it is entered, a run that hangs ends, and so does one that does not stop within the grace.

    Such an end is that of the process (exit code 1), since the training thread cannot be reached. Before it, one
    sentence says where each process stands, `status.json` says `failed` with that sentence, and a report in the run's
    folder, `hang-<nimg>.txt` or `grace-<nimg>.txt`, has the stacks of all processes.

    Args:
        world: The processes; all of them have to enter.
        folder: The run's.
        stop: What is to be obeyed within the grace; told of the signals that came to others.
        nimg: Images shown so far; asked from another thread.
        hang_after: Seconds without progress of any process; None: such a run does not end.
        grace: Seconds between a signal and the exit from the watch, behind the checkpoint.
    """

    def __init__(
        self,
        world: World,
        folder: RunFolder,
        stop: StopRequest,
        nimg: Callable[[], int],
        hang_after: float | None,
        grace: float,
    ) -> None:
        self._world, self._folder, self._stop, self._nimg = world, folder, stop, nimg
        self._hang_after, self._grace = hang_after, grace
        self._beat = min(_BEAT, grace / 10, _BEAT if hang_after is None else hang_after / 10)
        self._progress = -1
        self._changed = self._looked = self._entered = time.monotonic()
        self._silences = Silences()
        self._closing = threading.Event()
        self._verdict = threading.Lock()  # held while the end is told: who leaves then ends too, and says nothing else

    def __enter__(self) -> Self:
        self._exchange = Exchange(self._world, self._stop, self._nimg, self._beat)
        self._entered = self._looked = time.monotonic()
        self._look(self._looked)
        self._thread = threading.Thread(target=self._run, name="watch: judge", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._exchange.stay()
        with self._verdict:
            self._closing.set()
        self._thread.join(1.0)
        self._exchange.close()
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while not self._closing.wait(self._beat):
            now = time.monotonic()
            self._stop.listen()
            self._look(now)
            if self._exceeds_grace(now):
                self._end("grace")
            elif self._hangs(now):
                self._end("hang")
            elif self._exchange.leads and not self._world.alone:
                for line in self._silences.look(self._standings()):
                    _write_out(line)

    def _look(self, now: float) -> None:
        """See whether this process gets on; where it was stopped itself, as by Ctrl-Z, nobody's time counts."""
        progress = current().progress
        slept = self._hang_after is not None and now - self._looked > self._hang_after / 2
        if progress != self._progress or slept:
            self._progress, self._changed = progress, now
        self._looked = now
        if self._hang_after is not None:
            # It needs no lock of Python's, so that it also tells where code is that holds that lock for ever.
            faulthandler.dump_traceback_later(self._hang_after, file=2)

    @property
    def _turn(self) -> float:
        """Seconds by which this process acts later than the first one, so that those before it can."""
        return 2 * self._beat * self._world.rank

    def _hangs(self, now: float) -> bool:
        if self._hang_after is None:
            return False
        limit = self._hang_after + self._turn
        changed = max([self._changed, *(heard.changed for heard in list(self._exchange.heard.values()))])
        return now - changed >= limit and self._is_left_alone(now, limit)

    def _exceeds_grace(self, now: float) -> bool:
        since = self._stop.since
        if since is None:
            return False
        # A signal that came while the run was still being prepared is obeyed at the first step boundary.
        late = now - max(since, self._entered) - self._grace - self._turn
        return late >= 0 and self._is_left_alone(now, _STALE * self._beat)

    def _is_left_alone(self, now: float, seconds: float) -> bool:
        """Whether nobody else is there to judge."""
        return self._exchange.leads or now - self._exchange.led >= seconds

    def _end(self, kind: str) -> None:
        """End all processes of the run, and say why.

        Return if the training comes out of it at the last moment, or if another process has begun to say it.
        """
        faulthandler.cancel_dump_traceback_later()
        self._exchange.leads = self._exchange.asks = True
        self._wait_for_stacks(_STACKS[kind])
        with self._verdict:
            if self._exchange.leads and not self._closing.is_set():
                self._end_all(kind)

    def _end_all(self, kind: str) -> None:
        fallback = threading.Timer(_WRITING, os._exit, (1,))
        fallback.daemon = True
        fallback.start()
        standings = self._standings()
        self._tell(kind, standings)
        self._exchange.over = True
        self._wait_until_ready({found.rank for found in standings if found.answers} - {self._world.rank})
        os._exit(1)

    def _wait_until_ready(self, others: set[int]) -> None:
        """The store may end with this process, and what they are waiting for breaks with it: they would say so, too."""
        end = time.monotonic() + LEAVING
        while not others <= self._exchange.ready and time.monotonic() < end:
            time.sleep(self._beat / 4)
        if others and others <= self._exchange.ready:
            self._exchange.dismiss()

    def _wait_for_stacks(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        exchange = self._exchange
        while exchange.leads and len(exchange.stacks) < self._world.size and time.monotonic() < end:
            if self._closing.wait(self._beat / 4):
                return

    def _standings(self) -> list[Standing]:
        now, heard = time.monotonic(), dict(self._exchange.heard)
        found = []
        for rank in range(self._world.size):
            if rank == self._world.rank:
                found.append(Standing(rank, own_beat(0, self._nimg(), self._stop.wanted), 0.0, True))
            elif rank in heard:
                silent = now - heard[rank].at
                found.append(Standing(rank, heard[rank].beat, silent, silent < _STALE * self._beat))
            else:
                found.append(Standing(rank, None, now - self._exchange.led, False))
        return found

    def _tell(self, kind: str, standings: list[Standing]) -> None:
        path = self._folder.path / f"{kind}-{self._nimg():012d}.txt"
        sentence = f"{self._reason(kind)}: {in_words(standings)}; {advice(standings)}; {self._remedy(kind, str(path))}"
        _write_out(f"error: {sentence}")
        with contextlib.suppress(Failure):
            self._folder.write_status("failed", self._nimg(), sentence)
        report = page(sentence, standings, {self._world.rank: own_stacks()} | self._exchange.stacks)
        try:
            path.write_text(report, encoding="utf-8")
        except OSError as error:
            _write_out(f"{path} cannot be written ({error.strerror}); this is what it would say:\n{report}")

    def _reason(self, kind: str) -> str:
        if kind == "grace":
            return (
                f"{self._stop.name} came more than {self._grace:g} s ago (backend.grace), and the run has not stopped"
            )
        who = "the run has not" if self._world.alone else "no process of the run has"
        return f"{who} got on for {self._hang_after:g} s (backend.hang_after)"

    def _remedy(self, kind: str, path: str) -> str:
        longer = "a longer grace" if kind == "grace" else "a longer time, or null,"
        return (
            f"all stacks are in {path}; if it was only slow, set {longer} there; the same command goes on from the "
            "latest checkpoint"
        )


def _write_out(text: str) -> None:
    """Past all buffers and locks, one of which may be what the training thread holds."""
    cursor = "\x1b[?25h\n" if console.is_terminal else ""  # a bar that is drawn hides it
    os.write(2, f"{cursor}{text}\n".encode())
