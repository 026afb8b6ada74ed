"""What the names of metrics say: who measured, which metric it is, and whether it is a part of one."""

from __future__ import annotations

EVALUATION = "evaluation/"
"""Before the metrics that a run measures of itself."""
AFTERWARDS = "evaluate/"
"""Before those that were measured of one of its checkpoints by itself."""
JUDGES = (EVALUATION, AFTERWARDS)
_DIGITS = 8
"""Of a protocol's fingerprint, in a name."""


def is_part(key: str) -> bool:
    """Whether it is a level, such as `evaluation/swd/64`, or a deviation."""
    detail = key.rpartition("/")[2]
    return key.startswith(JUDGES) and (detail.isdecimal() or detail == "deviation")


def shown(key: str) -> str:
    """What people call it: `swd` for `evaluation/swd`, and `evaluate/swd` for itself."""
    return key.removeprefix(EVALUATION)


def series_of(name: str) -> str:
    """Without direction: `evaluation/kid` for `evaluation/kid/a_to_b`, `kid` for `kid/a_to_b`."""
    prefix = next((prefix for prefix in JUDGES if name.startswith(prefix)), "")
    return prefix + name.removeprefix(prefix).partition("/")[0]


def metric_of(name: str) -> str:
    """The metric's own name: `fid` for `evaluate/fid:3f2a91bc/a_to_b`, whose end tells how it was measured."""
    return series_of(name).removeprefix(AFTERWARDS).removeprefix(EVALUATION).partition(":")[0]


def taken_otherwise(name: str, fingerprint: str) -> str:
    """`evaluate/fid:3f2a91bc`, for what was measured in another way than what has the plain name.

    Args:
        name: The plain one.
        fingerprint: The sha256 of the way; empty where nothing says it.
    """
    return f"{name}:{fingerprint[:_DIGITS] or 'not said'}"
