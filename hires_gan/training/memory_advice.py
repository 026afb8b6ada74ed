"""What follows from measured memory: which micro-batch fits, what helps where none does, and a table to look at."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hires_gan.recipes.protocol import Stage
from hires_gan.training.launcher import zero_stage
from hires_gan.training.levers import pulled
from hires_gan.training.memory import NOT_TRIED, Measured, StageMemory
from hires_gan.training.settings import Plan

MARGIN = 0.08
"""The share of the memory that a suggestion leaves free: for fragments, evaluations, and what is not measured."""


@dataclass(frozen=True)
class Suggestion:
    """A micro-batch that fits, with `MARGIN`.

    Attributes:
        micro: Images at once.
        whole: Bytes that it takes.
        predicted: Whether they are computed from those of other micro-batches.
        passes: Micro-batches that the process takes one after the other for its images of a step.
        largest: The largest micro-batch that fits; it may need as many passes.
    """

    micro: int
    whole: int
    predicted: bool
    passes: int
    largest: int


def may_take_most(stages: Sequence[Stage], micro: Callable[[Stage], int]) -> list[Stage]:
    """The last stage of a schedule, and those before it that may take more memory, in their order.

    A network's maps grow with the images' area where all resolutions have as many channels, and with their side where
    half of it has twice the channels; networks lie in between. Of stages that are alike it is the later one.

    Args:
        stages: Of the schedule.
        micro: How many images go through the networks at once in a stage.
    """
    largest = {
        max(stages, key=lambda stage: (micro(stage) * stage.resolution**power, stage.start)).start
        for power in (1.0, 1.5, 2.0)
        if stages
    }
    return [stage for stage in stages if stage.start in largest or stage is stages[-1]]


def sound(found: StageMemory) -> list[Measured]:
    """Those micro-batches whose memory is known."""
    return [one for one in found.measured if not one.failed]


def fits(found: StageMemory, micro: int) -> bool:
    """Whether a micro-batch was measured, and takes no more than there is."""
    return any(one.micro == micro and one.whole <= found.capacity for one in sound(found))


def needed(found: StageMemory, micro: int) -> tuple[int, bool] | None:
    """Bytes of a micro-batch, and whether they are predicted.

    Every phase grows by lines from one measured micro-batch to the next, and goes on as between the last two; the
    largest of the phases tells.

    Args:
        found: Of the stage.
        micro: Images at once.

    Returns:
        None if fewer than two others were measured, and this one was not.
    """
    known = sound(found)
    own = next((one for one in known if one.micro == micro), None)
    if own is not None:
        return own.whole, False
    if len(known) < 2:
        return None
    lines = [_line(known, lambda one: one.whole, micro)]
    for name in known[0].phases:
        lines.append(_line(known, lambda one, name=name: one.phases[name] + one.outside, micro))  # type: ignore[misc]
    return math.ceil(max(lines)), True


def _line(known: list[Measured], value: Callable[[Measured], int], micro: int) -> float:
    below = sum(one.micro < micro for one in known)
    first = min(max(below - 1, 0), len(known) - 2)
    one, next_one = known[first : first + 2]
    slope = max(0.0, (value(next_one) - value(one)) / (next_one.micro - one.micro))
    predicted = value(one) + slope * (micro - one.micro)
    return max([predicted, *(value(smaller) for smaller in known[:below])])


def suggest(found: StageMemory) -> Suggestion | None:
    """The micro-batch with the fewest passes that fits, and of those the smallest; None if not even one group fits."""
    room = found.capacity * (1 - MARGIN)
    possible = [micro for micro in _candidates(found) if _within(found, micro, room)]
    if not possible:
        return None
    largest = max(possible)
    passes = -(-found.own // largest)
    micro = min(one for one in possible if -(-found.own // one) == passes)
    whole, predicted = needed(found, micro) or (0, True)
    return Suggestion(micro, whole, predicted, passes, largest)


def _candidates(found: StageMemory) -> Iterator[int]:
    """Whole groups, as many as the process has at most, and all that it has; fewer than those that did not fit.

    What was not measured leaves no smaller last micro-batch: that one runs op by op, beside what is kept for CUDA
    graphs of the others, and no line tells what both take.
    """
    failed = min((one.micro for one in found.measured if one.failed not in ("", NOT_TRIED)), default=math.inf)
    known = [one.micro for one in sound(found)]
    for micro in [*range(found.group, found.own, found.group), found.own]:
        if micro < failed and (found.own % micro == 0 or micro in known):
            yield micro


def _within(found: StageMemory, micro: int, room: float) -> bool:
    need = needed(found, micro)
    return need is not None and need[0] <= room


def free_ways(plan: Plan, device: str, group: int, micro: int, smaller: int | None = None) -> list[str]:
    """What takes less memory, and changes nothing of what is trained.

    Args:
        plan: The configuration.
        device: The type of device that computes.
        group: Images that must go through the networks together.
        micro: Images at once that do not fit.
        smaller: How many do, if that is known.
    """
    ways = []
    if smaller is not None:
        ways.append(f"batch.per_device={smaller}")
    elif micro > group:
        ways.append(f"batch.per_device below {micro} (a multiple of {group})")
    if getattr(plan.recipe.generator, "recompute", None) is False:
        ways.append("recipe.generator.recompute=true")
    if _records(plan, device):
        ways.append("levers.graphs=false, which keeps none for CUDA graphs")
    return ways


def _records(plan: Plan, device: str) -> bool:
    """Whether phases are recorded as CUDA graphs; with DeepSpeed, none is."""
    return pulled(plan.levers, plan.performance, device).graphs and zero_stage(plan.backend, os.environ) is None


def costly_ways(plan: Plan, group: int) -> list[str]:
    """What takes less memory, and trains something else."""
    ways = ["precision=bf16"] if plan.precision in ("fp32", "fp64") else []
    if group > 1 and hasattr(plan.recipe.discriminator, "group_size"):
        ways.append(f"recipe.discriminator.group_size below {group}")
    return [*ways, f"recipe.resolution={plan.recipe.resolution // 2}"]


def in_words(found: StageMemory, plan: Plan) -> str:
    """What to set for a stage, in a sentence."""
    suggestion = suggest(found)
    if suggestion is None:
        return _nothing_fits(found, plan)
    kind = "predicted" if suggestion.predicted else "measured"
    words = f"batch.per_device={suggestion.micro}: {size(suggestion.whole)} {kind}, "
    words += f"{suggestion.whole / found.capacity:.1%} of what there is; the {found.own} images of a process's step in "
    words += f"{suggestion.passes} micro-batches one after the other" if suggestion.passes > 1 else "one micro-batch"
    if suggestion.largest > suggestion.micro:
        words += f" (up to {suggestion.largest} would fit, in as many)"
    return words


def _nothing_fits(found: StageMemory, plan: Plan) -> str:
    least = found.measured[0].micro
    room = f"with {MARGIN:.0%} to spare" if fits(found, least) else "at all"
    ways = ways_out(plan, found.device, found.group, least)
    return f"not even {least} images at once fit {room}: {ways}"


def ways_out(plan: Plan, device: str, group: int, micro: int, smaller: int | None = None) -> str:
    """What to set where `micro` images at once do not fit; arguments as of `free_ways`."""
    free, costly = free_ways(plan, device, group, micro, smaller), costly_ways(plan, group)
    words = f"set {', or '.join(free)}; that changes nothing of what is trained" if free else ""
    if smaller is not None:
        return words
    return f"{words}{'; or ' if words else ''}set {', or '.join(costly)}, which trains something else"


def table(found: StageMemory) -> list[str]:
    """Rows are phases, columns micro-batches; each with its share of what there is."""
    fade = ", in a fade" if found.fade else ""
    lines = [
        f"{found.resolution}x{found.resolution}{fade}, from {found.start / 1000:.1f} kimg on: a batch of {found.batch} "
        f"in groups of {found.group}, of which a process has {found.own}",
        f"{found.place}, of which {size(found.capacity)} can be taken; the most in each phase, with what stays:",
        f"{'images at once':30}" + "".join(f"{one.micro:>22}" for one in found.measured),
    ]
    names = list(dict.fromkeys(name for one in found.measured for name in one.phases))
    lines.append(_row("weights, gradients, optimizers", found, lambda one: one.weights))
    lines.append(_row("images, and the next ones", found, lambda one: one.images))
    lines += [_row(f"phase {name}", found, lambda one, name=name: _phase(one, name)) for name in names]  # type: ignore[misc]
    if any(one.outside for one in found.measured):
        lines.append(_row("kernels, graphs, libraries", found, lambda one: one.outside))
    lines.append(_row("in all", found, lambda one: one.whole if not one.failed else _word(one)))
    return lines + ([f"({found.remark})"] if found.remark else [])


def _phase(one: Measured, name: str) -> int | str:
    if name in one.phases:
        return one.phases[name]
    return "out of memory" if one.failed == name else "-"


def _word(one: Measured) -> str:
    return NOT_TRIED if one.failed == NOT_TRIED else "out of memory"


def _row(name: str, found: StageMemory, value: Callable[[Measured], int | str]) -> str:
    return f"{name:30}" + "".join(f"{_cell(value(one), found):>22}" for one in found.measured)


def _cell(value: int | str, found: StageMemory) -> str:
    if isinstance(value, str):
        return value
    share = value / found.capacity if found.capacity else math.inf
    return f"{size(value)} {share:>7.1%}" if value else "-"


def size(count: float) -> str:
    """Bytes for people, in MiB below 1 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
