"""How fast a configuration trains, where the time goes, and how far that is from what the device can do."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hires_gan.bench.identity import identity, now, require_least
from hires_gan.bench.plain_steps import check_names, check_without
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.bench.train_checkpoint import require_folder
from hires_gan.bench.train_images import Images, open_images
from hires_gan.bench.train_measure import Job, Record, measure, next_smaller, told_out_of_memory
from hires_gan.bench.train_rates import Rates
from hires_gan.bench.train_steps import Place, find_place, recipe_for
from hires_gan.bench.train_table import table
from hires_gan.errors import Failure, UsageError
from hires_gan.ops.leaving_out import leaving_out
from hires_gan.ops.selection import resolve
from hires_gan.progress import say
from hires_gan.recipes.protocol import Stage
from hires_gan.training.launch import join_launch, set_up
from hires_gan.training.memory_advice import costly_ways, free_ways
from hires_gan.training.settings import BackendSettings, Plan
from hires_gan.training.trainer import micro_batch

STEPS = {"cuda": 32, "cpu": 2}
_WARM_CYCLES = {"cuda": 2, "cpu": 1}
"""With CUDA graphs, the second call of a phase is the one that records it."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        steps: Timed ones; None for the default of the device. On a GPU rounded up to whole cycles of the phases.
        warmup: Steps before them, not timed; None for one cycle, on a GPU two.
        micro: Micro-batches, one after the other; empty for the configuration's.
        stage_nimg: Where in the schedule; None for the last stage.
        data: What is trained on.
        profile: Whether to list the GPU's kernels, too.
        reference: A JSON file with `images_per_s` of something else on the same GPU.
        out: Where to write the result as JSON, in place of what is there; written after every micro-batch.
        checkpoint: Where to write checkpoints, to measure what they cost the steps; None: that is not measured.
        without: Parts that are left out, as `hires_gan.ops.leaving_out` names them.
    """

    steps: int | None = None
    warmup: int | None = None
    micro: tuple[int, ...] = ()
    stage_nimg: int | None = None
    data: Literal["synthetic", "real"] = "synthetic"
    profile: bool = False
    reference: Path | None = None
    out: Path | None = None
    checkpoint: Path | None = None
    without: tuple[str, ...] = ()


def bench_train(plan: Plan, config: str, request: Request) -> Record:
    """Measure training steps of a configuration, once for every micro-batch.

    Args:
        plan: The configuration.
        config: What it is called in the record: its file and overrides.
        request: What to measure.

    Returns:
        What is written: the head, `settings`, `results`, of the fastest of them `micro`, `images_per_s` and
        `ratio_to_reference`, and `complete`. Where a micro-batch fails, what was measured before it is shown and
        written, with the sentence as `failed`.

    Raises:
        UsageError: The arguments cannot be, the reference is of another GPU, or the configuration has not got what is
            to be left out.
        Failure: The memory is too small, the data cannot be read, or the result cannot be written.
    """
    least = {"--steps": (request.steps, 1), "--warmup": (request.warmup, 0), "--stage-nimg": (request.stage_nimg, 0)}
    require_least(least)
    check_names(request.without)
    device = _prepared(plan, request)
    head = identity("train")
    reference = None if request.reference is None else read_reference(request.reference, head["gpu.name"])
    images = open_images(plan, request.data, device)
    place = _place(plan, images, request)
    micros = _micros(plan, place.stage, request)
    check_without(request.without, plan, device, micros)
    check_comparable(reference, place.stage, micros)
    counts = _counts(request, place, device)
    at, group = request.stage_nimg, place.stage.group
    job = Job(plan, images, device, at, place.cycle, group, *counts, request.profile, request.checkpoint)
    settings = {"config": config} | _settings(job, place) | {"without": list(request.without)}
    head |= {"settings": settings, "load_average_before": _load()}
    _require_places(request)
    with leaving_out(request.without):
        return _measured(job, micros, place.stage, _Result(head, reference, request.out))


def _require_places(request: Request) -> None:
    """What cannot be written is told before the measurement."""
    if request.out is not None:
        require_writable(request.out)
    if request.checkpoint is not None:
        require_folder(request.checkpoint)


@dataclass(frozen=True)
class _Result:
    """What all micro-batches have in common, and where the whole is written."""

    head: Record
    reference: Record | None
    out: Path | None

    def kept(self, results: Sequence[Record], state: Record) -> Record:
        """What is known by now."""
        record = summary(self.head, results, self.reference) | state
        if self.out is not None:
            write_record(self.out, record)
        return record


def _measured(job: Job, micros: tuple[int, ...], stage: Stage, result: _Result) -> Record:
    rates, found, record = Rates(job.device), dict[int, Record](), result.head

    def keep(known: Record) -> None:
        found[known["micro"]] = known
        result.kept([*found.values()], {"complete": False})

    for micro in micros:
        try:
            with told_out_of_memory(micro, stage, _remedy(job, micro, stage)):
                found[micro] = measure(job, micro, rates, keep)
        except Failure as failure:
            if found:
                _show(result.kept([*found.values()], {"complete": False, "failed": str(failure)}))
            raise
        record = result.kept([*found.values()], {"complete": len(found) == len(micros)})
    return record


def _show(record: Record) -> None:
    for line in table(record):
        say(line)


def _prepared(plan: Plan, request: Request) -> torch.device:
    """The device, with everything set as for a run."""
    device = join_launch(BackendSettings(name="single")).device
    if request.profile and device.type != "cuda":
        raise UsageError("--profile lists the kernels of a GPU, and torch finds none here; leave it out")
    set_up(plan, device)
    return device


def read_reference(path: Path, gpu: str) -> Record:
    """What somebody else measured on the same GPU.

    Args:
        path: A JSON file with `images_per_s` and `gpu.name`; `date` and `settings` are taken over.
        gpu: The name of this machine's GPU, as `identity` gives it.

    Raises:
        UsageError: It is no such file, or of another GPU.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--reference-json is {path}, which cannot be read as JSON: {error}") from None
    rate = found.get("images_per_s") if isinstance(found, dict) else None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise UsageError(f"--reference-json is {path}, whose images_per_s is {rate!r}; a positive number is allowed")
    if found.get("gpu.name") != gpu:
        raise UsageError(
            f"--reference-json is {path}, whose gpu.name is {found.get('gpu.name')!r}, and here it is {gpu!r}: only "
            "what was measured on the same hardware can be compared"
        )
    return {"file": path.name, **{key: found.get(key) for key in ("images_per_s", "gpu.name", "date", "settings")}}


