"""A feature network of a user's own: what a factory of an installed package makes, with its weights or a file's."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.installed import Installed, find_installed
from hires_gan.evaluation.weights import load_state, state_checksum
from hires_gan.inference.images import from_uint8
from hires_gan.networks.published import OptionNames

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""From uint8 images `[n, 3, r, r]` on the device to features `[n, d]` and logits `[n, k]` or None."""

_SEED = 0


@dataclass(frozen=True)
class OwnNetwork:
    """What was made.

    Attributes:
        network: It computes on the device, from bytes.
        package: The package that brings it, and its version.
        checksum: sha256 of its weights, of what it is called where there are none to be seen; of a package in the works
            also of its source. Weights are all tensors of a module, and not what other objects hold.
        random: A weight that the factory draws at random, by its name; None where there is none, or it is not known.
        seen: Whether its weights are to be seen, and in the checksum.
    """

    network: Network
    package: str
    checksum: str
    random: str | None
    seen: bool


def open_own(source: str, weights: Path | None, device: torch.device, names: OptionNames, option: str) -> OwnNetwork:
    """Make the network, with weights that are the same in every process and run.

    What the factory makes may be a module, or a method of one. It is made twice where there is no file of weights, to
    see whether its weights are random ones: that takes its factory's time and memory once more, for a moment (1 s on
    one core and 0.4 GB for 100 million weights).

    Args:
        source: `package.module:factory`.
        weights: A state dict for what the factory makes; None for the weights that this has.
        device: Where it shall compute.
        names: What the options for weights are called.
        option: What `source` was given to.

    Raises:
        UsageError: If there is no such factory, it makes no network, or the weights are others.
        Failure: If the factory fails.
    """
    found = find_installed(source, option)
    made = _made(source, found, option)
    state: Mapping[str, Tensor] = {}
    random = None
    module = _module_of(made)
    if module is not None:
        if weights is None:
            random = _random_weight(module, found)
        else:
            _load_into(module, weights, source, names)
        module.to(device).eval().requires_grad_(False)  # in place, and so for a method of it, too
        state = _held_by(module)
    elif weights is not None:
        raise UsageError(
            f"{names.weights} is {weights}, but {source} makes a {type(made).__name__} and no torch module that could "
            f"take weights; leave it out"
        )
    # Where there are no weights to be seen, name and version have to stand for what it computes.
    checksum = state_checksum(state or {f"{source} of {found.package}": torch.empty(0)})
    return OwnNetwork(_scaled(made, source), found.package, _with_source(checksum, found), random, bool(state))


def _module_of(made: Any) -> nn.Module | None:
    """The module that computes, where there is one: what was made, or whose method that is."""
    owner = made.__self__ if inspect.ismethod(made) else made
    return owner if isinstance(owner, nn.Module) else None


def _held_by(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module: its state dict, and by their place what that leaves out.

    That is buffers that are not kept, and tensors and arrays that are plain attributes, also within lists and dicts.
    What was computed from parameters is left out: they stand for it.
    """
    state: dict[str, Tensor] = dict(module.state_dict())
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    met = {id(tensor) for name, tensor in named if name in state}
    return state | {f"attribute {name}": tensor for name, tensor in _tensors_in(module, "", met)}


def _tensors_in(value: Any, name: str, met: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors in a value, by their place in it.

    Args:
        value: Anything; modules, lists, tuples and dicts are looked into.
        name: Its own place.
        met: The identities of what is known already; what is found is added, so that circles end.
    """
    if id(value) in met:
        return
    met.add(id(value))
    if isinstance(value, Tensor):
        if value.is_leaf and value.layout == torch.strided and not value.is_meta:
            yield name, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biufc":
            yield name, torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    else:
        for key, one in _parts_of(value):
            yield from _tensors_in(one, f"{name}.{key}", met)


def _parts_of(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, nn.Module):
        return list(vars(value).items())
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _with_source(checksum: str, found: Installed) -> str:
    """With what is in the works, the same weights may be another network tomorrow."""
    return checksum if found.source is None else hashlib.sha256(f"{checksum} {found.source}".encode()).hexdigest()


def _made(source: str, found: Installed, option: str) -> Callable[[Tensor], Any]:
    """What the factory makes: the same in every process and run, also if its weights are random ones."""
    try:
        made = _called(found, _SEED)
    except Exception as error:  # whatever a factory of somebody else's does
        raise Failure(f"{option} is {source}, which fails when it is called without arguments: {error}") from error
    if not callable(made):
        raise UsageError(
            f"{option} is {source}, which makes a {type(made).__name__}; a torch module, or something else that can be "
            f"called with images, is needed"
        )
    return made  # type: ignore[no-any-return]


def _called(found: Installed, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the GPUs' generators, too
        return found.call()


def _random_weight(module: nn.Module, found: Installed) -> str | None:
    """The first weight that is another one if the factory is called under another seed."""
    try:
        again = _called(found, _SEED + 1)
    except Exception:  # it can be called once only, or there is no room for two: then nothing can be said
        return None
    owner = _module_of(again)
    other = {} if owner is None else _held_by(owner)
    return next((name for name, value in _held_by(module).items() if not _same(value, other.get(name))), None)


def _same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.dtype == other.dtype and torch.equal(value, other)


def _load_into(module: nn.Module, path: Path, source: str, names: OptionNames) -> None:
    try:
        module.load_state_dict(load_state(path, names.weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{names.weights}: {path} does not hold the weights of {source}: {reason}") from error


def _scaled(network: Callable[[Tensor], Any], source: str) -> Network:
    """A network for images in [-1, 1] as one for bytes."""

    def scaled(images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = network(from_uint8(images, torch.float32))
        parts = found if isinstance(found, tuple) else (found, None)
        if not _is_output(parts, len(images)):
            raise Failure(
                f"the feature network {source} returns {_described(found)} for {len(images)} images; a tensor "
                f"[{len(images)}, ...] of features is needed, or a pair of that and of logits"
            )
        return parts[0].flatten(1), None if parts[1] is None else parts[1].flatten(1)

    return scaled


def _is_output(parts: tuple[Any, ...], count: int) -> bool:
    def is_rows(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() >= 2 and len(value) == count and value.is_floating_point()

    return len(parts) == 2 and is_rows(parts[0]) and (parts[1] is None or is_rows(parts[1]))


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} of shape {list(found.shape)}"
    if isinstance(found, tuple):
        return f"a tuple of {len(found)}"
    return f"a {type(found).__name__}"
