"""Whether the numbers of several runs were measured alike: only then one of them is the best."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hires_gan.tracking.comparison.differences import Difference
from hires_gan.tracking.comparison.summary import Summary, metric_names
from hires_gan.tracking.names import series_of
from hires_gan.tracking.protocols import Protocol

_COUNTS = ("reals", "fakes")
_CHECKSUM = "features.checksum"
_DIGITS, _CHECKSUM_DIGITS = 12, 8
_MOST_KEYS, _MOST_VALUES = 2, 3
_NOT_SAID, _NOT_MEASURED = "not said", "not measured"


@dataclass(frozen=True)
class Measurement:
    """How several runs measured a metric, each as it did the last time.

    Attributes:
        metric: Its name in the table, without a direction.
        protocols: By the run's place, of those that have a number of it; None where a run does not say.
    """

    metric: str
    protocols: Mapping[int, Protocol | None]

    @property
    def known(self) -> list[Protocol]:
        """Of the runs that say it."""
        return [protocol for protocol in self.protocols.values() if protocol is not None]

    @property
    def silent(self) -> list[int]:
        """The places of the runs that do not say it."""
        return [place for place, protocol in self.protocols.items() if protocol is None]

    @property
    def alike(self) -> bool:
        """Whether the values of the runs may be set against each other."""
        return not self.silent and not differing(self.known)


def measurements_of(summaries: Sequence[Summary]) -> list[Measurement]:
    """How each metric that any run has was measured, in the order of the table."""
    names = metric_names(summaries)
    return [Measurement(one, _protocols(summaries, one, names)) for one in dict.fromkeys(map(series_of, names))]


def _protocols(summaries: Sequence[Summary], series: str, names: Sequence[str]) -> dict[int, Protocol | None]:
    of_it = [name for name in names if series_of(name) == series]
    found = {
        place: [summary.metrics[name] for name in of_it if name in summary.metrics]
        for place, summary in enumerate(summaries)
    }
    numbers = {place: [one for one in metrics if one.best is not None] for place, metrics in found.items()}
    return {place: metrics[0].protocol for place, metrics in numbers.items() if metrics}


def differing(protocols: Sequence[Protocol]) -> list[str]:
    """The keys in which they are not all equal."""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    return [key for key in keys if len({protocol.get(key) for protocol in protocols}) > 1]


def in_words(protocols: Sequence[Protocol]) -> str:
    """What differs: `fakes 2,048 and 50,000`; empty if nothing does."""
    keys = differing(protocols)
    parts = [f"{key} {_values(key, protocols)}" for key in keys[:_MOST_KEYS]]
    more = [f"{len(keys) - _MOST_KEYS} more"] if len(keys) > _MOST_KEYS else []
    return ", ".join([*parts, *more])


def _values(key: str, protocols: Sequence[Protocol]) -> str:
    found = list(dict.fromkeys(_value(key, protocol.get(key)) or "none" for protocol in protocols))
    more = [f"{len(found) - _MOST_VALUES} more"] if len(found) > _MOST_VALUES else []
    return " and ".join([*found[:_MOST_VALUES], *more])


def _value(key: str, value: str | None) -> str | None:
    """For people: counts in groups of digits, digests by their beginning; of a translation that of each direction."""
    return None if value is None else " | ".join(_piece(key, piece) for piece in value.split(" | "))


def _piece(key: str, piece: str) -> str:
    if key in _COUNTS and piece.isdecimal():
        return f"{int(piece):,}"
    if re.fullmatch("[0-9a-f]{64}", piece):
        return piece[: _CHECKSUM_DIGITS if key == _CHECKSUM else _DIGITS]
    return piece


def notes_on_measuring(measurements: Sequence[Measurement], runs: Sequence[str]) -> list[str]:
    """Of which metrics no best one is marked, and why.

    Args:
        measurements: Of the metrics.
        runs: The runs' names.
    """
    several = [one for one in measurements if len(one.protocols) > 1 and not one.alike]
    about: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in several:
        if one.silent:
            who = some([runs[place] for place in one.silent])
            about[f"{who} {'does' if len(one.silent) == 1 else 'do'} not say how ", " measured"].append(one.metric)
        if different := in_words(one.known):
            about["", f" not measured alike ({different})"].append(one.metric)
    return [
        f"{before}{', '.join(metrics)} {'was' if len(metrics) == 1 else 'were'}{behind}: no best is marked"
        for (before, behind), metrics in about.items()
    ]


def sentence(measurement: Measurement, runs: Sequence[str]) -> str:
    """What all runs that say it agree in."""
    known = measurement.known
    equal = {key: value for key, value in known[0].items() if key not in differing(known)} if known else {}
    parts = [*_agreed({key: _value(key, value) or "" for key, value in equal.items()})]
    if measurement.silent:
        parts.append(f"{some([runs[place] for place in measurement.silent])}: {_NOT_SAID}")
    return f"{measurement.metric}: {'; '.join(parts) or 'they agree in nothing'}"


def _agreed(equal: Mapping[str, str]) -> Iterable[str]:
    counts = [f"{equal[key]} {key}" for key in reversed(_COUNTS) if key in equal]
    if counts:
        yield " against ".join(counts)
    if "data.digest" in equal:
        yield f"data {equal['data.digest']}"
    if "resolution" in equal:
        yield f"at {equal['resolution']}x{equal['resolution']}"
    if equal.get("data.filter"):
        yield f"resized with {equal['data.filter']}"
    if "features.name" in equal:
        yield f"features of {equal['features.name']} {equal.get(_CHECKSUM, '')}".rstrip()


def measured_differently(measurements: Sequence[Measurement], count: int) -> list[Difference]:
    """A row for each key in which a metric's protocols differ, such as `fid: fakes`.

    Args:
        measurements: Of the metrics.
        count: How many runs there are.
    """
    return [
        Difference(f"{one.metric}: {key}", tuple(_cell(one, key, place) for place in range(count)))
        for one in measurements
        for key in differing(one.known)
    ]


def _cell(one: Measurement, key: str, place: int) -> str | None:
    if place not in one.protocols:
        return _NOT_MEASURED
    protocol = one.protocols[place]
    return _NOT_SAID if protocol is None else _value(key, protocol.get(key))


def some(names: Sequence[str]) -> str:
    """Names in a row, and of many the first ones and how many more."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
