"""The summary as cells of text: for the page, the picture and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hires_gan.tracking.comparison.histories import DRAWN_POINTS, SERVER_POINTS
from hires_gan.tracking.comparison.measured import Measurement, in_words, measurements_of
from hires_gan.tracking.comparison.runs import MOST_CURVES, Run
from hires_gan.tracking.comparison.summary import Point, Summary, best_of, common_nimg, metric_names
from hires_gan.tracking.names import series_of

ABSENT = "-"
_PLAIN_GROUPS = ("", "speed", "cost")
"""Of which the head says enough by itself."""


@dataclass(frozen=True)
class Column:
    """A column of the summary.

    Attributes:
        group: What stands above several columns: a metric's name; empty where it stands for itself.
        head: Its own head.
        cells: Of each run.
        best: The places of the runs whose value is the best of all; none where only one run has one, or where they
            were not measured alike.
    """

    group: str
    head: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


def columns_of(summaries: Sequence[Summary], higher: Collection[str]) -> list[Column]:
    """The columns behind the run's name.

    Args:
        summaries: Of the runs.
        higher: The metrics of which more is better.
    """
    measured = {one.metric: one for one in measurements_of(summaries)}
    return [
        _plain("", "status", summaries, lambda one: one.run.status),
        _plain("", "kimg", summaries, lambda one: f"{one.run.nimg / 1000:g}" if one.run.nimg else ABSENT),
        *(
            column
            for name in metric_names(summaries)
            for column in _of_metric(name, summaries, higher, measured[series_of(name)])
        ),
        _plain("speed", "images/s", summaries, lambda one: number(one.images_per_second)),
        _plain("speed", "s/kimg", summaries, lambda one: number(one.seconds_per_kimg)),
        _plain("speed", "data wait", summaries, lambda one: _share(one.data_wait)),
        _plain("cost", "hours", summaries, lambda one: number(one.cost.hours)),
        _plain("cost", "GPU hours", summaries, _gpu_hours),
    ]


def short_columns(columns: Sequence[Column], metrics: int) -> list[Column]:
    """Those for a narrow place: of the first few metrics the last and the best, and not all of speed and cost."""
    groups = list(dict.fromkeys(column.group for column in columns if column.group not in _PLAIN_GROUPS))
    left_out = ("s/kimg", "data wait", "hours")
    return [
        column
        for column in columns
        if column.head not in left_out and (column.group not in groups[metrics:]) and not column.head.startswith("at ")
    ]


def number(value: float | None) -> str:
    """Four digits, `nan`, or a dash."""
    return ABSENT if value is None else f"{value:.4g}"


def head_of(column: Column) -> str:
    """The head of a column where there is one line for it."""
    return column.head if column.group in _PLAIN_GROUPS else f"{column.group} {column.head}"


def lines_of(names: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """The summary as lines of equal columns: a head, then a line for each run."""
    heads = ["run", *map(head_of, columns)]
    rows = [heads, *([name, *(column.cells[place] for column in columns)] for place, name in enumerate(names))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_justified(row, widths)).rstrip() for row in rows]


def notes_on(summary: Summary) -> list[str]:
    """What is to be known of a run beside its numbers."""
    run, notes = summary.run, []
    if not run.curves:
        notes.append("no metrics were logged")
    if summary.cost.assumed:
        notes.append("does not say on how many GPUs it trained: its GPU hours count one")
    if run.undrawn:
        notes.append(f"{run.undrawn} more metrics than the {MOST_CURVES} that are read: look at them in MLflow")
    notes += _on_changes(summary)
    if any(curve.sampled for curve in run.curves.values()):
        notes.append(
            f"curves are longer than what is read of a server: {DRAWN_POINTS} points at even distances, "
            f"{SERVER_POINTS:,} of evaluations and of what the cost is computed of"
        )
    bad = [key for key in run.drawn if not np.isfinite(run.curves[key].values).all()]
    if bad:
        notes.append(f"not always a finite number, and not drawn there: {', '.join(bad)}")
    return notes


def _on_changes(summary: Summary) -> Iterator[str]:
    for series in dict.fromkeys(map(series_of, summary.metrics)):
        own = (metric for name, metric in summary.metrics.items() if series_of(name) == series)
        found = next((metric for metric in own if metric.others), None)
        if found is not None:
            known = [one for one in (*found.others, found.protocol) if one is not None]
            words = in_words(known) or "of some values nothing says how"
            yield f"{series} was not always measured alike ({words}): its best is of those measured as the last one"


def common_place(runs: Sequence[Run]) -> int | None:
    """The nimg at which all are compared; None where all ended there anyway."""
    ends = {run.nimg for run in runs if run.nimg}
    return common_nimg(runs) if len(ends) > 1 else None


def _plain(group: str, head: str, summaries: Sequence[Summary], cell: Callable[[Summary], str]) -> Column:
    return Column(group, head, tuple(map(cell, summaries)))


def _of_metric(name: str, summaries: Sequence[Summary], higher: Collection[str], measured: Measurement) -> list[Column]:
    found = [one.metrics.get(name) for one in summaries]
    record = best_of(summaries, name, higher) if measured.alike else None
    winners = frozenset(
        place
        for place, metric in enumerate(found)
        if metric is not None and metric.best is not None and metric.best.value == record
    )
    place = common_place([one.run for one in summaries])
    last = (
        _at(None if one is None else one.last, summary.run.nimg) for one, summary in zip(found, summaries, strict=True)
    )
    columns = [
        Column(name, "last", tuple(last)),
        Column(name, "best (at kimg)", tuple(_at(None if one is None else one.best) for one in found), winners),
    ]
    if place is not None:
        cells = tuple(_at(None if one is None else one.common, place) for one in found)
        columns.append(Column(name, f"at {place / 1000:g} kimg", cells))
    return columns


def _at(point: Point | None, expected: int | None = None) -> str:
    """A value, with its kimg wherever that is not what a reader takes it for."""
    if point is None:
        return ABSENT
    where = "" if point.nimg == expected else f" ({point.nimg / 1000:g})"
    return f"{number(point.value)}{where}"


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def _gpu_hours(summary: Summary) -> str:
    if summary.cost.gpu_hours == 0:
        return "0 (CPU)"
    return number(summary.cost.gpu_hours) + ("?" if summary.cost.assumed else "")


def _justified(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
