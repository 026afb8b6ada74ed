"""How long a step would take at the speeds that the device has shown, op by op."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from hires_gan.bench.train_ops import Op
from hires_gan.bench.train_rates import Rates

IN_WORDS = (
    "The floor is the sum, over every op that PyTorch runs in the phases of an average step, of the larger of two "
    "times: its operations at the rate of a large matrix product in its dtype, and its bytes (each input read once, "
    "each result written once) at the rate of a large copy; with Adam's seven numbers per weight, and the average's "
    "three. What layers compute a second time to save memory does not count. "
    "Reaching it would need every kernel at those rates and no gap between them. It is no bound on all programs "
    "for the same step: ops that are fused leave out writes and reads that it counts, and can go below it. The part of "
    "convolutions and matrix products alone is what remains of it if all others were fused away; only an algorithm "
    "with fewer operations, such as Winograd's, goes below that."
)

_Key = TypeVar("_Key")
_ADAM, _AVERAGE = 7, 3
"""Numbers that are read or written for each weight: it, its gradient, both moments; it and its average."""


@dataclass
class Cost:
    """What some ops compute and move, and how long that takes at best, each op by itself.

    Attributes:
        gflop: Operations, in 1e9.
        mb: Bytes, in 1e6.
        ms_by_operations: At the measured rates of matrix products, each op in its dtype.
        ms_by_bytes: At the measured rate of a copy.
        ms: The larger of both of each op, summed.
        ms_of_matrices: The same for convolutions and matrix products alone.
    """

    gflop: float = 0.0
    mb: float = 0.0
    ms_by_operations: float = 0.0
    ms_by_bytes: float = 0.0
    ms: float = 0.0
    ms_of_matrices: float = 0.0

    def add(self, op: Op, rates: Rates, times: float = 1.0) -> None:
        """Add an op that runs so many times."""
        operations = 1e3 * op.flops / rates.matrix(op.dtype) if op.flops else 0.0
        moving = 1e3 * op.bytes / rates.copy
        self.gflop += times * op.flops / 1e9
        self.mb += times * op.bytes / 1e6
        self.ms_by_operations += times * operations
        self.ms_by_bytes += times * moving
        self.ms += times * max(operations, moving)
        self.ms_of_matrices += times * max(operations, moving) if op.flops else 0.0


def cost(ops: Iterable[Op], rates: Rates) -> Cost:
    """The cost of some ops together."""
    total = Cost()
    for op in ops:
        total.add(op, rates)
    return total


def by_side(phases: Iterable[tuple[int, Sequence[Op]]], rates: Rates) -> dict[int, Cost]:
    """The cost of an average step at each resolution, the highest first; 0 stands for what sees no images.

    Args:
        phases: The interval and the ops of each.
        rates: How fast the device is.
    """
    return dict(sorted(_grouped(phases, rates, lambda op: op.side).items(), reverse=True))


def by_layer(phases: Iterable[tuple[int, Sequence[Op]]], rates: Rates) -> dict[str, Cost]:
    """The cost of an average step in each layer of the players, in the order in which they run first.

    All passes of all phases count, forward and backward; an empty name stands for what is in no layer.

    Args:
        phases: The interval and the ops of each.
        rates: How fast the device is.
    """
    found = _grouped(phases, rates, lambda op: op.layer)
    outside = found.pop("", Cost())
    return {**found, "": outside}


def _grouped(phases: Iterable[tuple[int, Sequence[Op]]], rates: Rates, key: Callable[[Op], _Key]) -> dict[_Key, Cost]:
    """The cost of an average step by whatever a key tells of an op."""
    found: defaultdict[_Key, Cost] = defaultdict(Cost)
    for interval, ops in phases:
        for op in ops:
            found[key(op)].add(op, rates, 1 / interval)
    return found


def updating(weights: Iterable[Tensor], averaged: Iterable[Tensor]) -> list[Op]:
    """The optimizer's step and that of the running average, with all of their ops fused.

    Args:
        weights: That learn in the step.
        averaged: Of which the average is kept.
    """
    kinds = (("Adam", _ADAM, list(weights)), ("average", _AVERAGE, list(averaged)))
    return [
        Op(name, "", 0, False, False, 0, tuple(one.shape), one.dtype, 0, numbers * one.numel() * one.element_size())
        for name, numbers, tensors in kinds
        for one in tensors
    ]


@dataclass(frozen=True)
class Layer:
    """One module in a forward pass, without the modules inside it.

    Attributes:
        name: Of the player, and of the module in it.
        calls: How often it is called.
        shape: The result of its most costly op.
        cost: Of all calls.
    """

    name: str
    calls: int
    shape: tuple[int, ...]
    cost: Cost


def layers(ops: Iterable[Op], rates: Rates) -> list[Layer]:
    """The layers of the players, in the order in which they run forward."""
    groups: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.layer:
            groups[op.layer].append(op)
    return [
        Layer(name, len({op.call for op in own}), max(own, key=_weight).shape, cost(own, rates))
        for name, own in groups.items()
    ]


def _weight(op: Op) -> tuple[int, int]:
    return op.flops, op.bytes
