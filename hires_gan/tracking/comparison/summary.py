"""A run in numbers: its metrics where it ended, at their best and where all runs have been, its speed and its cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hires_gan.tracking.comparison.histories import Curve
from hires_gan.tracking.comparison.runs import DATA_WAIT, GPUS, IMAGES_PER_SECOND, SECONDS_PER_KIMG, Run
from hires_gan.tracking.names import JUDGES, metric_of, series_of, shown
from hires_gan.tracking.protocols import History, Protocol, in_force


@dataclass(frozen=True)
class Point:
    """A value, and at how many images shown."""

    value: float
    nimg: int


@dataclass(frozen=True)
class Metric:
    """An evaluation metric of a run.

    Attributes:
        last: The last value; NaN where that came out as no finite number.
        best: The best one that was measured as the last finite one, the first of several; that of the untrained network
            only where there is no other; None where no value is finite.
        common: The last finite one that was measured as that, at or before the place that all runs have reached; None
            if there is none.
        protocol: How the last finite one was measured; None where nothing says it.
        others: The other ways in which there are values; None among them where nothing says it.
    """

    last: Point
    best: Point | None
    common: Point | None
    protocol: Protocol | None = None
    others: tuple[Protocol | None, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What training steps took; grids, evaluations and work that was lost in a kill and done again are left out.

    Attributes:
        hours: Of training; None if the run says nothing of its speed.
        gpu_hours: The same times the GPUs that trained: 0 on a CPU.
        assumed: Whether the run does not say on how many GPUs it trained, and one is assumed.
    """

    hours: float | None
    gpu_hours: float | None
    assumed: bool = False


@dataclass(frozen=True)
class Summary:
    """What the table shows of a run.

    Attributes:
        run: The run.
        metrics: By name, without `evaluation/`; with `evaluate/` those that were measured afterwards.
        images_per_second: The median of what was logged, or None.
        seconds_per_kimg: The mean of the whole run, or None.
        data_wait: The median share of the time that was spent waiting for data, 0 to 1, or None.
        cost: What it took.
    """

    run: Run
    metrics: Mapping[str, Metric]
    images_per_second: float | None
    seconds_per_kimg: float | None
    data_wait: float | None
    cost: Cost


def summarise(runs: Sequence[Run], higher: Collection[str]) -> list[Summary]:
    """The numbers of each run.

    Args:
        runs: The runs.
        higher: The metrics of which more is better, by name, without `evaluation/`.
    """
    common = common_nimg(runs)
    return [_summary(run, common, higher) for run in runs]


def common_nimg(runs: Sequence[Run]) -> int:
    """How far all runs have come that have come anywhere: images shown; 0 without any."""
    return min((run.nimg for run in runs if run.nimg), default=0)


def metric_names(summaries: Sequence[Summary]) -> list[str]:
    """The metrics that any run has: its own first, and before those of a direction."""
    names = {name for summary in summaries for name in summary.metrics}
    return sorted(names, key=lambda name: (name.startswith(JUDGES), name.count("/"), name))


def is_higher_better(name: str, higher: Collection[str]) -> bool:
    """Whether more is better, for `kid`, `kid/a_to_b` and `evaluate/kid:3f2a91bc` alike."""
    return metric_of(name) in higher


def best_of(summaries: Sequence[Summary], name: str, higher: Collection[str]) -> float | None:
    """The best value that any run has reached; None where fewer than two have the metric."""
    found = [summary.metrics[name].best for summary in summaries if name in summary.metrics]
    values = [best.value for best in found if best is not None]
    if len(values) < 2:
        return None
    return max(values) if is_higher_better(name, higher) else min(values)


def _summary(run: Run, common: int, higher: Collection[str]) -> Summary:
    metrics = {}
    for key, curve in run.curves.items():
        if key.startswith(JUDGES):
            history = run.protocols.get(series_of(key), ())
            found = _metric(curve, history, common, is_higher_better(key, higher))
            if found is not None:
                metrics[shown(key)] = found
    seconds = training_seconds(run)
    return Summary(
        run,
        metrics,
        _median(run.curves.get(IMAGES_PER_SECOND)),
        None if seconds is None else seconds / (_reach(run.curves[SECONDS_PER_KIMG]) / 1000),
        _median(run.curves.get(DATA_WAIT)),
        cost(run),
    )


