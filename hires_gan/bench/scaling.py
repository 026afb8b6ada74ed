"""How a configuration would scale: a step measured here, or given by hand, and a stated model of the network."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hires_gan.bench.identity import identity, require_least
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.bench.scaling_measure import count_step, local_batch, measure_step
from hires_gan.bench.scaling_model import ASSUMED, IN_WORDS, Conditions, Network, PhaseCost, StepCost, strong, weak
from hires_gan.bench.scaling_together import Record, measure_together
from hires_gan.bench.train_images import open_images
from hires_gan.bench.train_measure import told_out_of_memory
from hires_gan.bench.train_steps import Stand, find_place, recipe_for
from hires_gan.errors import UsageError
from hires_gan.ops.selection import resolve
from hires_gan.recipes.protocol import Stage
from hires_gan.training.launch import join_launch, set_up
from hires_gan.training.levers import pulled
from hires_gan.training.settings import Plan
from hires_gan.training.trainer import micro_batch
from hires_gan.training.world import World

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CALLS = {"cuda": 16, "cpu": 4}
PUBLISHED = {
    "whose": "StyleGAN3's authors: theirs, not measured here",
    "what": "1024x1024, a global batch of 32 on 1 to 8 A100 of one machine",
    "s_per_kimg": {
        "StyleGAN3-T": {"1": 156.91, "2": 79.16, "4": 39.62, "8": 20.01},
        "StyleGAN3-R": {"1": 184.81, "2": 92.58, "4": 46.53, "8": 23.42},
    },
    "efficiency_at_8": {"StyleGAN3-T": 156.91 / 20.01 / 8, "StyleGAN3-R": 184.81 / 23.42 / 8},
}


@dataclass(frozen=True)
class Request:
    """What to measure, and what to assume.

    Attributes:
        calls: Of each phase; None for the default of the device.
        stage_nimg: Where in the schedule; None for the last stage.
        seconds: Of a call of each phase on one GPU, by name, or of an average step under the name ""; empty: measured.
        measure: Whether to run the phases here; without, `seconds` has to name all of them.
        network: Between the GPUs.
        jitter: Standard deviation of a GPU's step time, as a share of it.
        first: Seconds for each image of the run in which the first process works alone.
        out: Where to write the result as JSON.
    """

    calls: int | None = None
    stage_nimg: int | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    measure: bool = True
    network: Network = ASSUMED
    jitter: float = 0.01
    first: float = 0.0
    out: Path | None = None


def bench_scaling(plan: Plan, config: str, request: Request) -> Record | None:
    """Predict how a configuration scales; started by torchrun, measure it on these processes, too.

    Args:
        plan: The configuration.
        config: What it is called in the record: its file and overrides.
        request: What to measure, and what to assume.

    Returns:
        What is written: the head, `settings`, `remarks` (what was neither recorded nor compiled though it was to be),
        `step`, `network`, `weak` and `strong`, and with several processes `together`; None on all processes but the
        first.

    Raises:
        UsageError: The arguments cannot be.
        Failure: The memory is too small, or the result cannot be written.
    """
    _check(plan, request)
    # Whatever the launcher asks for: it is data parallel training that is measured.
    name = "data_parallel" if plan.backend.name == "auto" else plan.backend.name
    world = join_launch(plan.backend.model_copy(update={"name": name}))
    with world.together():
        record = identity("scaling") | {"load_average_before": _load(), "settings": {"config": config}}
        if request.out is not None and world.first:
            require_writable(request.out)
        set_up(plan, world.device)
    record = _measured(plan, record, request, world) | {"load_average_after": _load()}
    if request.out is not None and world.first:
        write_record(request.out, record)
    world.leave()
    return record if world.first else None


def _check(plan: Plan, request: Request) -> None:
    require_least({"--calls": (request.calls, 1), "--stage-nimg": (request.stage_nimg, 0)})
    if plan.backend.name == "deepspeed":
        raise UsageError(
            "backend.name is deepspeed, and bench scaling measures data parallel training alone; leave it out"
        )
    if not request.measure and not set(request.seconds) - {""}:
        raise UsageError(
            "--no-measure needs the seconds of every phase; give --step-seconds generator=0.026,discriminator=0.028,..."
        )


def _measured(plan: Plan, head: Record, request: Request, world: World) -> Record:
    with world.together():
        images = open_images(plan, "synthetic", world.device)
        stage = find_place(recipe_for(plan, images), request.stage_nimg).stage
        micro = micro_batch(plan.batch, stage)
        stand = Stand(plan, images, world.device, request.stage_nimg, micro)
        _check_names(request.seconds, stand)
    together: Record = {}
    with told_out_of_memory(micro, stage, _remedy(stage)):
        if request.measure:
            calls = CALLS[world.device.type] if request.calls is None else request.calls
            batch = local_batch(plan, stage, images, world.device, micro)
            cost = slowest(world.gathered(dataclasses.asdict(measure_step(stand, batch, calls))))
            if not world.alone:
                together = {"together": measure_together(plan, images, world, stand, batch, cost, calls)}
            cost = as_given(cost, request.seconds)
        else:
            cost = count_step(stand, request.seconds)
    settings = {"settings": head["settings"] | _settings(plan, stand, world), "remarks": _remarks(stand, world)}
    return head | settings | together | predicted(cost, stand.place.stage, request, _is_recorded(plan, request))


def _remarks(stand: Stand, world: World) -> list[str]:
    """Those of all processes, each once."""
    return list(dict.fromkeys(remark for own in world.gathered(stand.backend.remarks) for remark in own))


def _check_names(seconds: dict[str, float], stand: Stand) -> None:
    """Make sure that all phases are named, or none of them."""
    names, given = [phase.name for phase in stand.phases], set(seconds) - {""}
    if given and given != set(names):
        found = ", ".join(seconds)
        raise UsageError(f"--step-seconds names {found}; the phases of this configuration are {', '.join(names)}: all")


def _is_recorded(plan: Plan, request: Request) -> bool:
    """Whether `train` runs each phase as a whole, such as a CUDA graph, and sends buckets behind it."""
    on_gpu = torch.cuda.is_available() or bool(request.seconds)
    return pulled(plan.levers, plan.performance, "cuda" if on_gpu else "cpu").whole


def slowest(costs: Sequence[Record]) -> StepCost:
    """Of what each process measured, that of the slowest."""
    return max(map(_cost_of, costs), key=lambda one: one.seconds(one.micro))


def _cost_of(record: Record) -> StepCost:
    phases = {}
    for name, one in record["phases"].items():
        lists = {"buckets": tuple(one["buckets"]), "ready": None if one["ready"] is None else tuple(one["ready"])}
        phases[name] = PhaseCost(**(one | lists))
    return StepCost(phases, record["micro"], record["rest"])


def as_given(cost: StepCost, seconds: dict[str, float]) -> StepCost:
    """A measured step on a device that takes the given times: of each phase, or "" of an average step."""
    if not seconds:
        return cost
    if "" in seconds:
        factor = seconds[""] / cost.seconds(cost.micro)
        factors = dict.fromkeys(cost.phases, factor)
    else:
        factors = {name: seconds[name] / one.seconds(1) for name, one in cost.phases.items()}
        given, before = (
            sum(one.seconds(1) * factors[name] ** power / one.interval for name, one in cost.phases.items())
            for power in (1, 0)
        )
        factor = given / before
    phases = {name: one.scaled(factors[name]) for name, one in cost.phases.items()}
    return StepCost(phases, cost.micro, cost.rest * factor)


def _settings(plan: Plan, stand: Stand, world: World) -> Record:
    stage, device = stand.place.stage, world.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "resolution": stage.resolution,
        "fade": stage.fade,
        "nimg": stand.place.nimg,
        "batch": stage.batch,
        "group": stage.group,
        "micro": stand.micro,
        "precision": plan.precision,
        "performance": plan.performance,
        "ops": resolve(device),
        "data": "synthetic",
    }


def predicted(cost: StepCost, stage: Stage, request: Request, recorded: bool) -> Record:
    """What the model makes of a step, for every number of GPUs; buckets sent behind the passes, and during them."""
    known = all(one.ready is not None for one in cost.phases.values())
    ways = {"behind": False} | ({"during": True} if known else {})
    record: Record = {
        "step": _step(cost, request),
        "network": dataclasses.asdict(request.network) | {"is": "an assumption"},
        "jitter": request.jitter,
        "first_seconds_per_kimg": 1000 * request.first,
        "model": IN_WORDS,
        "as_trained": "behind" if recorded or not known else "during",
        "weak": {},
        "strong": {},
    }
    for way, overlap in ways.items():
        conditions = Conditions(request.network, overlap, request.jitter, request.first)
        record["weak"][way] = [weak(cost, gpus, conditions).row() for gpus in GPUS]
        record["strong"][way] = [strong(cost, stage.batch, stage.group, gpus, conditions).row() for gpus in GPUS]
    return record | {"published": PUBLISHED}


def _step(cost: StepCost, request: Request) -> Record:
    return {
        "from": kind_of(request),
        "average_ms": 1e3 * cost.seconds(cost.micro),
        "images": cost.micro,
        "rest_ms": 1e3 * cost.rest,
        "phases": {name: _phase(one) for name, one in cost.phases.items()},
    }


def _phase(one: PhaseCost) -> Record:
    return {
        "interval": one.interval,
        "ms_per_call": 1e3 * one.seconds(1),
        "complete_ms": 1e3 * one.complete_seconds,
        "gradient_bytes": sum(one.buckets),
        "buckets": list(one.buckets),
        "ready_ms": None if one.ready is None else [1e3 * before for before in one.ready],
    }


def kind_of(request: Request) -> str:
    """What the prediction rests on, for people."""
    if request.seconds:
        return "given by hand: what follows is a model on it, not a measurement"
    if torch.cuda.is_available():
        return "measured here: what follows is a model on it, not a measurement"
    return (
        "measured here, on a CPU: what follows is a model of such CPUs in the place of GPUs; a GPU's step is not yet "
        "measured, give it as --step-seconds"
    )


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _remedy(stage: Stage) -> str:
    return (
        f"set batch.per_device to a smaller multiple of {stage.group}, or give all of --step-seconds with --no-measure"
    )
