"""What a stage's phases take at most: measured in a dry step, before a run finds out after days that it does not fit.

A dry step is one of training, on random images, with networks of its own that are thrown away: it draws from no
generator that a run uses, and writes no file. It needs no other process, since sums of gradients are made in place;
what NCCL, DeepSpeed and a decoder on the GPU take besides is not in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch

from hires_gan.inference.images import from_uint8
from hires_gan.memory import is_out_of_memory
from hires_gan.progress import console
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, LabelDistribution, Recipe, Stage
from hires_gan.training.backends import Backend
from hires_gan.training.launch import DTYPES
from hires_gan.training.launcher import zero_stage
from hires_gan.training.memory_meter import Meter, meter_of
from hires_gan.training.settings import Plan

WEIGHTS, IMAGES, TOGETHER = "weights", "images", "all phases in turn"
"""What is done beside the phases, where the memory is exhausted."""
NOT_TRIED = "not tried"
"""In place of a phase: the memory of a machine is not tried out, since that ends programs."""


@dataclass(frozen=True)
class Measured:
    """What one micro-batch takes, in bytes beyond what the process held before.

    Attributes:
        micro: Images that go through the networks at once.
        weights: Of weights, gradients, optimizers' state and average, counted.
        images: Of the batch on the device and of the next one, counted.
        phases: The peak in each phase, weights and images included; those behind a phase that failed are missing.
        outside: What the device has lent for other things than tensors.
        whole: The most at any time; 0 where the memory was exhausted.
        failed: In which phase the memory was exhausted, or `NOT_TRIED`; empty if all went well.
    """

    micro: int
    weights: int = 0
    images: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    whole: int = 0
    failed: str = ""


@dataclass(frozen=True)
class StageMemory:
    """What a stage takes of a device.

    Attributes:
        start: Images shown before it.
        resolution: Side of its images.
        fade: Whether the resolution is being blended in.
        batch: The global batch.
        group: Images that must go through the networks together.
        own: Images of a step that this process has.
        capacity: Bytes that it could take.
        device: Its type, `cuda` or `cpu`.
        place: What has this memory, for people.
        remark: What people should know of the figures; empty if there is nothing.
        measured: By micro-batch.
    """

    start: int
    resolution: int
    fade: bool
    batch: int
    group: int
    own: int
    capacity: int
    device: str
    place: str
    remark: str
    measured: tuple[Measured, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> StageMemory:
        """What `as_json` gave."""
        return cls(**{**found, "measured": tuple(Measured(**one) for one in found["measured"])})


class DryRun:
    """Networks and optimizers of a configuration, for steps of which only the memory is looked at.

    Args:
        plan: The configuration.
        labels: How often each class occurs; None for an unconditional model.
        domains: What the images show.
        device: Where they lie.
        meter: Counts; None: what belongs to the device.
    """

    def __init__(
        self,
        plan: Plan,
        labels: LabelDistribution | None,
        domains: tuple[str, ...],
        device: torch.device,
        meter: Meter | None = None,
    ) -> None:
        self.plan, self._labels, self._domains, self._device = plan, labels, domains, device
        self.meter = meter_of(device) if meter is None else meter
        self._backend: Backend | None = None
        self._divided = zero_stage(plan.backend, os.environ) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def measure(self, stage: Stage, own: int, micros: Sequence[int]) -> StageMemory:
        """Measure a stage, once for every micro-batch, the smallest first.

        Args:
            stage: One of the recipe's.
            own: Images of a step that this process has, at least 1.
            micros: Images that go through the networks at once.
        """
        found: list[Measured] = []
        remarks = [self.meter.remark, *self._left_out()]
        for micro in sorted(set(micros)):
            tried = not (self.meter.kills and found and enough_for(found[-1], micro) > self.meter.capacity)
            found.append(self._measured(stage, own, micro) if tried else Measured(micro, failed=NOT_TRIED))
            remarks += [] if self._backend is None else self._backend.remarks
        return StageMemory(
            stage.start,
            stage.resolution,
            stage.fade,
            stage.batch,
            stage.group,
            own,
            self.meter.capacity,
            self._device.type,
            self.meter.place,
            "; ".join(dict.fromkeys(remark for remark in remarks if remark)),
            tuple(found),
        )

    def _left_out(self) -> Iterator[str]:
        """What a run does otherwise."""
        if self.plan.levers.compile not in (None, "none"):
            yield "measured op by op: compiling is left out"
        if self._divided:
            yield "each process is taken to hold all optimizers' state, which DeepSpeed divides among them"

    def _measured(self, stage: Stage, own: int, micro: int) -> Measured:
        taken = _Taken(micro)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), _unsaid():
            try:
                self._step(taken, stage, own)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        if taken.doing:  # behind the error, whose traceback held what there was
            self._let_go()
        return taken.measured()

    def _let_go(self) -> None:
        self._backend = None
        self.meter.begin()

    def _step(self, taken: _Taken, stage: Stage, own: int) -> None:
        """Do what a step does; on a GPU twice before, as libraries choose their kernels and graphs are recorded."""
        backend, meter, micro = self._entered(stage), self.meter, taken.micro
        taken.weights, taken.doing = held(backend), IMAGES
        batch, ahead = self._images(stage, own)
        taken.images = batch.images.nbytes + ahead.nbytes
        # One micro-batch takes what all take, and with a last one that is smaller, what that takes besides.
        part = batch.part(slice(min(own, micro + own % micro)))
        nimg = place_in(backend.recipe, stage)
        phases = backend.recipe.phases(nimg)
        on_gpu = self._device.type == "cuda"
        for phase in phases if on_gpu else ():
            taken.doing = phase.name
            backend.step([phase], part, nimg, micro)
        for phase in phases:
            taken.doing = phase.name
            meter.begin()
            backend.step([phase], part, nimg, micro)
            taken.phases[phase.name] = meter.peak()
        if on_gpu:
            taken.doing = TOGETHER
            meter.begin()
            pooled = meter.pooled()
            backend.step(phases, part, nimg, micro)
            backend.update_average(0.5)
            taken.together = pooled + meter.peak()
        taken.outside, taken.doing = meter.outside(), ""

    def _entered(self, stage: Stage) -> Backend:
        """At the start of a stage, with the state that optimizers make in their first step."""
        if self._backend is None:
            plan = self.plan
            dtype = DTYPES[plan.precision]
            recipe = build_recipe(plan.recipe, plan.batch.size, dtype, plan.run.seed, self._labels, self._domains)
            left_out: dict[str, Any] = {"compile": None}  # compiling takes minutes, a dry step seconds
            if self._divided:
                left_out["graphs"] = False  # DeepSpeed's engines are not recorded
            levers = plan.levers.model_copy(update=left_out)
            self._backend = Backend(recipe, self._device, plan.run.seed, plan.performance, levers=levers)
        self._backend.enter(stage)
        for learner in self._backend.learners.values():
            learner.begin(True)
            learner.step(1.0)
            learner.end()
        return self._backend

    def _images(self, stage: Stage, own: int) -> tuple[Batch, torch.Tensor]:
        """A batch, and the next one as it is decoded, which a GPU has in memory meanwhile."""
        shape = (own * len(self._domains), 3, stage.resolution, stage.resolution)
        random = torch.Generator(self._device).manual_seed(0)
        ahead = torch.randint(256, shape, generator=random, dtype=torch.uint8, device=self._device)
        ahead = ahead.contiguous(memory_format=torch.channels_last)
        dtype = torch.float64 if self.plan.precision == "fp64" else torch.float32
        labels = None if self._labels is None else torch.zeros(own, dtype=torch.int64, device=self._device)
        return Batch(from_uint8(ahead, dtype), labels, self._domains), ahead


@dataclass
class _Taken:
    """What is known so far of a micro-batch; `doing` is empty when all is."""

    micro: int
    weights: int = 0
    images: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    together: int = 0
    outside: int = 0
    doing: str = WEIGHTS

    def measured(self) -> Measured:
        whole = 0 if self.doing else max([self.together, *self.phases.values()]) + self.outside
        return Measured(self.micro, self.weights, self.images, self.phases, self.outside, whole, self.doing)


@contextmanager
def _unsaid() -> Iterator[None]:
    """What cannot be recorded is said by the run, and not in every dry step before it; a remark has it."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def enough_for(known: Measured, micro: int) -> float:
    """So many bytes are enough for a larger micro-batch, going by one that is known."""
    stays = known.weights + known.images  # those of the whole step, however many go through the networks at once
    if stays >= known.whole:  # they lie in memory that the process had before
        stays = 0
    return stays + (known.whole - stays) * micro / known.micro if known.whole else math.inf


def held(backend: Backend) -> int:
    """Bytes of weights, average, optimizers' state, and of one gradient for each parameter that learns."""
    tensors = [tensor for part in backend.tensors().values() for tensor in part.values()]
    learning = [parameter for live in backend.live.values() for parameter in live.values()]
    return sum(tensor.nbytes for tensor in [*tensors, *learning])


def place_in(recipe: Recipe, stage: Stage) -> int:
    """Images shown before a step of the stage in which all phases are due; in the middle of a fade, if it is one."""
    if not stage.fade or stage.end is None:
        return stage.start
    cycle = math.lcm(*(phase.interval for phase in recipe.phases(stage.start)))
    steps = (stage.end - stage.start) // stage.batch
    return stage.start + steps // 2 // cycle * cycle * stage.batch
