"""What an evaluation gives: numbers by name, and how each was taken."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hires_gan.evaluation.catalogue import MetricName
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
    def metric(self) -> MetricName:
        """Its name."""
        return self.record.metric

    @property
    def values(self) -> dict[str, float]:
        """By name: `swd`, `swd/64`; `kid`, `kid/deviation`."""
        name, deviation = self.record.metric, self.record.deviation
        more = {} if deviation is None else {"deviation": deviation}
        return {name: self.record.value} | {f"{name}/{key}": value for key, value in {**more, **self.details}.items()}


@dataclass(frozen=True)
class LeftOut:
    """A number that came out as no finite one, and was left out.

    Attributes:
        metric: Its name.
        reason: A clause.
    """

    metric: MetricName
    reason: str


def left_out(found: Sequence[Measured | LeftOut]) -> dict[str, list[MetricName]]:
    """The metrics that were, by the reason."""
    reasons: dict[str, list[MetricName]] = {}
    for one in found:
        if isinstance(one, LeftOut):
            reasons.setdefault(one.reason, []).append(one.metric)
    return reasons


@dataclass(frozen=True)
class Result:
    """All numbers of an evaluation; on the first process alone, empty on the others.

    Attributes:
        values: By name, with details; all of them finite.
        records: One for each metric, of a translation for each metric and direction.
        not_finite: The metrics that came out as no finite number, by the same names, and why.
    """

    values: dict[str, float]
    records: tuple[Record, ...]
    not_finite: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Sequence[Measured | LeftOut]) -> Result:
        """What was measured of one subject."""
        measured = [one for one in found if isinstance(one, Measured)]
        values = {name: value for one in measured for name, value in one.values.items()}
        left: dict[str, str] = {one.metric: one.reason for one in found if isinstance(one, LeftOut)}
        return cls(values, tuple(one.record for one in measured), left)

    @property
    def whole(self) -> tuple[Record, ...]:
        """How the metrics were taken that have a value: of a translation those that lapsed in no direction."""
        return tuple(record for record in self.records if record.metric not in self.not_finite)

    def records_of(self, metric: str) -> tuple[Record, ...]:
        """How a metric was taken."""
        return tuple(record for record in self.records if record.metric == metric)

    def as_json(self) -> str:
        """For a file."""
        records = [record.model_dump(mode="json") for record in self.records]
        found = {"values": self.values, "not_finite": dict(self.not_finite), "records": records}
        return json.dumps(found, indent=1) + "\n"

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Result:
        """What `as_json` wrote, once it is parsed.

        Raises:
            KeyError, TypeError, ValueError: If it is something else, or of another version.
        """
        values = {str(name): float(value) for name, value in found["values"].items()}
        records = tuple(Record.model_validate(record) for record in found["records"])
        return cls(values, records, {str(name): str(reason) for name, reason in found["not_finite"].items()})


def of_directions(results: Mapping[str, Result]) -> Result:
    """The results of all directions of a translation as one: for each metric its mean, under the metric's own name.

    Args:
        results: By the direction's name, such as `a_to_b`; a metric that is missing in one of them has no mean.
    """
    values = [_of_direction(result.values, direction) for direction, result in results.items()]
    left = {
        f"{metric}/{direction}": reason
        for direction, result in results.items()
        for metric, reason in result.not_finite.items()
    }
    without_mean = {name.partition("/")[0]: reason for name, reason in left.items()}
    records = tuple(record for result in results.values() for record in result.records)
    return Result(_with_means(values, without_mean), records, without_mean | left)


def _of_direction(values: Mapping[str, float], direction: str) -> dict[str, float]:
    """`swd` and `swd/16` become `swd/a_to_b` and `swd/a_to_b/16`."""
    named: dict[str, float] = {}
    for name, value in values.items():
        metric, _, detail = name.partition("/")
        named[f"{metric}/{direction}/{detail}" if detail else f"{metric}/{direction}"] = value
    return named


def _with_means(directions: Sequence[Mapping[str, float]], without: Container[str]) -> dict[str, float]:
    """All values, and for each metric, but some, the mean of its values over the directions."""
    every = {name: value for values in directions for name, value in values.items()}
    whole = [name for name in every if name.count("/") == 1]
    metrics = [name for name in dict.fromkeys(name.partition("/")[0] for name in whole) if name not in without]
    means = {
        metric: sum(every[name] for name in whole if name.startswith(f"{metric}/")) / len(directions)
        for metric in metrics
    }
    return means | every


def in_figures(value: float) -> str:
    """A number for people: two decimals, and where that would leave too little of it, four digits."""
    return f"{value:.2f}" if abs(value) >= 1 or not value else f"{value:.4g}"
