"""One name in all runs for what was measured afterwards in one way, whichever came first in a run's store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hires_gan.tracking.comparison.runs import Run
from hires_gan.tracking.names import AFTERWARDS, metric_of, series_of, taken_otherwise
from hires_gan.tracking.protocols import fingerprint


def under_one_name(runs: Sequence[Run]) -> list[Run]:
    """Let `evaluate/fid` be what most runs have measured in one way, if at least two have, and nothing else.

    A run's first measurement has the plain name in its store, and those that were taken otherwise are
    `evaluate/fid:3f2a91bc`. Here the commonest way has the plain one in all runs, and every other way its own: what
    stands under one name was measured alike. Where no two runs have measured alike, names stay as they are.

    Args:
        runs: As they were read.
    """
    ways = [_ways(run) for run in runs]
    for metric in sorted({metric_of(series) for found in ways for series in found}):
        common = _most_common(metric, ways)
        if common:
            runs = [_renamed(run, _new_names(metric, common, found)) for run, found in zip(runs, ways, strict=True)]
    return list(runs)


def _ways(run: Run) -> dict[str, str]:
    """The protocol of each series that was measured afterwards, by its fingerprint; empty where nothing says it."""
    series = dict.fromkeys(series_of(key) for key in run.curves if key.startswith(AFTERWARDS))
    histories = {name: run.protocols.get(name, ()) for name in series}
    return {name: fingerprint(found[-1].protocol) if len(found) == 1 else "" for name, found in histories.items()}


def _most_common(metric: str, ways: Sequence[Mapping[str, str]]) -> str:
    """The way that most runs have, of several that to which most of them gave the plain name, then the first one.

    Empty where no two runs have the same.
    """
    plain = Counter(own.get(AFTERWARDS + metric, "") for own in ways)
    counted: Counter[str] = Counter()
    for own in ways:
        counted.update(list(dict.fromkeys(way for name, way in own.items() if way and metric_of(name) == metric)))
    common = max(counted, key=lambda way: (counted[way], plain[way]), default="")
    return common if counted[common] > 1 else ""


def _new_names(metric: str, common: str, ways: Mapping[str, str]) -> dict[str, str]:
    """New names of a run's series, by their old ones; none where the plain one has what most have."""
    plain = AFTERWARDS + metric
    own = next((series for series, way in ways.items() if way == common and metric_of(series) == metric), None)
    other = taken_otherwise(plain, ways.get(plain, ""))
    if own == plain or other in ways:  # a name that is taken is left to what has it
        return {}
    return ({own: plain} if own else {}) | ({plain: other} if plain in ways else {})


def _renamed(run: Run, names: Mapping[str, str]) -> Run:
    if not names:
        return run
    curves = {_new(key, names): curve for key, curve in run.curves.items()}
    return replace(
        run,
        curves=curves,
        protocols={names.get(series, series): history for series, history in run.protocols.items()},
    )


def _new(key: str, names: Mapping[str, str]) -> str:
    """Of `evaluate/fid:3f2a91bc/a_to_b`, too."""
    series = series_of(key)
    return names.get(series, series) + key.removeprefix(series)
