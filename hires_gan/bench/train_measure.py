"""All that is measured of one micro-batch: steps, phases, kernels and ops; and what follows from them."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hires_gan.bench.train_checkpoint import measure_checkpoint
from hires_gan.bench.train_floor import IN_WORDS, by_layer, by_side, cost, layers, updating
from hires_gan.bench.train_images import Images, Synthetic
from hires_gan.bench.train_ops import Op
from hires_gan.bench.train_profile import Activity, busy_ms, kernels, profiled
from hires_gan.bench.train_queue import Queue, begin_anew, queued
from hires_gan.bench.train_rates import Rates, buffer_bytes, matrix_dtype, matrix_side
from hires_gan.bench.train_steps import Stand, Timing, peak_memory, time_phase, time_steps
from hires_gan.errors import Failure
from hires_gan.memory import is_out_of_memory
from hires_gan.progress import say
from hires_gan.recipes.protocol import Batch, Phase, Stage
from hires_gan.training.launch import DTYPES
from hires_gan.training.settings import Plan

PHASE_CALLS = 4
"""Of each phase alone, behind one that is not measured."""
_KERNELS_KEPT = 100
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is measured with every micro-batch.

    Attributes:
        plan: The configuration.
        images: What it is trained on.
        device: Where.
        stage_nimg: Where in the schedule; None for the last stage.
        cycle: After how many steps the phases repeat.
        group: Samples that go through the networks together at least.
        warmup: Steps that are not timed.
        steps: Timed steps.
        profile: Whether to list the GPU's kernels.
        checkpoint: Where to write checkpoints, to measure what they cost; None: that is not measured.
    """

    plan: Plan
    images: Images
    device: torch.device
    stage_nimg: int | None
    cycle: int
    group: int
    warmup: int
    steps: int
    profile: bool
    checkpoint: Path | None = None

    def stand(self, micro: int) -> Stand:
        """Networks and optimizers, as at the start of the stage."""
        return Stand(self.plan, self.images, self.device, self.stage_nimg, micro)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The ops of one call of a phase.

    Attributes:
        interval: Every how many steps it is due.
        ops: All of them, but for those that compute again what was not kept.
        single: Those of one micro-batch, in the phase in which the averaged player learns from the other's judgement.
            Empty for other phases.
        again: Floating-point operations of those that compute again what was not kept.
    """

    interval: int
    ops: list[Op]
    again: int
    single: list[Op] = dataclasses.field(default_factory=list)


def measure(job: Job, micro: int, rates: Rates, keep: Callable[[Record], object]) -> Record:
    """Measure one micro-batch: timed steps first, then what disturbs them.

    Among the results are `remarks`: what was neither recorded nor compiled though it was to be, and why; and what was
    recorded or compiled in the timed steps, behind too short a warm-up.

    Args:
        job: What is measured.
        micro: Images at once.
        rates: What the device has shown.
        keep: Is given what is known once the steps and each phase are timed: what follows may fail.

    Raises:
        Failure: What follows the timed steps has failed.
    """
    _free(job.device)
    result = _timed(job, micro, keep)
    _free(job.device)
    with _behind("counting operations"):
        counted, recorded, updates = _counted(job, micro)
    result["counted_micro"] = counted
    _free(job.device)
    if not rates.measured:
        say("the rates of matrix products and of a copy")
    with _behind("measuring rates"):
        return compare(result, recorded, updates, rates, matrix_dtype(DTYPES[job.plan.precision], job.device))


@contextmanager
def told_out_of_memory(micro: int, stage: Stage, remedy: str) -> Iterator[None]:
    """Turn an exhausted memory into a sentence.

    Raises:
        Failure: In its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failure(
            f"out of memory at {stage.resolution}x{stage.resolution} with a micro-batch of {micro}: {remedy}"
        ) from None


@contextmanager
def _behind(what: str) -> Iterator[None]:
    """Tell what has failed behind the steps, which were timed and are kept.

    Raises:
        Failure: In place of the error.
    """
    try:
        yield
    except Failure as failure:
        raise Failure(f"{what} failed behind the steps, which were timed: {failure}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failure(
            f"{what} ran out of memory behind the steps, which were timed and fit: take a smaller --micro"
        ) from None


