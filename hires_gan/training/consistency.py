"""Whether all processes still have the same weights, bit for bit: asked before a checkpoint is written."""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hires_gan.errors import Elsewhere, Failure
from hires_gan.training.standing import ranks
from hires_gan.training.world import World

_CHUNK = 2**20
"""Entries that are looked at at once: 8 MiB for each of the few tensors that this takes."""
_WHOLE = 2**64
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprints(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """One number for each part, which tells equal bits from others.

    The bits of all entries are added up, each times an odd number of its own, modulo 2**64: a single entry that differs
    always tells, and several miss each other with a chance of about 2**-64.

    Args:
        parts: Named tensors, of any dtype and strides, on any device; strides do not count, nor do devices.

    Returns:
        By part: 0 to 2**64 - 1. It is computed where the tensors are; there is one transfer from each device.
    """
    places = [(part, name, tensor.detach()) for part, tensors in parts.items() for name, tensor in tensors.items()]
    sums: list[int] = [0] * len(places)
    for device in {tensor.device for _, _, tensor in places}:
        here = [number for number, (_, _, tensor) in enumerate(places) if tensor.device == device]
        values = torch.stack([_sum_of_bits(places[number][2]) for number in here]).tolist()
        for number, value in zip(here, values, strict=True):
            sums[number] = value
    found = dict.fromkeys(parts, 0)
    for (part, name, tensor), value in zip(places, sums, strict=True):
        found[part] = (found[part] + value * _odd(name) + _odd(_kind(name, tensor))) % _WHOLE
    return found


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """int64, without dimensions, on the tensor's device."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start, bits in _chunks(tensor):
        total += (bits * _weights(start, len(bits), tensor.device)).sum()
    return total


def _chunks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The bits of all entries in their logical order, as int64, with the place of the first one of each chunk."""
    flat = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    flat = flat.resolve_neg().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    for start in range(0, len(bits), _CHUNK):
        yield start, bits[start : start + _CHUNK].to(torch.int64)


def _weights(start: int, count: int, device: torch.device) -> Tensor:
    """An odd number for each place, as if drawn at random: the place, mixed by multiplication and shifts."""
    mixed = torch.arange(start + 1, start + count + 1, device=device) * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> 27)) * _signed(0x94D049BB133111EB)
    return (mixed ^ (mixed >> 31)) | 1


def _signed(number: int) -> int:
    """The same 64 bits as torch has them."""
    return number - _WHOLE if number >= _WHOLE // 2 else number


def _kind(name: str, tensor: Tensor) -> str:
    return f"{name} {tensor.dtype} {list(tensor.shape)}"


def _odd(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") | 1


def check_equal(world: World, prints: Mapping[str, int]) -> None:
    """Make sure that all processes have the same; all of them have to ask.

    Args:
        world: The processes.
        prints: What `fingerprints` gave this one.

    Raises:
        Failure: On the first process, naming parts and ranks that differ.
        Elsewhere: On the others.
    """
    told = world.gathered([socket.gethostname(), dict(prints)])
    hosts, found = [host for host, _ in told], [theirs for _, theirs in told]
    names = list(dict.fromkeys(name for theirs in found for name in theirs))
    differing = {name: odd for name in names if (odd := _differing([theirs.get(name) for theirs in found]))}
    if not differing:
        return
    if not world.first:
        raise Elsewhere
    where = "; ".join(f"{name} of {ranks(odd)}" for name, odd in differing.items())
    machines = ", ".join(dict.fromkeys(hosts[rank] for odd in differing.values() for rank in odd))
    raise Failure(
        f"the processes have not the same weights any more: {where} differ from the rest, on {machines}; memory that "
        "errs, a GPU of another kind, or an op that is not deterministic does that; no checkpoint is written, and the "
        "one before holds: look at that machine, then run the same command again"
    )


def _differing(values: list[int | None]) -> list[int]:
    """The ranks that do not have what most have; all of them, where there is no majority."""
    (most, count), *others = Counter(values).most_common()
    if not others:
        return []
    return [rank for rank, value in enumerate(values) if value != most or 2 * count <= len(values)]
