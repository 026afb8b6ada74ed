"""Every op that some work runs, forward and backward: what it computes, what it moves, and in which layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from hires_gan.bench.train_layers import Location, inside, location_of

_PACKET = type(torch.ops.aten.mm)
_BACKWARD = torch.ops.aten.convolution_backward
_OVER_LISTS = "aten._foreach_"
"""These change lists of tensors; where they do it in place, they return nothing."""
_ONLY_WRITTEN = {
    "aten.copy_",
    "aten.fill_",
    "aten.zero_",
    "aten.normal_",
    "aten.uniform_",
    f"{_OVER_LISTS}copy_",
    f"{_OVER_LISTS}zero_",
}
"""What these change in place, they do not read."""
_GATHERING = {"aten.index", "aten.index_select", "aten.gather", "aten.embedding", "aten.take"}
"""Of their first tensor these read what they give, and at most all of it."""
_UNREAD = ("aten.new_", "aten.zeros_like", "aten.ones_like", "aten.full_like")
_UNTOUCHED = ("aten.empty", "aten.new_empty")
"""These only allocate."""


@dataclass(frozen=True)
class Op:
    """One op that ran.

    Attributes:
        name: As torch calls it, such as `aten.convolution`.
        layer: The innermost module that was running forward, such as `generator.synthesis.blocks.0`, or whose result
            is differentiated, once or more often; empty outside the players.
        call: Which call of that module it was, from 1 on; 0 outside, and in a backward pass.
        forward: Whether no backward pass was under way.
        again: Whether it was computed before, and is computed anew in a backward pass to save memory.
        side: Of its largest images, rounded down to a power of two; 0 where it sees none of 4x4 or more.
        shape: Of its largest result.
        dtype: Of its first tensor.
        flops: Floating-point operations of convolutions and matrix products, a multiplication with its addition being
            two; 0 for all others.
        bytes: Of the inputs that it reads and of its results, each once, in the device's memory; 0 for a view.
    """

    name: str
    layer: str
    call: int
    forward: bool
    again: bool
    side: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: int
    bytes: int


@contextmanager
def recording(players: Mapping[str, nn.Module], device: torch.device) -> Iterator[list[Op]]:
    """Record every op that runs, forward and backward, with the player's layer in which it does.

    Args:
        players: Networks by name; their layers are called by that name and their own.
        device: Where they compute; what moves in another's memory, as numbers drawn on the CPU, is not counted.
    """
    ops: list[Op] = []
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Unhooked()
    with inside(players) as running, counter:

        def record(packet: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
            location = location_of(running, counter.mod_tracker.is_bw)
            op = _described(packet, args, kwargs, out_val, location, device)
            if op.bytes or op.flops:
                ops.append(op)
            return op.flops

        counter.flop_registry = _Formulas(record)
        yield ops


class _Unhooked(ModuleTracker):
    """Tells forward from backward, and no more.

    The counter's own hangs hooks on what goes through modules, with which autograd refuses the gradients of penalties.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Formulas(dict[Any, Any]):
    """In place of the counter's own table of formulas: the counter looks up every op here behind its run."""

    def __init__(self, record: Callable[..., int]) -> None:
        super().__init__(flop_registry)
        self._record = record

    def __contains__(self, op: object) -> bool:
        return isinstance(op, _PACKET)

    def __getitem__(self, op: Any) -> Callable[..., int]:
        return partial(self._record, op)


def _described(
    packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, location: Location, device: torch.device
) -> Op:
    name, tensors, results = str(packet), list(_tensors((args, kwargs))), list(_tensors(out))
    largest = max(results, key=Tensor.numel, default=None)
    first = (tensors or results or [torch.empty(0)])[0]
    return Op(
        name,
        location.layer,
        location.call,
        location.forward,
        location.again,
        _side([*tensors, *results]),
        () if largest is None else tuple(largest.shape),
        first.dtype,
        _flops(packet, args, kwargs, out),
        _moved(name, args, kwargs, results, device),
    )


def _flops(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """By torch's formulas, but for the gradients of grouped weights, which they count as if there were one group."""
    formula = flop_registry.get(packet)
    if formula is None:
        return 0
    if packet is not _BACKWARD:
        return int(formula(*args, **kwargs, out_val=out))
    *rest, groups, (of_input, of_weight, _) = args
    images = formula(*rest, groups, (of_input, False, False), out_val=out)
    weights = formula(*rest, groups, (False, of_weight, False), out_val=out)
    return int(images + weights // groups)


def _moved(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Sequence[Tensor], device: torch.device
) -> int:
    if name.startswith(_UNTOUCHED):
        return 0
    stored = {_storage(tensor) for tensor in _tensors((args, kwargs))}
    in_place = name.endswith("_") or "out" in kwargs
    if not in_place and results and all(_storage(result) in stored for result in results):
        return 0  # a view
    written = list(_tensors(args[0])) if in_place and name.startswith(_OVER_LISTS) else results
    gathered = min(_there(args[:1], device), _there(results, device)) if name in _GATHERING else 0
    return gathered + _there(_read(name, args, kwargs), device) + _there(written, device)


def _read(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments that an op reads as a whole."""
    if name.startswith(_UNREAD):
        return ()
    if name in _ONLY_WRITTEN or name in _GATHERING:
        return args[1:], kwargs
    if name == str(_BACKWARD):
        gradient, x, weight, *_, (of_input, of_weight, _) = args
        return gradient, x if of_weight else (), weight if of_input else ()
    written = kwargs.get("out")  # which is a result, and nothing is read of it
    return args, {key: value for key, value in kwargs.items() if value is not written}


def _there(tensors: Any, device: torch.device) -> int:
    """The bytes of those that lie in the device's memory, each once."""
    return sum(_bytes(one) for one in _distinct(one for one in _tensors(tensors) if one.device.type == device.type))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _distinct(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    keys = {(_storage(one), one.storage_offset(), one.shape, one.stride(), id(one.dtype)): one for one in tensors}
    return keys.values()


def _bytes(tensor: Tensor) -> int:
    """In memory: what is expanded lies there once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count


def _side(tensors: Iterable[Tensor]) -> int:
    side = max((max(tensor.shape[2:]) for tensor in tensors if tensor.ndim == 4), default=0)
    return 1 << side.bit_length() - 1 if side >= 4 else 0