def next_smaller(micro: int, group: int) -> int:
    """The next smaller micro-batch of whole groups; 0 if there is none."""
    return (micro - 1) // group * group


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _timed(job: Job, micro: int, keep: Callable[[Record], object]) -> Record:
    stand = job.stand(micro)
    with queued(stand) as feed:
        say(f"micro-batch {micro}: {job.warmup} steps unmeasured, then {job.steps} timed")
        for _ in range(job.warmup):
            stand.step(feed)
        _settle(stand, feed)
        late = made_late(stand, job.steps)
        timing = time_steps(stand, feed, job.steps)
        memory, batch = peak_memory(job.device), feed.take()
    say("each phase alone")
    with _behind("each phase alone"):
        phases = {one.name: _phase_alone(stand, one, batch) for one in stand.phases}
    average = 1e3 * timing.seconds / timing.steps
    if job.steps % job.cycle:
        average = sum(phase["ms_per_step"] for phase in phases.values()) + 1e3 * timing.lost / timing.steps
    compiler = stand.backend.compiler
    result: Record = {"micro": micro} | speeds(timing, len(batch), job.plan.run.total_kimg, average)
    result |= {"memory": memory, "phases": phases, "remarks": [*stand.backend.remarks, *late]}
    result |= {"compiled": {"seconds": compiler.seconds, "refused": compiler.refused}}
    result |= {"profile": None, "checkpoint": None}
    keep(result)
    if job.checkpoint is not None:
        with _behind("the checkpoint"):
            result["checkpoint"] = _checkpoint(job, stand)
    if job.profile:
        with _behind("the kernels' profile"):
            result["profile"] = _profile(stand, batch)
    return result


def _settle(stand: Stand, feed: Queue) -> None:
    """Forget what the warm-up took besides: calls that were recorded or compiled. What CUDA graphs hold stays reserved.

    One step more takes the memory anew that steps need, so that no timed one asks the device for it. Nor does a timed
    one get a batch that was decoded before.
    """
    if stand.device.type == "cuda":
        _free(stand.device)
        stand.step(feed)
    begin_anew(stand, feed)


def made_late(stand: Stand, steps: int) -> list[str]:
    """A sentence for what is still to be compiled or recorded in the steps that a stand makes next.

    A phase compiles in its first call, and is recorded in its second one; all are due in the first step. Where
    something was refused nothing is told: the backend's remarks say it.
    """
    if stand.backend.remarks:
        return []
    pulled, at = stand.backend.pulled, stand.place.at
    before, behind = (
        Counter(phase.name for step in range(made) for phase in stand.recipe.phases(at(step)))
        for made in (stand.steps, stand.steps + steps)
    )
    compiled = [phase for phase in stand.phases if pulled.compile == "all" or phase.interval == 1]
    compiled = compiled if pulled.compile != "none" else []
    ways = {"compiled": (1, compiled), "recorded": (2, stand.phases if pulled.graphs else [])}
    late = {
        way: ", ".join(phase.name for phase in phases if before[phase.name] < call <= behind[phase.name])
        for way, (call, phases) in ways.items()
    }
    return [
        f"too short a warm-up: the timed steps hold those in which phases are {way} ({names}), which take longer; take "
        f"--warmup {stand.place.cycle} or more"
        for way, names in late.items()
        if names
    ]


def _checkpoint(job: Job, stand: Stand) -> Record:
    assert job.checkpoint is not None
    say("steps beside a checkpoint that is written")
    with queued(stand) as feed:
        return measure_checkpoint(stand, feed, job.steps, job.checkpoint)


def speeds(timing: Timing, batch: int, total_kimg: float, average: float) -> Record:
    """What follows from the time of some steps.

    Args:
        timing: Of the steps.
        batch: How many images each has.
        total_kimg: Of all of the run.
        average: Milliseconds of an average step, of which rates are told: the timed ones may hold more of some phases.
    """
    rate = 1e3 * batch / average
    per_step = 1e3 / timing.steps
    return {
        "average_ms_per_step": average,
        "steps": timing.steps,
        "batch": batch,
        "seconds": timing.seconds,
        "images_per_s": rate,
        "s_per_kimg": 1e3 / rate,
        "gpu_days": total_kimg * 1e3 / rate / 86_400,
        "ms_per_step": timing.seconds * per_step,
        "host_ms_per_step": timing.host * per_step,
        "device_ms_per_step": None if timing.device is None else timing.device * per_step,
        "data_wait_share": timing.lost / timing.seconds,
    }


def _phase_alone(stand: Stand, phase: Phase, batch: Batch) -> Record:
    """Its time; and the most memory that it takes, which CUDA graphs hide in their pool."""
    if stand.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(stand.device)
    seconds = time_phase(stand, phase, batch, PHASE_CALLS)
    return {
        "interval": phase.interval,
        "ms_per_call": 1e3 * seconds,
        "ms_per_step": 1e3 * seconds / phase.interval,
        "peak_allocated": peak_memory(stand.device)["allocated"],
    }


def _profile(stand: Stand, batch: Batch) -> Record:
    say("the kernels of each phase")
    work: dict[str, tuple[int, list[Activity]]] = {}
    for phase in stand.phases:
        work[phase.name] = (phase.interval, profiled(partial(stand.alone, phase, batch), stand.device))
    return summarise(work)


