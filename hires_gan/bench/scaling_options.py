"""The options of `bench scaling` that hold more than a number, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hires_gan.bench.scaling_model import Network
from hires_gan.errors import UsageError


def parse_network(per_node: int, intra: float, inter: float, latency: str) -> Network:
    """What lies between the GPUs.

    Args:
        per_node: GPUs of a node.
        intra: GB/s of a GPU.
        inter: GB/s of a node.
        latency: `2,8,30`: microseconds of a message inside a node, between nodes, and of a control message.

    Raises:
        UsageError: A number is missing or cannot be.
    """
    if per_node < 1:
        raise UsageError(f"--per-node is {per_node}; a whole number of 1 or more is allowed")
    for option, value in (("--intra", intra), ("--inter", inter)):
        if not 0 < value < math.inf:
            raise UsageError(f"{option} is {value:g}; GB/s above 0 are allowed")
    hops = [_number(part) for part in latency.split(",")]
    if len(hops) != 3 or not all(hop is not None and hop >= 0 for hop in hops):
        raise UsageError(
            f"--latency is {latency!r}; microseconds inside a node, between nodes and of a control message are "
            "allowed, 0 or more, such as 2,8,30"
        )
    inside, between, control = (1e-6 * (hop or 0.0) for hop in hops)
    return Network(per_node, 1e9 * intra, 1e9 * inter, inside, between, control)


def parse_jitter(percent: float) -> float:
    """`1` -> 0.01.

    Raises:
        UsageError: It is negative, or no number.
    """
    if not 0 <= percent < math.inf:
        raise UsageError(f"--jitter is {percent:g}; a percentage of 0 or more is allowed")
    return percent / 100


def parse_first(texts: Sequence[str]) -> float:
    """`60/200`, 60 seconds in 200 kimg, several of them -> seconds for each image, together.

    Raises:
        UsageError: One of them is of another form.
    """
    return sum(_seconds_per_image(text) for text in texts)


def _seconds_per_image(text: str) -> float:
    seconds, kimg = (_number(part) for part in (text.split("/") if text.count("/") == 1 else ("", "")))
    if seconds is None or kimg is None or seconds < 0 or kimg <= 0:
        raise UsageError(f"--first is {text!r}; SECONDS/KIMG is allowed, such as 60/200 for 60 seconds in 200 kimg")
    return seconds / (1000 * kimg)


def parse_seconds(text: str | None) -> dict[str, float]:
    """`0.061` -> {"": 0.061}; `generator=0.026,r1=0.025` -> by name; None -> {}.

    Raises:
        UsageError: It is of another form, or not above 0.
    """
    if text is None:
        return {}
    parts = [part.rpartition("=") for part in text.split(",")]
    found = {name.strip(): _number(value) or 0.0 for name, _, value in parts}
    if len(found) != len(parts) or (len(found) > 1 and "" in found) or min(found.values()) <= 0:
        raise UsageError(
            f"--step-seconds is {text!r}; seconds above 0 are allowed, of an average step, such as 0.061, or of a call "
            "of each phase, such as generator=0.026,discriminator=0.028"
        )
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
