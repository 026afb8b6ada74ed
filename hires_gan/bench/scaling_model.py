"""A model of a step on many GPUs: pure functions of what one of them takes and of the network between them.

Gradients are summed bucket by bucket, one bucket after the other; what of it lies behind the backward pass makes the
step longer. What one process does while the others wait for it, and the slowest of them, do so too; a control message
only where it takes longer than the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hires_gan.training.shares import share

MEANS_BYTES = 512
"""Of a step's losses and statistics, about: 64 numbers in float64. It is their latency that counts."""

IN_WORDS = (
    "Inside a node, and then between nodes, a bucket takes the shorter of a ring's time, 2 (m - 1) / m bytes / "
    "bandwidth + 2 (m - 1) latency, and a tree's, 2 bytes / bandwidth + 2 ceil(log2 m) latency, among m GPUs or m "
    "nodes. Buckets are sent one after the other, each as soon as it is complete, or all of them behind the backward "
    "pass. The control message of a step goes twice round a ring of all processes, as gloo's does: 2 (n - 1) messages "
    "that wait for each other. It is asked at one step's end and heard at the next one's: a step waits only for what "
    "of it takes longer than an average step. Step times vary independently from GPU to GPU, and normally: the slowest "
    "of n is late by the expected maximum of n standard normal numbers, times the standard deviation. While the first "
    "process works alone, all others wait. Not in the model: that sending slows computing down, that other jobs share "
    "the network, that steps differ in length, and that for a log line the first process gathers what all others say."
)


@dataclass(frozen=True)
class Network:
    """What lies between the GPUs: assumptions, not measurements.

    Attributes:
        per_node: GPUs of a node.
        intra: Bytes per second and GPU, in each direction, inside a node.
        inter: Bytes per second and node, in each direction, between nodes.
        hop_intra: Seconds of a message inside a node.
        hop_inter: Seconds of a message between nodes.
        hop_control: Seconds of a control message from process to process, over TCP.
    """

    per_node: int = 8
    intra: float = 300e9
    inter: float = 50e9
    hop_intra: float = 2e-6
    hop_inter: float = 8e-6
    hop_control: float = 30e-6


ASSUMED = Network()
"""NVLink 4 inside a node, at two thirds of its 450 GB/s in each direction; outside it one port of 400 Gbit/s."""


@dataclass(frozen=True)
class PhaseCost:
    """What one call of a phase takes on one GPU alone.

    Attributes:
        interval: Every how many steps it is due.
        micro_seconds: Forward and backward pass of one micro-batch.
        complete_seconds: The optimizer's step, and what is done to the gradient before it.
        buckets: Bytes of each part of the gradient, in the order in which they are sent.
        ready: Of each of them, how many seconds before the end of the last micro-batch's backward pass it is complete;
            None where that was not measured.
    """

    interval: int
    micro_seconds: float
    complete_seconds: float
    buckets: tuple[int, ...]
    ready: tuple[float, ...] | None = None

    def seconds(self, micros: float) -> float:
        """Of a call over so many micro-batches."""
        return micros * self.micro_seconds + self.complete_seconds

    def scaled(self, factor: float) -> PhaseCost:
        """The same on a GPU that takes `factor` times as long."""
        ready = None if self.ready is None else tuple(factor * one for one in self.ready)
        return replace(
            self,
            micro_seconds=factor * self.micro_seconds,
            complete_seconds=factor * self.complete_seconds,
            ready=ready,
        )


@dataclass(frozen=True)
class StepCost:
    """What a step takes on one GPU alone.

    Attributes:
        phases: By name.
        micro: Images of a micro-batch.
        rest: Seconds of a step besides its phases: the running average.
    """

    phases: dict[str, PhaseCost]
    micro: int
    rest: float = 0.0

    def seconds(self, images: int) -> float:
        """Of an average step over so many local images; part of a micro-batch takes its part of the time."""
        micros = images / self.micro
        return self.rest + sum(one.seconds(micros) / one.interval for one in self.phases.values())


@dataclass(frozen=True)
class Conditions:
    """Under which many GPUs train.

    Attributes:
        network: Between them.
        overlap: Whether buckets are sent while the backward pass goes on.
        jitter: Standard deviation of a GPU's step time, as a share of it.
        first: Seconds for each image of the run in which the first process works alone.
    """

    network: Network = ASSUMED
    overlap: bool = False
    jitter: float = 0.0
    first: float = 0.0