def _metric(curve: Curve, history: History, common: int, higher: bool) -> Metric | None:
    if not len(curve.values):
        return None
    last = Point(float(curve.values[-1]), int(curve.steps[-1]))
    known = np.isfinite(curve.values)
    steps, values = curve.steps[known], curve.values[known]
    if not len(values):
        return Metric(last, None, None)
    protocol = in_force(history, int(steps[-1]))
    alike = measured_as(protocol, history, steps)
    others = tuple(one for one in protocols_at(history, steps) if one != protocol)
    steps, values = steps[alike], values[alike]
    first = int(len(steps) > 1 and steps[0] == 0)  # the untrained network is no result
    best = first + int(np.argmax(values[first:]) if higher else np.argmin(values[first:]))
    before = int(np.searchsorted(steps, common, side="right")) - 1
    points = [Point(float(value), int(step)) for value, step in zip(values, steps, strict=True)]
    return Metric(last, points[best], points[before] if before >= 0 and common else None, protocol, others)


def measured_as(protocol: Protocol | None, history: History, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the points were measured in one way: bool `[n]`; with None, those of which nothing says how."""
    same = [place for place, one in enumerate((None, *(entry.protocol for entry in history))) if one == protocol]
    return np.isin(_entries(history, steps), same)


def protocols_at(history: History, steps: npt.NDArray[np.int64]) -> list[Protocol | None]:
    """In which ways there are points, oldest first; None where nothing says it."""
    ways = (None, *(entry.protocol for entry in history))
    found: list[Protocol | None] = []
    for place in np.unique(_entries(history, steps)):
        if ways[place] not in found:
            found.append(ways[place])
    return found


def _entries(history: History, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each point the number of its entry, from 1; 0 before the first one."""
    return np.searchsorted([entry.nimg for entry in history], steps, side="right").astype(np.int64)


def cost(run: Run) -> Cost:
    """Training's hours, and how many of them a GPU was held."""
    seconds = training_seconds(run)
    if seconds is None:
        return Cost(None, None)
    if GPUS in run.curves:
        gpu_seconds = _total(run.curves[SECONDS_PER_KIMG], _gpus_at(run.curves[GPUS], run.curves[SECONDS_PER_KIMG]))
        return Cost(seconds / 3600, gpu_seconds / 3600)
    if run.tags.get("gpu.count") == "0":
        return Cost(seconds / 3600, 0.0)
    processes = run.tags.get("processes", "")  # each has a GPU of its own
    known = processes.isdecimal() and "gpu.count" in run.tags
    return Cost(seconds / 3600, seconds / 3600 * (int(processes) if known else 1), assumed=not known)


def training_seconds(run: Run) -> float | None:
    """Seconds of all training steps; None if the run says nothing of its speed."""
    curve = run.curves.get(SECONDS_PER_KIMG)
    if curve is None or not np.isfinite(curve.values).any() or not _reach(curve):
        return None
    return _total(curve, np.ones(len(curve.steps)))


def _total(curve: Curve, weights: npt.NDArray[np.float64]) -> float:
    """Seconds, weighted: each point speaks for the images since the one before, and NaN for the run's median."""
    speeds = np.where(np.isfinite(curve.values), curve.values, np.nanmedian(curve.values))
    kimg = np.diff(curve.steps, prepend=0) / 1000
    return float((speeds * kimg * weights).sum())


def _gpus_at(gpus: Curve, curve: Curve) -> npt.NDArray[np.float64]:
    """How many GPUs trained in the stretch before each point of another curve."""
    place = np.searchsorted(gpus.steps, curve.steps, side="left").clip(0, len(gpus.steps) - 1)
    counts: npt.NDArray[np.float64] = np.take(gpus.values, place)
    counts[~np.isfinite(counts)] = 1.0
    return counts


def _reach(curve: Curve) -> int:
    return int(curve.steps[-1]) if len(curve.steps) else 0


def _median(curve: Curve | None) -> float | None:
    if curve is None or not np.isfinite(curve.values).any():
        return None
    return float(np.nanmedian(curve.values))
