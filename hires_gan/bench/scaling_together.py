"""The same step on processes that really are there, beside what the model makes of it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from hires_gan.bench.scaling_model import PhaseCost, StepCost, exposed
from hires_gan.bench.train_images import Images
from hires_gan.bench.train_steps import Stand, recipe_for, run_until_recorded, time_work
from hires_gan.progress import say
from hires_gan.recipes.protocol import Batch, Phase
from hires_gan.training.backends import Backend
from hires_gan.training.settings import Plan
from hires_gan.training.world import World

Record = dict[str, Any]
Work = Callable[[], Any]
_MESSAGES = 50
_SUMS = 8
_WARM = 2
"""Calls that are not measured."""
CONTROL = "asked before each call of a phase and heard behind it, as in training at the boundaries of steps"


@dataclass(frozen=True)
class Messages:
    """Seconds of single messages to all.

    Attributes:
        control: Of a control message, waited for.
        means: Of the sum of a call's losses and statistics.
        sums: Of the sum of each bucket, by its bytes.
    """

    control: float
    means: float
    sums: dict[int, float]


def measure_together(
    plan: Plan, images: Images, world: World, stand: Stand, batch: Batch, cost: StepCost, calls: int
) -> Record:
    """Take the time of each phase on all processes, each with one micro-batch, and of what they tell each other.

    A control message is on its way during each call of a phase, as in training during each step: it shows in the times
    where it takes longer than the phase, or slows it down.

    Args:
        plan: The configuration.
        images: What is trained on.
        world: The processes; all of them have to take part.
        stand: The same step alone.
        batch: One micro-batch.
        cost: What the slowest of the processes took alone, and when its buckets were complete.
        calls: Of each phase, alone and together in turns, behind two that are not measured.

    Returns:
        Measured times, and what the model predicts of them from the times of single messages.
    """
    say(f"the same phases on {world.size} processes")
    backend = _entered(plan, images, world, stand, batch)
    overlap = not backend.pulled.whole
    messages = _messages(world, cost)
    phases = {}
    for own, phase in zip(stand.phases, backend.recipe.phases(stand.place.nimg), strict=True):
        pair: list[Work] = [partial(stand.alone, own, batch), _stepped(backend, phase, batch, stand.place.nimg)]
        alone, together = _turns(world, pair, calls)
        phases[phase.name] = _compared(cost.phases[phase.name], alone, together, messages, overlap)
    return _together(world, cost, phases, messages) | {
        "overlap": overlap,
        "buckets_ms": {str(size): 1e3 * seconds for size, seconds in messages.sums.items()},
    }


def _entered(plan: Plan, images: Images, world: World, stand: Stand, batch: Batch) -> Backend:
    """What steps on all processes, recorded if it is to be."""
    recipe, seed, first = recipe_for(plan, images), plan.run.seed, stand.place.nimg
    backend = Backend(recipe, world.device, seed, plan.performance, world, levers=plan.levers)
    backend.enter(dataclasses.replace(stand.place.stage, batch=world.size * len(batch)))
    if backend.pulled.whole:
        run_until_recorded(recipe.phases(first), lambda phase: backend.step([phase], batch, first, len(batch)))
    return backend


def _messages(world: World, cost: StepCost) -> Messages:
    (control,) = _turns(world, [lambda: world.any(False)], _MESSAGES)
    (means,) = _turns(world, [lambda: world.sum([torch.zeros(8, device=world.device)])], _MESSAGES)
    sizes = sorted({size for one in cost.phases.values() for size in one.buckets})
    return Messages(control, means, {size: _turns(world, [_summed(world, size)], _SUMS)[0] for size in sizes})


def _stepped(backend: Backend, phase: Phase, batch: Batch, first: int) -> Work:
    """A step of one phase between two boundaries: a control message is asked at the one and heard at the other."""

    def run() -> None:
        heard = backend.world.ask(False)
        backend.step([phase], batch, first, len(batch))
        heard()

    return run


def _summed(world: World, size: int) -> Work:
    part = torch.zeros(size // 4, device=world.device)
    return lambda: dist.all_reduce(part)


def _turns(world: World, contestants: Sequence[Work], calls: int) -> list[float]:
    """Seconds of a call of each, in turns: the median over the calls, of the process that took longest in each."""
    taken: list[list[float]] = [[] for _ in contestants]
    for number in range(_WARM + calls):
        for times, work in zip(taken, contestants, strict=True):
            world.any(False)  # all begin together
            seconds, on_device = time_work(partial(_done, work), world.device)
            if number >= _WARM:
                times.append(seconds if on_device is None else on_device)
    every: list[list[list[float]]] = world.gathered(taken)
    return [statistics.median(map(max, zip(*times, strict=True))) for times in zip(*every, strict=True)]


def _done(work: Work) -> None:
    work()


def _compared(cost: PhaseCost, alone: float, together: float, messages: Messages, overlap: bool) -> Record:
    shares = (0.0,) * len(cost.buckets) if cost.ready is None or not overlap else cost.ready
    ready = [alone / cost.seconds(1) * before for before in shares]
    late = exposed(ready, [messages.sums[size] for size in cost.buckets])
    return {
        "interval": cost.interval,
        "alone_ms": 1e3 * alone,
        "measured_ms": 1e3 * together,
        "predicted_ms": 1e3 * max(alone + late + messages.means, messages.control),
    }


def _together(world: World, cost: StepCost, phases: dict[str, Record], messages: Messages) -> Record:
    """An average step: the phases by their intervals, the running average, one sum of means.

    Each phase has a control message beside it, where a step has one: what is lost to it is rather too much.
    """

    def average(name: str, means: float) -> float:
        taken = [float((one[name] / 1e3 - means) / one["interval"]) for one in phases.values()]
        return cost.rest + means + sum(taken)

    alone = average("alone_ms", 0.0)
    measured, predicted = (average(name, messages.means) for name in ("measured_ms", "predicted_ms"))
    return {
        "processes": world.size,
        "neighbours": world.neighbours,
        "images_per_process": cost.micro,
        "control": CONTROL,
        "control_ms": 1e3 * messages.control,
        "control_us_per_message": 1e6 * messages.control / (2 * (world.size - 1)),
        "means_ms": 1e3 * messages.means,
        "phases": phases,
        "alone_step_ms": 1e3 * alone,
        "measured_step_ms": 1e3 * measured,
        "predicted_step_ms": 1e3 * predicted,
        "measured_efficiency": alone / measured,
        "predicted_efficiency": alone / predicted,
    }
