"""Whether a run will fit, asked before its first step; and what is told where it runs out of memory all the same."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hires_gan.code import code_digest
from hires_gan.errors import Failure
from hires_gan.inference.files import write_whole
from hires_gan.memory import is_out_of_memory
from hires_gan.ops.selection import resolve
from hires_gan.progress import console, say
from hires_gan.recipes.protocol import LabelDistribution, Recipe, Stage, stage_at
from hires_gan.training.activity import doing
from hires_gan.training.launcher import zero_stage
from hires_gan.training.memory import IMAGES, TOGETHER, WEIGHTS, DryRun, StageMemory
from hires_gan.training.memory_advice import MARGIN, fits, may_take_most, size, sound, suggest, table, ways_out
from hires_gan.training.memory_meter import meter_of
from hires_gan.training.settings import Plan
from hires_gan.training.shares import share
from hires_gan.training.trainer import Trainer, micro_batch
from hires_gan.training.world import World

QUICK = ("cuda",)
"""Kinds of devices on which dry steps take seconds; on a CPU they take minutes at 1024x1024."""
FILE = "memory.json"
_BLOCKS = ("recipe", "batch", "precision", "performance", "levers", "ops")
"""Of the configuration, what memory depends on."""


@dataclass(frozen=True)
class Asked:
    """What is about to be trained, by this process.

    Attributes:
        plan: The configuration.
        recipe: Its recipe.
        world: The processes.
        folder: The run's.
        nimg: Images shown so far.
    """

    plan: Plan
    recipe: Recipe
    world: World
    folder: Path
    nimg: int

    @property
    def ahead(self) -> list[Stage]:
        """The stages that are not over, as far as the run will go."""
        total = self.plan.run.total_kimg * 1000
        left = [stage for stage in self.recipe.stages if stage.end is None or stage.end > self.nimg]
        return [stage for stage in left if stage.start < total and self.nimg < total]

    def own(self, stage: Stage) -> int:
        """How many images of a step are this process's."""
        return len(share(stage.batch, stage.group, self.world.rank, self.world.size))

    def micro(self, stage: Stage) -> int:
        """How many of them go through the networks at once."""
        return min(micro_batch(self.plan.batch, stage), self.own(stage))

    def key(self) -> str:
        """What figures are valid for: configuration, code, ops, versions, card, and this process's images."""
        whole = self.plan.model_dump(mode="json")
        device, cuda = self.world.device, self.world.device.type == "cuda"
        parts = {
            "configuration": {name: whole.get(name) for name in _BLOCKS},
            "zero": zero_stage(self.plan.backend, os.environ) is not None,
            "deterministic": whole["run"]["deterministic"],
            "code": [_code(), resolve(device)],
            "versions": [version("torch"), torch.version.cuda, platform.python_version()],
            "card": [torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[1]] if cuda else "cpu",
            "own": [self.own(stage) for stage in self.recipe.stages],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    """The digest of the code that runs, which may be another one on the disk some days later."""
    return code_digest()


def check_memory(asked: Asked, labels: LabelDistribution | None, domains: tuple[str, ...]) -> None:
    """Measure dry steps, unless it was done for the same run before, and make sure that the run fits.

    On a CPU, and with `run.check_memory: false`, nothing is done. All processes have to ask.

    Args:
        asked: What is about to be trained.
        labels: How often each class occurs; None for an unconditional model.
        domains: What the images show.

    Raises:
        Failure: On the first process, which has shown the figures, if a process has too little memory.
        Elsewhere: On the others.
    """
    world = asked.world
    if not asked.plan.run.check_memory or world.device.type not in QUICK:
        return
    begun = time.monotonic()
    with world.together(), doing("memory check"):
        known, new = _known_and_measured(asked, labels, domains)
    stages = sorted([*known, *new], key=lambda one: one.start)
    told = world.gathered([asked.key(), [one.as_json() for one in stages], _misfit(asked, stages), bool(new)])
    with world.together():
        if world.first:
            _refuse_misfits(asked, told)
            _remark(asked, known, "as measured before")
            _remark(asked, new, f"measured by dry steps in {time.monotonic() - begun:.0f} s")
            _keep(asked.folder, {key: found for key, found, _, measured in told if measured})


def _known_and_measured(
    asked: Asked, labels: LabelDistribution | None, domains: tuple[str, ...]
) -> tuple[list[StageMemory], list[StageMemory]]:
    """The stages of which a process of the same run has left what is needed, and those that are measured now."""
    meter = meter_of(asked.world.device)
    known = [replace(one, capacity=meter.capacity) for one in known_memory(asked) if _is_of_now(asked, one)]
    missing = [stage for stage in _to_measure(asked) if stage.start not in [one.start for one in known]]
    if not missing:
        return known, []
    with DryRun(asked.plan, labels, domains, asked.world.device, meter) as dry:
        return known, [_measured(asked, dry, stage) for stage in missing]


def _is_of_now(asked: Asked, found: StageMemory) -> bool:
    """Whether a stage was measured with the micro-batch that it has now."""
    return asked.micro(_stage_of(asked, found)) in [one.micro for one in found.measured]


def _to_measure(asked: Asked) -> list[Stage]:
    """The stage with which the run goes on, and those that may take most, in their order."""
    ahead = [stage for stage in asked.ahead if asked.own(stage)]
    starts = {stage.start for stage in [*ahead[:1], *may_take_most(ahead, asked.micro)]}
    return [stage for stage in ahead if stage.start in starts]


def _measured(asked: Asked, dry: DryRun, stage: Stage) -> StageMemory:
    """With the run's micro-batch, and with others, if they can say what fits better."""
    own, micro, group = asked.own(stage), asked.micro(stage), stage.group
    others = {min(group, own), min(2 * group, own)} - {micro}
    wanted = {micro}
    if asked.plan.batch.per_device == "auto":  # for a fixed number, nobody has asked whether it could be larger
        wanted |= set(sorted(others)[:1])
    found = dry.measure(stage, own, sorted(wanted))
    if fits(found, micro):
        return found
    less = [other for other in others - wanted if other < micro]
    more = dry.measure(stage, own, less).measured if less else ()
    return replace(found, measured=tuple(sorted([*found.measured, *more], key=lambda one: one.micro)))


def _misfit(asked: Asked, stages: Sequence[StageMemory]) -> str:
    """Why this process cannot train these stages, in a sentence; empty if it can."""
    for found in stages:
        stage = _stage_of(asked, found)
        if stage in asked.ahead and not fits(found, asked.micro(stage)):
            return _sentence(asked, found, asked.micro(stage))
    return ""


def _stage_of(asked: Asked, found: StageMemory) -> Stage:
    return asked.recipe.stages[stage_at(asked.recipe.stages, found.start)]


_PLACES = {WEIGHTS: "weights and optimizers", IMAGES: "the images of a step", TOGETHER: TOGETHER}


def _sentence(asked: Asked, found: StageMemory, micro: int) -> str:
    side, suggestion = found.resolution, suggest(found)
    failed = next((one.failed for one in found.measured if one.micro == micro and one.failed), "")
    where = _PLACES.get(failed, f"the {failed} phase")
    what = f"the memory is exhausted by {where}" if failed else f"a step takes more than {size(found.capacity)}"
    smaller = None if suggestion is None else suggestion.micro
    ways = ways_out(asked.plan, found.device, found.group, micro, smaller)
    return (
        f"at {side}x{side} with {micro} images at once {what} ({found.place}): "
        f"{ways}; run.check_memory=false starts all the same"
    )


def _refuse_misfits(asked: Asked, told: Sequence[Any]) -> None:
    """Show the first process that has too little memory, and end."""
    for rank, (_, found, misfit, _) in enumerate(told):
        if misfit:
            _show([StageMemory.from_json(one) for one in found])
            who = "" if asked.world.alone else f"rank {rank}: "
            ends = "does not go on" if asked.nimg else "has not begun"
            raise Failure(f"{who}the run does not fit, and {ends}: {misfit}")


def _remark(asked: Asked, stages: Sequence[StageMemory], how: str) -> None:
    ahead = [found for found in stages if _stage_of(asked, found) in asked.ahead]
    for found in ahead:
        micro = asked.micro(_stage_of(asked, found))
        (one,) = (one for one in sound(found) if one.micro == micro)
        words = f"memory at {found.resolution}x{found.resolution}, {micro} images at once: {size(one.whole)} of "
        tight = one.whole > found.capacity * (1 - MARGIN)
        say(f"{words}{size(found.capacity)}, {how}{_TIGHT if tight else _larger(asked, found, micro)}")
    for remark in dict.fromkeys(found.remark for found in ahead if found.remark):
        say(f"of these figures: {remark}")


_TIGHT = f"; caution: less than {MARGIN:.0%} is left for evaluations, and for what is not measured"


def _larger(asked: Asked, found: StageMemory, micro: int) -> str:
    """Which micro-batch would take fewer passes, if `batch.per_device` is left open."""
    suggestion = suggest(found)
    if asked.plan.batch.per_device != "auto" or suggestion is None or suggestion.passes >= -(-found.own // micro):
        return ""
    kind = " (predicted)" if suggestion.predicted else ""
    return f"; batch.per_device={suggestion.micro} would fit, too: {size(suggestion.whole)}{kind}"


def _show(stages: Sequence[StageMemory]) -> None:
    for found in stages:
        for line in table(found):
            say(line)


def known_memory(asked: Asked) -> list[StageMemory]:
    """What was measured before for the same `Asked.key`; empty if nothing was."""
    try:
        return [StageMemory.from_json(one) for one in _read(asked.folder).get(asked.key(), [])]
    except (KeyError, TypeError):  # written by a version that measured something else
        return []


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # then it is measured again
        return {}
    return found if isinstance(found, dict) else {}


def _keep(folder: Path, new: dict[str, Any]) -> None:
    """Write what was measured to the run's folder, by `Asked.key`, so that a resume begins at once."""
    if new:
        text = json.dumps(_read(folder) | new, indent=1) + "\n"
        write_whole(folder / FILE, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def telling_too_little() -> Iterator[None]:
    """Say in a sentence that the memory is exhausted before the first step.

    Raises:
        Failure: In place of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        console.quiet = False  # each process tells of its own memory
        raise Failure(
            f"out of memory before the first step ({_reason(error)}): not even the networks fit; other programs may "
            "hold the memory (nvidia-smi shows those on a GPU), and `hires-gan bench memory` measures what a step takes"
        ) from error


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def out_of_memory(trainer: Trainer, error: BaseException) -> Failure:
    """What to do about a memory that is exhausted in a run, in one line."""
    stage = trainer.recipe.stages[stage_at(trainer.recipe.stages, trainer.progress.nimg)]
    micro = _asked(trainer).micro(stage)
    device = trainer.backend.device.type
    kind = "GPU memory" if device == "cuda" else "memory"
    ways = ways_out(trainer.plan, device, stage.group, micro)
    return Failure(
        f"out of {kind} at {stage.resolution}x{stage.resolution} with {micro} images at once: "
        f"{ways}; the same command then goes on from the latest checkpoint ({_reason(error)})"
    )


def show_known(trainer: Trainer) -> None:
    """Show what was measured before the run, or say what measures it."""
    stages = known_memory(_asked(trainer))
    if stages:
        say("what dry steps took before the run:")
        _show(stages)
    else:
        divided = "" if trainer.world.alone else f" --processes {trainer.world.size}"
        command = (
            f"hires-gan bench memory --config {trainer.folder.config} --stage-nimg {trainer.progress.nimg}{divided}"
        )
        say(f"`{command}` measures what each phase takes, and which micro-batch fits")


def _asked(trainer: Trainer) -> Asked:
    return Asked(trainer.plan, trainer.recipe, trainer.world, trainer.folder.path, trainer.progress.nimg)