def summarise(work: Mapping[str, tuple[int, list[Activity]]]) -> Record:
    """Kernels of an average step, and by phase how many they are in one call, and how long the GPU is busy in it."""
    found = kernels(work)
    phases = {name: {"kernels": len(ran), "busy_ms": busy_ms(ran)} for name, (_, ran) in work.items()}
    return {
        "kernels_per_step": sum(one.calls_per_step for one in found),
        "busy_ms_per_step": sum(busy_ms(ran) / interval for interval, ran in work.values()),
        "phases": phases,
        "kernels": [dataclasses.asdict(one) for one in found[:_KERNELS_KEPT]],
    }


def _counted(job: Job, micro: int) -> tuple[int, dict[str, Recorded], list[tuple[int, list[Op]]]]:
    """Count, with smaller micro-batches where watching the ops takes memory that training does not."""
    while True:
        say(f"counting operations and bytes, with a micro-batch of {micro}")
        try:
            return micro, *_recorded(job, micro)
        except (RuntimeError, MemoryError) as error:
            smaller = next_smaller(micro, job.group)
            if not smaller or not is_out_of_memory(error):
                raise
        micro = smaller
        _free(job.device)


def _recorded(job: Job, micro: int) -> tuple[dict[str, Recorded], list[tuple[int, list[Op]]]]:
    """The ops of each phase, and those that update weights and average, with their intervals."""
    stand = job.stand(micro)
    stage, players = stand.place.stage, stand.recipe.players
    dtype = torch.float64 if job.plan.precision == "fp64" else torch.float32
    batch = Synthetic(stage, job.device, dtype, job.images.labels is not None, job.images.domains).take()
    phases, updates = {}, []
    averaged: list[Tensor] = list(players[stand.recipe.averaged].state_dict().values())
    for phase in stand.phases:
        parts = stand.record(phase, batch)
        single = phase.player == stand.recipe.averaged and phase.interval == 1
        ran = [op for part in parts for op in part]
        again = sum(op.flops for op in ran if op.again)
        ops = [op for op in ran if not op.again]
        phases[phase.name] = Recorded(phase.interval, ops, again, parts[0] if single else [])
        weights = dict(players[phase.player].named_parameters())
        live = [weights[name] for name in stage.optimizers[phase.player].live]
        updates.append((phase.interval, updating(live, [])))
    return phases, [*updates, (1, updating([], averaged))]


def compare(
    result: Record,
    recorded: Mapping[str, Recorded],
    updates: Sequence[tuple[int, Sequence[Op]]],
    rates: Rates,
    dtype: torch.dtype,
) -> Record:
    """Set what was timed beside what was counted.

    Args:
        result: Of the timed steps, with `batch`, `average_ms_per_step` and `phases`.
        recorded: The ops of each phase.
        updates: The ops that update weights and average, with their intervals.
        rates: What the device has shown.
        dtype: In which its matrix product is called its peak.
    """
    steps = [(one.interval, one.ops) for one in recorded.values()]
    sides = by_side([*steps, *updates], rates)
    flops = sum(op.flops / interval for interval, ops in steps for op in ops)
    again = sum(one.again / one.interval for one in recorded.values())
    achieved = flops / (result["average_ms_per_step"] / 1e3)
    for name, one in recorded.items():
        whole = cost(one.ops, rates)
        result["phases"][name] |= {"gflop": whole.gflop, "mb": whole.mb, "floor_ms_per_call": whole.ms}
    floor = sum(one.ms for one in sides.values())
    return result | {
        "operations": {
            "flop_per_image": flops / result["batch"],
            "flop_again_per_image": again / result["batch"],
            "tflops": achieved / 1e12,
            "peak_tflops": rates.matrix(dtype) / 1e12,
            "peak_of": f"{matrix_side(rates.device)}^3 in {_name(dtype)}",
            "share_of_peak": achieved / rates.matrix(dtype),
            "copy_gb_per_s": rates.copy / 1e9,
            "copy_bytes": buffer_bytes(rates.device),
        },
        "floor": {
            "ms_per_step": floor,
            "share_of_step": floor / result["average_ms_per_step"],
            "ms_of_matrices": sum(one.ms_of_matrices for one in sides.values()),
            "updates_ms": sum(cost(ops, rates).ms / interval for interval, ops in updates),
            "by_resolution": {str(side): dataclasses.asdict(one) for side, one in sides.items()},
            "matrix_tflops": {_name(kind): rate / 1e12 for kind, rate in rates.measured.items()},
            "by_layer": {name: dataclasses.asdict(one) for name, one in by_layer([*steps, *updates], rates).items()},
            "layers": _layers(recorded, rates),
            "in_words": IN_WORDS,
        },
    }


def _layers(recorded: Mapping[str, Recorded], rates: Rates) -> list[Record]:
    """A forward pass of one micro-batch through the players, with all calls that are due in it."""
    single = (op for one in recorded.values() for op in one.single if op.forward)
    return [
        {"name": layer.name, "calls": layer.calls, "shape": list(layer.shape)} | dataclasses.asdict(layer.cost)
        for layer in layers(single, rates)
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
