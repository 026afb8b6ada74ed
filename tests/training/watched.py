"""Run by each of several processes: steps under a watch, in which one of them does what it should not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from hires_gan.progress import say
from hires_gan.training.activity import doing, waiting
from hires_gan.training.beats import Exchange
from hires_gan.training.run_folder import RunFolder
from hires_gan.training.signals import StopRequest
from hires_gan.training.watch import Watch
from hires_gan.training.world import World

STEPS = 5
"""Steps that all do well."""
LATE = "sleeps, and the last one hears late"


def train(world: World, folder: Path, scenario: str, hang_after: float | None, grace: float) -> int:
    """Train, so to speak; `scenario` is RANK:WHAT, who misbehaves how."""
    rank, _, what = scenario.partition(":")
    stop, run = StopRequest(world.alone), RunFolder(folder / "run", held=world.first)
    with stop:
        if what == "gets a signal early" and int(rank) == world.rank:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.5 * grace)
        done = watched_steps(world, run, stop, int(rank), what, hang_after, grace)
    if world.first:
        run.write_status("preempted", 8 * done)
    world.leave()
    return 75


def watched_steps(
    world: World, run: RunFolder, stop: StopRequest, rank: int, what: str, hang_after: float | None, grace: float
) -> int:
    """Steps until all agree to stop; how many."""
    done = 0
    if what == LATE and world.rank == world.size - 1:
        hear_late()
    with Watch(world, run, stop, lambda: 8 * done, hang_after, grace):
        while not stop.agreed:
            if done == STEPS:
                os.write(1, b"ready")
            step(world, what if done >= STEPS and rank == world.rank else "", stop)
            done += 1
    return done


def hear_late() -> None:
    """Let this process hear what the leader says more than a second later than the others do."""
    follow = Exchange._follow

    def late(self: Exchange) -> None:
        time.sleep(1.5)
        follow(self)

    Exchange._follow = late  # type: ignore[method-assign]


def step(world: World, what: str, stop: StopRequest) -> None:
    with doing("phase: generator"):
        time.sleep(0.01)
    misbehave(what, stop)
    with waiting("sum of gradients"):
        world.any(False)
    stop.agree(world.any(stop.wanted is not None))


def misbehave(what: str, stop: StopRequest) -> None:
    if what in ("sleeps", LATE):
        with doing("data"):
            time.sleep(1000)
    if what == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "holds":  # Python's lock: nothing in a sum of a range lets go of it
        with doing("native code"):
            sum(range(10**13))
    if what == "evaluates":
        with doing("evaluation"):
            while not stop.interrupted():
                time.sleep(0.02)
        say("left the evaluation")
    if what == "sleeps at a signal":
        while not stop.heard:
            time.sleep(0.02)
        with doing("checkpoint"):
            time.sleep(1000)
