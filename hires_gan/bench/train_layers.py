"""In which layer of which player an op runs, forward and in passes backward, of whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


@dataclass
class Running:
    """The modules that are running forward, and what is known of nodes of autograd's graph.

    Attributes:
        names: Of the modules, the innermost last; an empty one is always the first.
        calls: How often each has been called.
        made: By the number of a node, the layer that has made it, in whichever pass.
    """

    names: list[str]
    calls: Counter[str]
    made: dict[int, str]


@dataclass(frozen=True)
class Location:
    """Where an op runs; see `hires_gan.bench.train_ops.Op`."""

    layer: str
    call: int
    forward: bool
    again: bool


def location_of(running: Running, backward: bool) -> Location:
    """Where the op runs that has just run, and whose node, if it has one, is the newest."""
    location = _location(running, backward)
    newest = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
    running.made.setdefault(newest, location.layer)
    return location


def _location(running: Running, backward: bool) -> Location:
    name = running.names[-1]
    if backward and name:  # a module runs forward within a backward pass
        return Location(name, 0, False, True)
    if backward:
        node = torch._C._current_autograd_node()
        return Location("" if node is None else running.made.get(node._sequence_nr(), ""), 0, False, False)
    return Location(name, running.calls[name] if name else 0, True, False)


@contextmanager
def inside(players: Mapping[str, nn.Module]) -> Iterator[Running]:
    """Follow which modules of the players run; what they compute is known by their name in backward passes, too.

    Args:
        players: Networks by name; their layers are called by that name and their own.
    """
    running, handles = Running([""], Counter(), {}), []

    def enter(name: str, *_: object) -> None:
        running.names.append(name)
        running.calls[name] += 1

    def leave(*_: object) -> None:
        running.names.pop()

    for player, network in players.items():
        for name, module in network.named_modules():
            full = f"{player}.{name}" if name else player
            handles.append(module.register_forward_pre_hook(partial(enter, full)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with torch.autograd.set_multithreading_enabled(False):  # each thread numbers its nodes from 0
            yield running
    finally:
        for handle in handles:
            handle.remove()
