"""The plots: one for each metric, all runs in it, over kimg."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hires_gan.tracking.comparison.measured import in_words
from hires_gan.tracking.comparison.runs import Run, importance
from hires_gan.tracking.comparison.summary import protocols_at
from hires_gan.tracking.comparison.thinning import Thinned, thin, vertical_limits
from hires_gan.tracking.names import AFTERWARDS, series_of

COLOURS = (
    "#0b62c4",
    "#d1495b",
    "#1b7f4b",
    "#8e44ad",
    "#c96a00",
    "#007c89",
    "#a0306f",
    "#5d6d1e",
    "#5c4033",
    "#444b54",
)
"""Each of them legible on white."""
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
"""In widths of the line: drawn and left out in turn; from the eleventh run on, colours come again, dashed."""
COLUMNS = 200
_FEW_POINTS = 30
"""Fewer than that are marked each."""
_MOST_BANDS = 4
"""Of so many runs the extremes are shown behind the mean; of more they would hide each other."""
_WIDTH, _HEIGHT, _DPI = 4.4, 2.7, 160


@dataclass(frozen=True)
class Plot:
    """A metric and where it goes.

    Attributes:
        key: The metric.
        curves: Of the runs that have it, by their place among all runs.
        last: The nimg at the right border.
        missing: Of the runs that lack it, the place.
        unlike: Where its points were not all measured alike, what differs: `fakes 16 and 32`; else empty.
    """

    key: str
    curves: dict[int, Thinned]
    last: int
    missing: tuple[int, ...]
    unlike: str = ""


def style(place: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of a run, the same everywhere."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def single_points(runs: Sequence[Run]) -> list[str]:
    """The metrics, measured afterwards, that no run has at two places: there is nothing to draw."""
    longest: dict[str, int] = {}
    for run in runs:
        longest |= {key: max(len(run.curves[key].steps), longest.get(key, 0)) for key in run.drawn}
    return sorted(key for key, points in longest.items() if key.startswith(AFTERWARDS) and points < 2)


def plots_of(runs: Sequence[Run]) -> list[Plot]:
    """A plot for each metric that any run has, in the order in which they matter."""
    last = max((int(curve.steps[-1]) for run in runs for key in run.drawn for curve in [run.curves[key]]), default=0)
    left_out = single_points(runs)
    keys = sorted({key for run in runs for key in run.drawn if key not in left_out}, key=importance)
    plots = []
    for key in keys:
        found = {place: thin(run.curves[key], last, COLUMNS) for place, run in enumerate(runs) if key in run.curves}
        curves = {place: curve for place, curve in found.items() if len(curve.kimg)}
        if curves:
            missing = tuple(place for place in range(len(runs)) if place not in curves)
            plots.append(Plot(key, curves, last, missing, _unlike(runs, key)))
    return plots


def _unlike(runs: Sequence[Run], key: str) -> str:
    series = series_of(key)
    ways = [
        way
        for run in runs
        if key in run.curves and series in run.protocols
        for way in protocols_at(run.protocols[series], run.curves[key].steps)
    ]
    return in_words([way for way in ways if way is not None])


def draw(axes: Axes, plot: Plot) -> None:
    """Draw a plot into its axes."""
    marker = "o" if max(len(curve.kimg) for curve in plot.curves.values()) < _FEW_POINTS else None
    for place, curve in plot.curves.items():
        colour, dashes = style(place)
        if len(plot.curves) <= _MOST_BANDS:
            axes.fill_between(curve.kimg, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        line = axes.plot(curve.kimg, curve.mean, color=colour, linewidth=1.3, marker=marker, markersize=2.5)[0]
        if dashes:
            line.set_dashes(dashes)
    low, high, cut = vertical_limits(list(plot.curves.values()))
    axes.set(xlim=(0, 1.01 * max(plot.last, 1) / 1000), ylim=(low, high), xlabel="kimg")
    remarks = [text for text, holds in (("not measured alike", plot.unlike), ("peaks cut off", cut)) if holds]
    title = f"{plot.key} ({', '.join(remarks)})" if remarks else plot.key
    axes.set_title(title, fontsize=9, parse_math=False)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=7, length=2)
    axes.xaxis.label.set_fontsize(7)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def picture_of(plot: Plot) -> bytes:
    """A plot by itself as PNG."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    draw(figure.subplots(), plot)
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, without date."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in other scripts than the font knows
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
