"""What differs between runs: settings, code and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hires_gan.tracking.comparison.runs import Run

_NAMED = ("run.name", "run.dir")
"""What a run is called and where it lies: no part of how it trains."""
_TAGS = ("git.", "version.", "gpu.", "cpu.", "memory.")


@dataclass(frozen=True)
class Difference:
    """A setting that the runs do not agree on.

    Attributes:
        key: Flattened, such as `recipe.generator_optimizer.learning_rate`.
        values: Of each run; None where a run has no such key.
    """

    key: str
    values: tuple[str | None, ...]


def settings_that_differ(runs: Sequence[Run]) -> list[Difference]:
    """The settings that differ, by key, with the values that they had at the end; and the data, if they do."""
    settings = [{key: value for key, value in run.parameters.items() if key not in _NAMED} for run in runs]
    return _differences([one | data for one, data in zip(settings, _data(runs), strict=True)])


def _data(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What each run was trained on, where that is not the same: digests decide, whatever it is called."""
    if len({frozenset(run.data) for run in runs}) == 1:
        return [{} for _ in runs]
    seen = [", ".join(f"{name} ({digest})" for digest, name in run.data.items()) for run in runs]
    return [{"data": text} if text else {} for text in seen]


def machines_that_differ(runs: Sequence[Run]) -> list[Difference]:
    """The commits, versions and hardware that differ, by tag."""
    return _differences([{key: value for key, value in run.tags.items() if _describes(key)} for run in runs])


def _describes(tag: str) -> bool:
    return tag == "host" or tag.startswith(_TAGS)


def _differences(tables: Sequence[Mapping[str, str]]) -> list[Difference]:
    keys = sorted({key for table in tables for key in table})
    rows = (Difference(key, tuple(table.get(key) for table in tables)) for key in keys)
    return [row for row in rows if len(set(row.values)) > 1]
