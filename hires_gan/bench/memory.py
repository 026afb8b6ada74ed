"""Whether a configuration fits a device: dry steps of its stages, and the micro-batch that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hires_gan.bench.identity import identity, require_least
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.bench.train_images import Images, open_images
from hires_gan.errors import UsageError
from hires_gan.ops.selection import resolve
from hires_gan.progress import say
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Stage, stage_at
from hires_gan.training.launch import DTYPES, join_launch, set_up
from hires_gan.training.memory import DryRun, StageMemory
from hires_gan.training.memory_advice import in_words, may_take_most, suggest, table
from hires_gan.training.settings import BackendSettings, Plan
from hires_gan.training.shares import share
from hires_gan.training.trainer import micro_batch

Record = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        micro: Images at once, by micro-batch; empty for one group, two groups, and the configuration's.
        processes: Among how many a step's images are divided.
        stage_nimg: So many images into the schedule; None for the stages that may take most, or with `micro` the last.
        all_stages: Whether to measure every stage.
        out: Where to write the result as JSON; written after every stage.
    """

    micro: tuple[int, ...] = ()
    processes: int = 1
    stage_nimg: int | None = None
    all_stages: bool = False
    out: Path | None = None


def bench_memory(plan: Plan, config: str, request: Request) -> Record:
    """Measure what the phases of stages take at most, and find the micro-batch that fits.

    Args:
        plan: The configuration.
        config: What it is called in the record: its file and overrides.
        request: What to measure.

    Returns:
        What is written: the head, `settings`, `stages`, each with what `StageMemory` has and `suggestion`, what
        `Suggestion` has or None, and `complete`; bytes throughout.

    Raises:
        UsageError: The arguments cannot be, or labels are asked for and the data have none.
        Failure: The result cannot be written.
    """
    _check(request)
    device = _prepared(plan)
    images = open_images(plan, "real" if plan.recipe.labels else "synthetic", device)  # labels are counted in the data
    stages = _stages(plan, images, request)
    micros = [_micros(plan, stage, request) for stage in stages]
    record = identity("memory") | {"settings": _settings(plan, config, request, device), "stages": []}
    if request.out is not None:
        require_writable(request.out)
    with DryRun(plan, images.labels, images.domains, device) as dry:
        for stage, wanted in zip(stages, micros, strict=True):
            say(f"dry steps at {stage.resolution}x{stage.resolution}, {', '.join(map(str, wanted))} images at once")
            found = dry.measure(stage, _own(stage, request.processes), wanted)
            record["stages"].append(_with_suggestion(found))
            record["complete"] = len(record["stages"]) == len(stages)
            if request.out is not None:
                write_record(request.out, record)
    return record


def _with_suggestion(found: StageMemory) -> Record:
    suggestion = suggest(found)
    return found.as_json() | {"suggestion": None if suggestion is None else asdict(suggestion)}


def _check(request: Request) -> None:
    require_least({"--processes": (request.processes, 1), "--stage-nimg": (request.stage_nimg, 0)})
    if request.all_stages and request.stage_nimg is not None:
        raise UsageError("--all-stages measures every stage, and --stage-nimg chooses one: give one of the two")


def _prepared(plan: Plan) -> torch.device:
    """The device, with everything set as for a run."""
    device = join_launch(BackendSettings(name="single")).device
    set_up(plan, device)
    return device


def _stages(plan: Plan, images: Images, request: Request) -> Sequence[Stage]:
    dtype = DTYPES[plan.precision]
    recipe = build_recipe(plan.recipe, plan.batch.size, dtype, plan.run.seed, images.labels, images.domains)
    if request.all_stages:
        return recipe.stages
    if request.stage_nimg is not None:
        return [recipe.stages[stage_at(recipe.stages, request.stage_nimg)]]
    if request.micro:
        return recipe.stages[-1:]
    return may_take_most(
        recipe.stages, lambda stage: min(micro_batch(plan.batch, stage), _own(stage, request.processes))
    )


def _own(stage: Stage, processes: int) -> int:
    """Images of a step for the process that has most of them."""
    return max(len(share(stage.batch, stage.group, rank, processes)) for rank in range(min(processes, stage.batch)))


def _micros(plan: Plan, stage: Stage, request: Request) -> list[int]:
    own = _own(stage, request.processes)
    for micro in request.micro:
        if not 0 < micro <= own or (micro % stage.group and micro != own):
            raise UsageError(
                f"--micro is {micro}; at {stage.resolution}x{stage.resolution} a multiple of {stage.group} is allowed, "
                f"up to the {own} images of a process"
            )
    wanted = request.micro or (stage.group, 2 * stage.group, micro_batch(plan.batch, stage))
    return sorted({min(micro, own) for micro in wanted})


def _settings(plan: Plan, config: str, request: Request, device: torch.device) -> Record:
    whole = plan.model_dump(mode="json")
    return {
        "config": config,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": request.processes,
        "precision": plan.precision,
        "performance": plan.performance,
        "levers": whole["levers"] | {"compile": None},  # as the dry step has them: it compiles nothing
        "ops": resolve(device),
        "deterministic": plan.run.deterministic,
        "recipe": whole["recipe"],
    }


def lines(record: Record, plan: Plan) -> list[str]:
    """The result for people."""
    shown = [record["settings"]["config"]]
    for one in record["stages"]:
        found = StageMemory.from_json({name: value for name, value in one.items() if name != "suggestion"})
        shown += ["", *table(found), in_words(found, plan)]
    return shown
