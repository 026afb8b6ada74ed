"""Training steps without a run: the recipe, the backend, and the clocks."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from hires_gan.bench.plain_steps import TorchRandom, follow_one_by_one, lay_out_contiguously, read
from hires_gan.bench.train_images import Images, Supply
from hires_gan.bench.train_ops import Op, recording
from hires_gan.ops.leaving_out import left_out
from hires_gan.randomness import SampleRandom
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, Phase, Recipe, Stage, Step, stage_at
from hires_gan.training.backends import Backend
from hires_gan.training.launch import DTYPES
from hires_gan.training.settings import Plan
from hires_gan.training.trainer import average_decay


@dataclass(frozen=True)
class Place:
    """Where in the schedule the steps lie.

    Attributes:
        stage: Whose optimizers, batch and resolution hold.
        nimg: Images shown before the first step, at which all phases are due.
        cycle: After how many steps the phases repeat.
        room: So many steps fit the stage, whole cycles if one does; behind them they begin anew.
    """

    stage: Stage
    nimg: int
    cycle: int
    room: int | None

    def at(self, step: int) -> int:
        """Images shown before a step."""
        return self.nimg + (step if self.room is None else step % self.room) * self.stage.batch


def find_place(recipe: Recipe, wanted: int | None) -> Place:
    """The start of the last stage, or the start of the cycle in which `wanted` images have been shown."""
    stage = recipe.stages[-1 if wanted is None else stage_at(recipe.stages, wanted)]
    cycle = math.lcm(*(phase.interval for phase in recipe.phases(stage.start)))
    steps = None if stage.end is None else (stage.end - stage.start) // stage.batch
    step = 0 if wanted is None else (wanted - stage.start) // stage.batch // cycle * cycle
    if steps is not None and steps >= cycle:  # the last cycle is whole
        step = min(step, (steps - cycle) // cycle * cycle)
    nimg, left = stage.start + step * stage.batch, None if steps is None else steps - step
    return Place(stage, nimg, cycle, None if left is None else left // cycle * cycle or max(left, 1))


def recipe_for(plan: Plan, images: Images) -> Recipe:
    """The recipe of the configuration, for these images."""
    dtype = DTYPES[plan.precision]
    return build_recipe(plan.recipe, plan.batch.size, dtype, plan.run.seed, images.labels, images.domains)


def build_backend(recipe: Recipe, device: torch.device, plan: Plan) -> Backend:
    """What steps, as in a run but for what is left out."""
    backend = Backend(recipe, device, plan.run.seed, plan.performance, levers=plan.levers)
    if left_out("channels-last"):
        lay_out_contiguously([*recipe.players.values(), backend.average])
    if left_out("device-draws"):
        backend.random = TorchRandom(plan.run.seed, torch.device("cpu"))
    elif left_out("sample-draws"):
        backend.random = TorchRandom(plan.run.seed)
    return backend


class Stand:
    """A recipe on a device, ready to step.

    Args:
        plan: The configuration.
        images: What it is trained on.
        device: Where it is trained.
        wanted: See `find_place`.
        micro: Images that go through the networks at once.

    Attributes:
        steps: How many it has made.
    """

    def __init__(self, plan: Plan, images: Images, device: torch.device, wanted: int | None, micro: int) -> None:
        self.plan, self.device, self.micro, self.images = plan, device, micro, images
        self.recipe = recipe_for(plan, images)
        self.place = find_place(self.recipe, wanted)
        self.backend = build_backend(self.recipe, device, plan)
        self.backend.enter(self.place.stage)
        self.steps = 0

    @property
    def phases(self) -> list[Phase]:
        """All of them: at the start of a cycle all are due."""
        return list(self.recipe.phases(self.place.nimg))

    def step(self, feed: Supply) -> None:
        """One step, as the trainer does it but for what is left out."""
        nimg = self.place.at(self.steps)
        batch = feed.take()
        means = self.backend.step(self.recipe.phases(nimg), batch, nimg, self.micro)
        if left_out("unread"):
            read(means)
        self._follow(average_decay(self.plan.ema, len(batch), nimg))
        feed.copy_ahead()
        self.recipe.advance(nimg + len(batch), means)
        self.steps += 1

    def _follow(self, decay: float) -> None:
        if left_out("average"):
            follow_one_by_one(self.backend.average, self.recipe.players[self.recipe.averaged], decay)
        else:
            self.backend.update_average(decay)

    def alone(self, phase: Phase, batch: Batch) -> None:
        """One phase of a step, for all of the batch."""
        self.backend.step([phase], batch, self.place.nimg, self.micro)

    def record(self, phase: Phase, batch: Batch) -> list[list[Op]]:
        """The ops of one call of a phase, by micro-batch: its losses forward and backward, without the optimizer."""
        weights = dict(self.recipe.players[phase.player].named_parameters())
        live = [weights[name] for name in self.place.stage.optimizers[phase.player].live]
        samples = torch.arange(self.place.nimg, self.place.nimg + len(batch), device=self.device)
        alpha = None if phase.alpha is None else torch.full((), phase.alpha, dtype=torch.float64, device=self.device)
        found = []
        for start in range(0, len(batch), self.micro):
            part = slice(start, start + self.micro)
            step = Step(batch.part(part), SampleRandom(self.backend.random, samples[part]), alpha)
            for weight in live:
                weight.requires_grad_(True)
            with recording(self.recipe.players, self.device) as ops:
                losses = phase.function(step).losses.values()
                torch.stack([loss.sum() for loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
            for weight in live:
                weight.requires_grad_(False)
                weight.grad = None
            found.append(ops)
        return found


def run_until_recorded(phases: Iterable[Phase], run: Callable[[Phase], object]) -> None:
    """Call phases until all are recorded as CUDA graphs: in their second calls, once each of them has run."""
    for phase in [*phases] * 2:
        run(phase)


@dataclass(frozen=True)
class Timing:
    """What some steps in a row took, in seconds; `device` is None on a CPU."""

    steps: int
    seconds: float
    host: float
    """In which Python launched, without waiting for data; on a GPU also the wait for room in the queue of launches."""
    device: float | None
    """From the first event to the last on the GPU, gaps included."""
    lost: float
    """To waiting for data: by Python on a CPU, or by a GPU that had nothing else to do."""


def time_steps(stand: Stand, feed: Supply, steps: int) -> Timing:
    """Take the time of so many steps."""
    if stand.device.type == "cuda":
        torch.cuda.synchronize(stand.device)  # what was lost before is known now
    waited, lost, host = feed.waited, feed.lost(), 0.0

    def run() -> None:
        nonlocal host
        for _ in range(steps):
            start = time.perf_counter()
            stand.step(feed)
            host += time.perf_counter() - start

    seconds, device = time_work(run, stand.device)
    return Timing(steps, seconds, host - (feed.waited - waited), device, feed.lost() - lost)


def time_work(work: Callable[[], None], device: torch.device) -> tuple[float, float | None]:
    """Wall time of some work until it is done; and, on a GPU, its time between two events."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, None
    before, behind = _events()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    before.record()
    work()
    behind.record()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, before.elapsed_time(behind) / 1e3


def time_phase(stand: Stand, phase: Phase, batch: Batch, calls: int) -> float:
    """Seconds of one call of a phase alone, on average over some behind one that is not measured.

    On a GPU the clock starts in its queue, where that call ends: each call has its own gap before it, and no more.
    """
    stand.alone(phase, batch)
    if stand.device.type != "cuda":
        start = time.perf_counter()
        _repeat(stand, phase, batch, calls)
        return (time.perf_counter() - start) / calls
    before, behind = _events()
    before.record()
    _repeat(stand, phase, batch, calls)
    behind.record()
    torch.cuda.synchronize(stand.device)
    return float(before.elapsed_time(behind)) / 1e3 / calls


def _repeat(stand: Stand, phase: Phase, batch: Batch, calls: int) -> None:
    for _ in range(calls):
        stand.alone(phase, batch)


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return before, behind


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Bytes: on a GPU allocated and reserved since the last reset; on a CPU the process's peak since its start."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
            "resident": None,
        }
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"allocated": None, "reserved": None, "resident": resident}
