"""What an evaluation gives: numbers by name, and how each was taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hires_gan.evaluation.protocol import Record


@dataclass(frozen=True)
class Measured:
    """One number.

    Attributes:
        record: It, and how it was taken.
        details: Numbers that it is made of, such as those of the levels of the sliced Wasserstein distance.
    """

    record: Record
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """By name: `swd`, `swd/64`; `kid`, `kid/deviation`."""
        name, deviation = self.record.metric, self.record.deviation
        more = {} if deviation is None else {"deviation": deviation}
        return {name: self.record.value} | {f"{name}/{key}": value for key, value in {**more, **self.details}.items()}


@dataclass(frozen=True)
class Result:
    """All numbers of an evaluation; on the first process alone, empty on the others.

    Attributes:
        values: By name, with details.
        records: One for each metric, of a translation for each metric and direction.
    """

    values: dict[str, float]
    records: tuple[Record, ...]

    @classmethod
    def of(cls, found: Sequence[Measured]) -> Result:
        """What was measured of one subject."""
        values = {name: value for one in found for name, value in one.values.items()}
        return cls(values, tuple(one.record for one in found))

    def records_of(self, metric: str) -> tuple[Record, ...]:
        """How a metric was taken."""
        return tuple(record for record in self.records if record.metric == metric)

    def as_json(self) -> str:
        """For a file."""
        records = [record.model_dump(mode="json") for record in self.records]
        return json.dumps({"values": self.values, "records": records}, indent=1) + "\n"


def of_directions(results: Mapping[str, Result]) -> Result:
    """The results of all directions of a translation as one: for each metric its mean, under the metric's own name.

    Args:
        results: By the direction's name, such as `a_to_b`.
    """
    values = [_of_direction(result.values, direction) for direction, result in results.items()]
    return Result(_with_means(values), tuple(record for result in results.values() for record in result.records))


def _of_direction(values: Mapping[str, float], direction: str) -> dict[str, float]:
    """`swd` and `swd/16` become `swd/a_to_b` and `swd/a_to_b/16`."""
    named: dict[str, float] = {}
    for name, value in values.items():
        metric, _, detail = name.partition("/")
        named[f"{metric}/{direction}/{detail}" if detail else f"{metric}/{direction}"] = value
    return named


def _with_means(directions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """All values, and for each metric the mean of its values over the directions."""
    every = {name: value for values in directions for name, value in values.items()}
    whole = [name for name in every if name.count("/") == 1]
    metrics = dict.fromkeys(name.partition("/")[0] for name in whole)
    means = {
        metric: sum(every[name] for name in whole if name.startswith(f"{metric}/")) / len(directions)
        for metric in metrics
    }
    return means | every


def in_figures(value: float) -> str:
    """A number for people: two decimals, and where that would leave too little of it, four digits."""
    return f"{value:.2f}" if abs(value) >= 1 or not value else f"{value:.4g}"
