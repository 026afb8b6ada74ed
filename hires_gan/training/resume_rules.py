"""What may differ between a run's checkpoint and the configuration that goes on from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from hires_gan.errors import UsageError

MAY_CHANGE_ON_RESUME: Final = (
    "run.dir",
    "run.resume",
    "run.profile",
    "run.check_memory",
    "run.total_kimg",
    "run.stop_after_nonfinite",
    "data.shards",  # the manifests' hash decides whether it is the same data, names and order of the domains included
    "data.domains*",
    "data.stream.*",  # the order's lanes are checked as they are resolved
    "data.decoder",
    "data.workers",
    "data.threads",
    "data.hw_decoder_load",
    "data.prefetch",
    "data.max_corrupt",
    "data.timeout",
    "recipe.vgg.*",  # their sha256 is known
    "recipe.generator.recompute",
    "batch.per_device",
    "performance",
    "levers*",
    "ops.*",
    "backend.*",
    "checkpoint.*",
    "samples.*",
    "evaluation.*",
    "tracking.*",
)
"""Dotted keys, `*` for any: what changes no weight, only where, how fast, how long and how closely watched."""


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""Stands for the value of a key that only the other side has."""


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two resolved configurations differ.

    Args:
        old: The configuration in the checkpoint, as JSON gives it back.
        new: The configuration now, from `model_dump(mode="json")`.

    Returns:
        (dotted key, old value, new value) for each difference, the deepest key that tells it, in the order of `new`;
        `ABSENT` where a side has no such key.
    """
    return _changes("", old, new)


def may_change(key: str) -> bool:
    """Whether a dotted key may differ from the checkpoint on resume."""
    return any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE_ON_RESUME)


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Make sure that only what may change has changed since the checkpoint.

    Raises:
        UsageError: Names every key that may not differ, with both values and the remedy, one per line.
    """
    refused = [
        f"{key} was {_shown(before)} in the checkpoint and is {_shown(now)} now; it may not change on resume: "
        "set it back, or start a new run under another run.name"
        for key, before, now in changed_keys(old, new)
        if not may_change(key)
    ]
    if refused:
        raise UsageError("\n".join(refused))


def _changes(above: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if _comparable(old) == _comparable(new) else [(above, old, new)]
    before = {str(key): value for key, value in old.items()}  # a map by resolution has text for keys in JSON
    now = {str(key): value for key, value in new.items()}
    return [
        change
        for key in dict.fromkeys([*now, *before])
        for change in _changes(f"{above}.{key}" if above else key, before.get(key, ABSENT), now.get(key, ABSENT))
    ]


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False, default=str)
