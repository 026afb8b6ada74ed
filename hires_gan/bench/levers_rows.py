"""The rows of `bench levers`: what each of them adds, and what it is measured with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from hires_gan.bench.plain_steps import lacking
from hires_gan.ops.leaving_out import Part
from hires_gan.settings import at_resolution
from hires_gan.training.settings import Plan


@dataclass(frozen=True)
class Lever:
    """One row.

    Attributes:
        name: As `--lever` has it.
        adds: In a few words.
        overrides: The settings that pull it.
        gpu: Whether it moves something on a GPU alone.
        doubles: Whether the micro-batch is twice as large.
        aside: Whether the rows below do without it.
        part: Of what runs always have, as `hires_gan.ops.leaving_out` names it: what this row adds, so that those above
            it lack it; or, where it stands aside, what this row alone lacks.
        needs: The row without whose lever there is none of this kind: where that failed, this one is skipped.
        brings: The row whose lever this one's setting pulls as well.
    """

    name: str
    adds: str
    overrides: tuple[str, ...] = ()
    gpu: bool = False
    doubles: bool = False
    aside: bool = False
    part: Part | None = None
    needs: str = ""
    brings: str = ""


_NONE = "levers={graphs: null, fused: null, tf32: null, compile: null}"
LEVERS = (
    Lever(
        "reference",
        "float32, step by step, ops in plain torch",
        ("precision=fp32", "performance=reference", _NONE, "ops={backend: reference, require_native: false}"),
    ),
    Lever("one-pass", "reals and fakes in one pass of the discriminator", part="one-pass"),
    Lever("average", "the running average in one call", gpu=True, part="average"),
    Lever("tf32", "TF32 for what is in float32", ("levers.tf32=true",), gpu=True),
    Lever("half", "half precision in the high resolutions", ("precision=HALF",)),
    Lever("channels-last", "weights, images and convolutions in channels_last", part="channels-last"),
    Lever("native", "the compiled ops", ("ops.backend=native",)),
    Lever("host-draws", "random numbers drawn on the CPU and copied", gpu=True, aside=True, part="device-draws"),
    Lever(
        "sample-draws", "random numbers as functions of the sample, in one kernel", part="sample-draws", needs="native"
    ),
    Lever("epilogue", "what follows a modulated convolution in one kernel", part="epilogue", needs="native"),
    Lever("fused", "an optimizer's step in one kernel", ("levers.fused=true",), gpu=True),
    Lever("graphs", "each phase as a CUDA graph", ("levers.graphs=true",), gpu=True, brings="fused"),
    Lever("again", "nothing: the same once more, as far apart as chance has it", aside=True),
    Lever("micro", "twice as many images at once", doubles=True, aside=True),
    Lever("fp16", "float16 in place of bfloat16", ("precision=fp16",), aside=True, needs="half"),
    Lever(
        "recompute",
        "high resolutions computed again in the backward pass",
        ("recipe.generator.recompute=true",),
        aside=True,
    ),
    Lever("torch-derivatives", "torch's own derivatives of convolutions", aside=True, part="derivatives"),
    Lever("read-back", "all losses read back at every step", gpu=True, aside=True, part="unread"),
    Lever("compile-main", "torch.compile of the phases of every step", ("levers.compile=main",)),
    Lever(
        "compile-all", "torch.compile of R1 and path lengths as well", ("levers.compile=all",), brings="compile-main"
    ),
)
"""In this order, each with those before it but those aside. What `fast` does ends with `graphs`.

The first row is a straightforward program that draws on the device; but it reads nothing back, and computes derivatives
of convolutions as convolutions. What that is worth is told by rows aside that lack it; of numbers drawn on the CPU
where those on the device are torch's, too.
"""
LADDER = [lever.name for lever in LEVERS if not lever.aside]
"""The rows that hand on what they add."""
FIRST = LEVERS[0].name
_RECOMPUTE = "recipe.generator.recompute"


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        plan: The configuration.
        micro: Images at once.
        lazy: Whether phases of its last stage are due now and then, such as R1.
    """

    plan: Plan
    micro: int
    lazy: bool