def summing(size: int, members: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of `size` bytes among members of one kind: of a ring or a tree, whichever is faster."""
    if members == 1:
        return 0.0
    ring = 2 * (members - 1) / members * size / bandwidth + 2 * (members - 1) * latency
    tree = 2 * size / bandwidth + 2 * math.ceil(math.log2(members)) * latency
    return min(ring, tree)


def all_reduce(size: int, gpus: int, network: Network) -> float:
    """Seconds of an all-reduce of `size` bytes: inside the nodes, and between them, where each GPU has its part."""
    nodes = math.ceil(gpus / network.per_node)
    inside = summing(size, min(gpus, network.per_node), network.intra, network.hop_intra)
    return inside + summing(size, nodes, network.inter, network.hop_inter)


def control(gpus: int, network: Network) -> float:
    """Seconds of a control message to all, waited for or not: gloo sends it round a ring, twice."""
    return 2 * (gpus - 1) * network.hop_control


def exposed(ready: Sequence[float], seconds: Sequence[float]) -> float:
    """How many seconds behind the end of the backward pass the last bucket arrives.

    Args:
        ready: Of each bucket, seconds before that end at which it is complete; 0 for one that is only complete then.
        seconds: Of each bucket, how long it takes.
    """
    end = -math.inf
    for before, long in zip(ready, seconds, strict=True):
        end = max(-before, end) + long
    return max(end, 0.0)


@cache
def largest_of(count: int) -> float:
    """The expected maximum of so many independent standard normal numbers.

    The integral of x by the density of the maximum, n phi(x) Phi(x)^(n - 1): a sum over even points, which for such a
    function, all but nothing at both ends, is as exact as its terms are.
    """
    points = (_SPACING * number for number in range(-_POINTS, _POINTS + 1))
    return math.fsum(count * _SPACING * x * _density(x) * _below(x) ** (count - 1) for x in points)


_SPACING, _POINTS = 1 / 32, 12 * 32


def _density(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _below(x: float) -> float:
    """With what probability a standard normal number is below x."""
    return math.erfc(-x / math.sqrt(2)) / 2


def straggling(gpus: int, jitter: float) -> float:
    """By which share of a step the slowest of so many GPUs is late: the expected maximum of normal times."""
    return jitter * largest_of(gpus)


def waited(phase: PhaseCost, gpus: int, conditions: Conditions) -> float:
    """Seconds for which a call of a phase waits for the gradients of so many GPUs.

    Raises:
        ValueError: If buckets are to overlap, and when they are ready was not measured.
    """
    if conditions.overlap and phase.ready is None:
        raise ValueError("when the buckets are ready was not measured, so that they cannot overlap")
    ready = phase.ready if conditions.overlap and phase.ready is not None else (0.0,) * len(phase.buckets)
    return exposed(ready, [all_reduce(size, gpus, conditions.network) for size in phase.buckets])


@dataclass(frozen=True)
class Parts:
    """Where an average step's seconds go.

    Attributes:
        compute: What one GPU alone takes.
        gradients: What of their sums lies behind the passes.
        means: Of losses and statistics.
        control: For how long the step waits for the control message: what of it takes longer than all above, and
            stragglers.
        stragglers: By which the slowest GPU is late.
        first: In which the first process works alone.
    """

    compute: float
    gradients: float
    means: float
    control: float
    stragglers: float
    first: float

    @property
    def total(self) -> float:
        """Of the step."""
        return self.compute + self.gradients + self.means + self.control + self.stragglers + self.first


def step(cost: StepCost, images: int, whole: int, gpus: int, conditions: Conditions) -> Parts:
    """An average step.

    Args:
        cost: Of one GPU alone.
        images: Local ones, of the GPU that has most.
        whole: Of the global batch.
        gpus: How many.
        conditions: Of the network and the rest.
    """
    compute = cost.seconds(images)
    gradients = sum(waited(one, gpus, conditions) / one.interval for one in cost.phases.values())
    means = all_reduce(MEANS_BYTES, gpus, conditions.network)
    stragglers = compute * straggling(gpus, conditions.jitter)
    # What the first process does alone comes seldom, and hides the message of one step only.
    late = max(0.0, control(gpus, conditions.network) - (compute + gradients + means + stragglers))
    return Parts(compute, gradients, means, late, stragglers, conditions.first * whole)


@dataclass(frozen=True)
class Prediction:
    """What the model says of a number of GPUs.

    Attributes:
        gpus: How many.
        images: Local ones, of the GPU that has most.
        batch: The global batch.
        idle: GPUs that have no samples.
        parts: Of an average step.
        message: Seconds of its control message, waited for or not.
        efficiency: Images per second and GPU, as a share of what one GPU alone reaches with the same work.
    """

    gpus: int
    images: int
    batch: int
    idle: int
    parts: Parts
    message: float
    efficiency: float

    def row(self) -> dict[str, Any]:
        """For the record; times in milliseconds."""
        named = {f"{name}_ms": 1e3 * seconds for name, seconds in vars(self.parts).items()}
        return {
            "gpus": self.gpus,
            "images_per_gpu": self.images,
            "batch": self.batch,
            "idle_gpus": self.idle,
            "step_ms": 1e3 * self.parts.total,
            **named,
            "control_message_ms": 1e3 * self.message,
            "images_per_s": self.batch / self.parts.total,
            "efficiency": self.efficiency,
        }


def weak(cost: StepCost, gpus: int, conditions: Conditions) -> Prediction:
    """Each GPU has one micro-batch, and the global batch grows with their number: another training."""
    alone = step(cost, cost.micro, cost.micro, 1, conditions).total
    parts = step(cost, cost.micro, gpus * cost.micro, gpus, conditions)
    message = control(gpus, conditions.network)
    return Prediction(gpus, cost.micro, gpus * cost.micro, 0, parts, message, alone / parts.total)


def strong(cost: StepCost, batch: int, group: int, gpus: int, conditions: Conditions) -> Prediction:
    """The batch of the configuration is divided, whole groups for each GPU: the same training."""
    alone = step(cost, batch, batch, 1, conditions).total
    # The first has most, but for what is left behind the last whole group, which goes with the last that has any.
    own = max(len(share(batch, group, rank, gpus)) for rank in (0, min(gpus, max(1, batch // group)) - 1))
    parts = step(cost, own, batch, gpus, conditions)
    idle = max(0, gpus - max(1, batch // group))
    message = control(gpus, conditions.network)
    return Prediction(gpus, own, batch, idle, parts, message, alone / (gpus * parts.total))