def check_comparable(reference: Record | None, stage: Stage, micros: Sequence[int]) -> None:
    """See that what is measured is what the reference did, as far as its `settings` say.

    Raises:
        UsageError: It is something else.
    """
    if reference is None:
        return
    here = {"resolution": (stage.resolution,), "batch": (stage.batch,), "micro": tuple(micros)}
    for name, values in here.items():
        if (theirs := _of(reference).get(name)) is not None and theirs not in values:
            raise UsageError(
                f"--reference-json is {reference['file']}, whose settings.{name} is {theirs!r}, and here it is "
                f"{' or '.join(map(str, values))}: only the same work can be compared"
            )
    if not str(reference["date"] or "").startswith(now()[:10]):
        day = reference["date"] or "a day that it does not say"
        say(f"{reference['file']} is of {day}: clocks and neighbours change")


def _of(reference: Record) -> Record:
    """The reference's settings; none if it has none."""
    settings = reference["settings"]
    return settings if isinstance(settings, dict) else {}


def _place(plan: Plan, images: Images, request: Request) -> Place:
    return find_place(recipe_for(plan, images), request.stage_nimg)


def check_micro(micro: int, stage: Stage) -> None:
    """See that so many images can go through the networks at once.

    Raises:
        UsageError: They cannot.
    """
    if not 0 < micro <= stage.batch or (micro % stage.group and micro != stage.batch):
        raise UsageError(
            f"--micro is {micro}; a multiple of {stage.group} is allowed, up to the batch of {stage.batch}"
        )


def _micros(plan: Plan, stage: Stage, request: Request) -> tuple[int, ...]:
    for micro in request.micro:
        check_micro(micro, stage)
    return tuple(dict.fromkeys(request.micro)) or (micro_batch(plan.batch, stage),)


def _counts(request: Request, place: Place, device: torch.device) -> tuple[int, int]:
    """Steps that are not timed, and timed ones."""
    steps = STEPS[device.type] if request.steps is None else request.steps
    if device.type == "cuda":
        steps = -(-steps // place.cycle) * place.cycle
    warmup = _WARM_CYCLES[device.type] * place.cycle if request.warmup is None else request.warmup
    return warmup, steps


def _settings(job: Job, place: Place) -> Record:
    plan, stage = job.plan, place.stage
    whole = plan.model_dump(mode="json")
    return {
        "device": torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "resolution": stage.resolution,
        "fade": stage.fade,
        "nimg": place.nimg,
        "batch": stage.batch,
        "group": stage.group,
        "precision": plan.precision,
        "performance": plan.performance,
        "levers": whole["levers"],
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "ops": resolve(job.device),
        "deterministic": plan.run.deterministic,
        "seed": plan.run.seed,
        "total_kimg": plan.run.total_kimg,
        "data": job.images.kind,
        "cycle": place.cycle,
        "steps": job.steps,
        "warmup": job.warmup,
        "recipe": whole["recipe"],
    }


def _remedy(job: Job, micro: int, stage: Stage) -> str:
    """What to take instead; of what trains something else, only where nothing is left that does not."""
    smaller, free = next_smaller(micro, stage.group), free_ways(job.plan, job.device.type, stage.group, stage.group)
    ways = [f"--micro {smaller}", *free] if smaller else free
    if ways:
        return f"take {', or '.join(ways)}"
    return f"take {', or '.join(costly_ways(job.plan, stage.group))}, which trains something else"


def summary(head: Record, results: Sequence[Record], reference: Record | None) -> Record:
    """The results with their head, what is true of the fastest, and how that of the reference's micro-batch compares.

    Where the reference does not say how many images it takes at once, the fastest is compared.
    """
    best = max(results, key=lambda one: float(one["images_per_s"]))
    record = head | {"images_per_s": best["images_per_s"], "micro": best["micro"], "load_average_after": _load()}
    if reference is not None:
        micro = _of(reference).get("micro") or best["micro"]
        ratios = [one["images_per_s"] / reference["images_per_s"] for one in results if one["micro"] == micro]
        record |= {"ratio_to_reference": ratios[0], "reference": reference} if ratios else {}
    return record | {"results": [*results]}


def _load() -> float:
    return round(os.getloadavg()[0], 2)
