"""What a step takes on one device alone, and when in its backward passes each bucket of the gradient is complete."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from hires_gan.bench.scaling_model import PhaseCost, StepCost
from hires_gan.bench.train_images import Images, Synthetic
from hires_gan.bench.train_steps import Stand, run_until_recorded, time_phase, time_work
from hires_gan.progress import say
from hires_gan.randomness import RandomSource, SampleRandom
from hires_gan.recipes.protocol import Batch, Phase, Stage, Step
from hires_gan.training.buckets import BYTES, cut
from hires_gan.training.flat import FlatGradients
from hires_gan.training.graphs import Recorder
from hires_gan.training.settings import Plan


def local_batch(plan: Plan, stage: Stage, images: Images, device: torch.device, count: int) -> Batch:
    """So many random images as a phase sees them."""
    dtype = torch.float64 if plan.precision == "fp64" else torch.float32
    few = dataclasses.replace(stage, batch=count)
    return Synthetic(few, device, dtype, domains=images.domains).take()


def gradients_of(stand: Stand, phase: Phase) -> FlatGradients:
    """A buffer for the gradients of the phase's player, as a run has it."""
    return FlatGradients(list(stand.backend.live[phase.player].values()))


def buckets_of(gradients: FlatGradients) -> tuple[tuple[int, ...], list[list[nn.Parameter]]]:
    """Bytes and parameters of each bucket, in the order in which they are sent."""
    parts, members = cut(gradients, BYTES)
    return tuple(part.numel() * part.element_size() for part in parts), members


def count_step(stand: Stand, seconds: dict[str, float]) -> StepCost:
    """A step whose phases are given by hand, of which only the gradients' bytes are looked at.

    The optimizer's step is not told apart, and counts with every micro-batch.

    Args:
        stand: Networks and optimizers.
        seconds: Of one call of each phase, by name, over one micro-batch.
    """
    phases = {
        one.name: PhaseCost(one.interval, seconds[one.name], 0.0, buckets_of(gradients_of(stand, one))[0])
        for one in stand.phases
    }
    return StepCost(phases, stand.micro)


def measure_step(stand: Stand, batch: Batch, calls: int) -> StepCost:
    """Take the time of every phase over one micro-batch.

    Args:
        stand: Networks and optimizers, as at the start of a cycle.
        batch: One micro-batch.
        calls: Of each phase, behind some that are not measured.
    """
    if stand.backend.pulled.whole:
        run_until_recorded(stand.phases, lambda phase: stand.alone(phase, batch))
    phases = {}
    for phase in stand.phases:
        say(f"the {phase.name} phase alone, and when its buckets are complete")
        phases[phase.name] = _measure_phase(stand, phase, batch, calls)
    seconds, on_device = time_work(lambda: _average(stand, calls), stand.device)
    return StepCost(phases, len(batch), (seconds if on_device is None else on_device) / calls)


def _average(stand: Stand, calls: int) -> None:
    for _ in range(calls):
        stand.backend.update_average(0.999)


def _measure_phase(stand: Stand, phase: Phase, batch: Batch, calls: int) -> PhaseCost:
    whole = time_phase(stand, phase, batch, calls)
    gradients = gradients_of(stand, phase)
    complete = min(_complete(stand, phase, gradients, calls), whole)
    sizes, members = buckets_of(gradients)
    shares = _ready_shares(stand, phase, batch, gradients, members, calls)
    passes = whole - complete
    return PhaseCost(phase.interval, passes, complete, sizes, tuple(passes * share for share in shares))


def _complete(stand: Stand, phase: Phase, gradients: FlatGradients, calls: int) -> float:
    """Seconds of the optimizer's step, and of what is done to the gradient before it; recorded as in the phase."""

    def complete() -> None:
        gradients.complete(1.0)
        stand.backend.optimizers[phase.player].step()

    once = Recorder(stand.device, stand.backend.pulled.graphs).wrap(complete, f"optimizer's step of {phase.name}")

    def run() -> None:
        for _ in range(calls):
            once()

    gradients.attach()
    try:
        for _ in range(2):  # the second call records
            once()
        seconds, on_device = time_work(run, stand.device)
    finally:
        gradients.detach()
    return (seconds if on_device is None else on_device) / calls


class _Mark(Protocol):
    def seconds_until(self, other: Any) -> float: ...


class _WallMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def seconds_until(self, other: _WallMark) -> float:
        return other._at - self._at


class _DeviceMark:
    """An event in the device's queue."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def seconds_until(self, other: _DeviceMark) -> float:
        other._event.synchronize()
        return float(self._event.elapsed_time(other._event)) / 1e3


def _ready_shares(
    stand: Stand,
    phase: Phase,
    batch: Batch,
    gradients: FlatGradients,
    members: Sequence[Sequence[nn.Parameter]],
    calls: int,
) -> list[float]:
    """Of each bucket, how long before the end it is complete, as a share of the forward and backward pass.

    The median over some calls, kernel by kernel: what is recorded as a CUDA graph calls no hooks.
    """
    found = [_ready_once(stand, phase, batch, gradients, members) for _ in range(1 + calls)][1:]
    return [statistics.median(values) for values in zip(*found, strict=True)]


def _ready_once(
    stand: Stand, phase: Phase, batch: Batch, gradients: FlatGradients, members: Sequence[Sequence[nn.Parameter]]
) -> list[float]:
    kind: type[_WallMark] | type[_DeviceMark] = _DeviceMark if stand.device.type == "cuda" else _WallMark
    marks: dict[nn.Parameter, _Mark] = {}
    gradients.attach()
    hooks = [_hooked(one, marks, kind) for one in gradients.parameters]
    try:
        start = kind()
        _pass(stand, phase, batch)
        end = kind()
    finally:
        for hook in hooks:
            hook.remove()
        gradients.detach()
    whole = start.seconds_until(end)  # type: ignore[arg-type]
    return [_before_end(group, marks, end) / whole for group in members]


def _hooked(parameter: nn.Parameter, marks: dict[nn.Parameter, _Mark], kind: type[_Mark]) -> Any:
    def arrived(one: nn.Parameter) -> None:
        marks[one] = kind()

    return parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]


def _pass(stand: Stand, phase: Phase, batch: Batch) -> None:
    """Forward and backward over one micro-batch, as a phase does it."""
    first = stand.place.nimg
    samples = torch.arange(first, first + len(batch), device=stand.device)
    random = SampleRandom(RandomSource(stand.plan.run.seed), samples)
    seen = Batch(batch.images.detach(), batch.labels, batch.domains)
    losses = phase.function(Step(seen, random)).losses.values()
    (torch.stack([loss.sum() for loss in losses]).sum() / len(batch)).backward()  # type: ignore[no-untyped-call]


def _before_end(group: Sequence[nn.Parameter], marks: dict[nn.Parameter, _Mark], end: Any) -> float:
    """Seconds; 0 where a parameter gets no gradient in this phase: such a bucket is sent behind the pass."""
    if any(one not in marks for one in group):
        return 0.0
    return min(marks[one].seconds_until(end) for one in group)
