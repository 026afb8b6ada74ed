"""What a benchmark leaves out, to learn what it is worth: everything that runs have without being asked."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

Part = Literal[
    "channels-last", "derivatives", "epilogue", "one-pass", "average", "sample-draws", "device-draws", "unread"
]
PARTS: dict[Part, str] = {
    "channels-last": "weights and images lie contiguously, not in channels_last; so do convolutions on a GPU",
    "derivatives": "derivatives of convolutions are torch's own, and not convolutions",
    "epilogue": "demodulation, noise, then bias and activation are ops of their own, and not one",
    "one-pass": "reals and fakes go through a discriminator one after the other, and not together",
    "average": "the running average follows one parameter after the other, and not all in one call",
    "sample-draws": "random numbers are torch's own on the device, and not a function of the sample's number",
    "device-draws": "random numbers are drawn on the CPU and copied, and not drawn on the device",
    "unread": "every step reads the values of its losses and statistics, and does not leave them on the device",
}
"""By name, what is computed without the part."""

_left_out: list[str] = []
"""A global of all threads, since a backward pass runs in threads of its own."""


@contextmanager
def leaving_out(parts: Collection[str]) -> Iterator[None]:
    """Within it, some of what runs always have is left out, in this process.

    Args:
        parts: Names in `PARTS`.

    Raises:
        ValueError: There is no such part.
    """
    for part in parts:
        _check(part)
    before = list(_left_out)
    _left_out.extend(parts)
    try:
        yield
    finally:
        _left_out[:] = before


def left_out(part: Part) -> bool:
    """Whether a part is to be left out; no without being asked."""
    return part in _left_out


def _check(part: str) -> None:
    if part not in PARTS:
        nearest = difflib.get_close_matches(part, PARTS, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"there is no part {part!r}; {', '.join(PARTS)} are allowed{hint}")