@dataclass(frozen=True)
class Program:
    """What rows are measured with.

    Attributes:
        overrides: Settings.
        without: Parts that are left out.
        has: The rows of the ladder whose levers are pulled.
        lost: Those whose levers are not, though they stand above, since they failed or need one that did.
    """

    overrides: tuple[str, ...]
    without: tuple[Part, ...]
    has: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A lever, and everything that it is measured with; why it is not, if it is skipped."""

    lever: Lever
    program: Program
    micro: int
    skipped: str = ""

    def described(self) -> dict[str, Any]:
        """What its record says of it before it is measured."""
        lever, program = self.lever, self.program
        with_what = {"overrides": list(program.overrides), "micro": self.micro, "without": list(program.without)}
        return {"name": lever.name, "adds": lever.adds, **with_what, "has": list(program.has), "lost": [*program.lost]}

    def is_that_of(self, record: dict[str, Any]) -> bool:
        """Whether a record is of what this row computes: settings may say the same in other words."""
        own = self.described()
        return all(record.get(name) == own[name] for name in ("name", "micro", "without", "has"))


def first_program(overrides: tuple[str, ...], subject: Subject) -> Program:
    """What the first row adds to: the user's settings, without what a later row adds.

    What no row of this subject would add is there from the start.
    """
    adding = (lever for lever in LEVERS if not (lever.aside or idle(lever, subject)))
    return Program(overrides, tuple(lever.part for lever in adding if lever.part))


def row_of(lever: Lever, above: Program, subject: Subject) -> Row:
    """A lever's row, where those above it have come to a program."""
    plan, micro, without = subject.plan, subject.micro, _without(lever, above.without)
    half = plan.precision if plan.precision in ("bf16", "fp16") else "bf16"
    own = tuple(text.replace("HALF", half) for text in lever.overrides)
    if lever.name == FIRST and _recomputes(plan):
        own += (f"{_RECOMPUTE}=false",)
    if lever.doubles:
        micro *= 2
        own += _room(plan, micro)
        if lacking("one-pass", plan, subject.micro) and not lacking("one-pass", plan, micro):
            without = (*without, "one-pass")  # which half as many images have not got
    brought = (lever.brings,) if lever.brings in above.lost else ()
    has = above.has if lever.aside else (*above.has, *brought, lever.name)
    lost = tuple(name for name in above.lost if name not in brought)
    program = Program((*above.overrides, *own), without, has, lost)
    needed = f"it goes with {lever.needs}, which failed" if lever.needs in above.lost else ""
    return Row(lever, program, micro, idle(lever, subject) or needed)


def below(row: Row, above: Program, failed: bool) -> Program:
    """What the rows below one of the ladder are measured with: its lever, unless it failed or was skipped."""
    # Without the first row's settings, the others would be those of the dial.
    if row.lever.name == FIRST or not (failed or row.skipped):
        return row.program
    return replace(above, lost=(*above.lost, row.lever.name))


def idle(lever: Lever, subject: Subject) -> str:
    """Why a row would measure nothing; nothing if it does."""
    plan = subject.plan
    if lever.gpu and not torch.cuda.is_available():
        return "moves nothing on a CPU"
    if lever.part and (reason := lacking(lever.part, plan, subject.micro)):
        return reason
    if lever.name == "recompute" and not _recomputes(plan):
        return "the family computes nothing again"
    if lever.name == "compile-all" and not subject.lazy:
        return "all phases belong to every step"
    if lever.name == "fp16" and plan.precision == "fp16":
        return "the configuration's precision, which the row half has"
    if lever.name == "fp16" and plan.recipe.translates:
        return "the family's gradients need the range of bfloat16"
    return ""


def _recomputes(plan: Plan) -> bool:
    return hasattr(plan.recipe, "generator") and hasattr(plan.recipe.generator, "recompute")


def _without(lever: Lever, left_out: tuple[Part, ...]) -> tuple[Part, ...]:
    if lever.aside and lever.part:
        return (*left_out, lever.part)
    return tuple(part for part in left_out if part != lever.part)


def _room(plan: Plan, micro: int) -> tuple[str, ...]:
    """A batch of `micro` images, where the configuration's is smaller."""
    size = at_resolution(plan.batch.size, plan.recipe.resolution)
    return (f"batch.size={micro}",) if size < micro else ()
