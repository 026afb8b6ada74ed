"""Which implementation computes the ops: the compiled one, or plain torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from hires_gan.errors import Failure
from hires_gan.ops import native

BACKENDS = ("auto", "native", "reference")

_choice = "auto"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute the ops of a block with one implementation.

    The choice holds for the forward pass, in every thread; a backward pass goes through the implementation that its
    forward pass went through.

    Args:
        name: `native` (compiled), `reference` (plain torch) or `auto` (the faster one on the device of the tensors).

    Raises:
        ValueError: If there is no such implementation.
    """
    global _choice
    before, _choice = _choice, _checked(name)
    try:
        yield
    finally:
        _choice = before


def choose(name: str, require_native: bool, device: torch.device) -> None:
    """Compute the ops of this process with one implementation.

    Args:
        name: `native`, `reference` or `auto`.
        require_native: Whether a missing native library for the device is an error, even with `auto`.
        device: Where the work will be done.

    Raises:
        ValueError: If there is no such implementation.
        Failure: If the native library is asked for and missing; the sentence says why it is, and the remedy.
    """
    global _choice
    _checked(name)
    if (require_native or name == "native") and device.type in ("cpu", "cuda") and not native.available(device.type):
        raise _missing("ops.require_native is true" if require_native else "ops.backend is native", device.type)
    _choice = name


def resolve(device: torch.device) -> Literal["native", "reference"]:
    """Which implementation computes tensors on a device.

    Raises:
        Failure: If `native` was chosen and is missing there.
    """
    if _choice == "reference":
        return "reference"
    if _choice == "native":
        if device.type not in ("cpu", "cuda", "meta"):
            raise Failure(f"there are no native ops for {device.type} devices; choose the backend auto or reference")
        if device.type != "meta" and not native.available(device.type):
            raise _missing("the native ops are chosen", device.type)
        return "native"
    return "native" if device.type == "cuda" and native.available("cuda") else "reference"


def explain(device: torch.device) -> str:
    """One sentence on what computes the ops on a device, and why."""
    found = resolve(device)
    if _choice != "auto":
        return f"ops: {found} on {device.type}, as chosen"
    if found == "native":
        return f"ops: native on {device.type}, the faster one there"
    if device.type == "cuda":
        return f"ops: reference (plain torch) on cuda, since the native ones are missing: {native.why_not('cuda')}"
    return f"ops: reference (plain torch) on {device.type}, where native ones gain nothing"


def _checked(name: str) -> str:
    if name not in BACKENDS:
        nearest = difflib.get_close_matches(str(name), BACKENDS, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"the ops' backend is {name!r}; {', '.join(BACKENDS)} are allowed{hint}")
    return name


def _missing(who: str, device_type: str) -> Failure:
    return Failure(
        f"{who}, but the native library for {device_type} is missing: {native.why_not(device_type)}; "
        "`hires-gan doctor` says more, and ops.backend=reference computes with plain torch"
    )
