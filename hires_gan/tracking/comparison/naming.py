"""One name in all runs for what was measured afterwards in one way, whichever came first in a run's store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hires_gan.tracking.comparison.runs import Run
from hires_gan.tracking.names import AFTERWARDS, metric_of, series_of, taken_otherwise
from hires_gan.tracking.protocols import fingerprint


def under_one_name(runs: Sequence[Run]) -> list[Run]:
    """Let `evaluate/fid` be what most runs have of it, where some of them have that as `evaluate/fid:3f2a91bc`.

    A run's first measurement has the plain name in its store, and those that were taken otherwise have another. In the
    runs where that one is another than in most, the two change their names.

    Args:
        runs: As they were read.
    """
    ways = [_ways(run) for run in runs]
    for metric in sorted({metric_of(series) for found in ways for series in found}):
        common = _most_common(metric, ways)
        runs = [_renamed(run, _swap(metric, common, found)) for run, found in zip(runs, ways, strict=True)]
    return list(runs)


def _ways(run: Run) -> dict[str, str]:
    """The protocol of each series that was measured afterwards, by its fingerprint; empty where nothing says it."""
    series = dict.fromkeys(series_of(key) for key in run.curves if key.startswith(AFTERWARDS))
    histories = {name: run.protocols.get(name, ()) for name in series}
    return {name: fingerprint(found[-1].protocol) if len(found) == 1 else "" for name, found in histories.items()}


def _most_common(metric: str, ways: Sequence[Mapping[str, str]]) -> str:
    """Of several that are in as many runs, that which comes first."""
    counted = Counter(
        way for found in ways for series, way in found.items() if metric_of(series) == metric and way
    ).most_common(1)
    return counted[0][0] if counted else ""


def _swap(metric: str, common: str, ways: Mapping[str, str]) -> dict[str, str]:
    """New names of a run's series, by their old ones; none where the plain one has what most have."""
    plain = AFTERWARDS + metric
    own = next((series for series, way in ways.items() if way == common and metric_of(series) == metric), plain)
    if own == plain or not common:
        return {}
    return {own: plain} | ({plain: taken_otherwise(plain, ways[plain])} if plain in ways else {})


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
