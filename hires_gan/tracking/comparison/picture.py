"""The comparison as one PNG, for a report: a small table, the main curves, the grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from hires_gan.tracking.comparison.content import Comparison, measuring_notes
from hires_gan.tracking.comparison.curves import Plot, draw, png_of, style
from hires_gan.tracking.comparison.grids import GridRow
from hires_gan.tracking.comparison.runs import IMAGES_PER_SECOND
from hires_gan.tracking.comparison.table import head_of, short_columns
from hires_gan.tracking.names import JUDGES

_INCHES, _DPI = 13.0, 100
_ACROSS = 3
_PLOT_HEIGHT, _LINE_HEIGHT = 2.5, 0.27
_MOST_GRIDS = 6
_WIDEST_GRID = 4.5
_MOST_SETTINGS, _MOST_COLUMNS = 5, 4
"""So many settings that differ are named, where there are no more runs than that."""
_MOST_PLOTS = 6
_MOST_JUDGES = 2
_LONGEST_NAME, _LONGEST_LINE = 40, 150


def picture(comparison: Comparison) -> bytes:
    """The PNG: 1,300 pixels wide, as high as what there is."""
    plots, row = main_plots(comparison.plots), _main_row(comparison.grids)
    lines = [*(_short(note, _LONGEST_LINE) for note in measuring_notes(comparison)), *main_settings(comparison)]
    heights = [_LINE_HEIGHT * (2 + len(comparison.runs)) + 0.2]
    heights += [_LINE_HEIGHT * (len(lines) + 0.5)] if lines else []
    heights += [_PLOT_HEIGHT * -(-len(plots) // _ACROSS)] if plots else []
    heights += [_grid_height(row)] if row else []
    figure = Figure(figsize=(_INCHES, sum(heights)), dpi=_DPI, layout="constrained")
    parts = iter(np.ravel(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights))))
    _draw_table(next(parts), comparison)
    if lines:
        _draw_lines(next(parts), lines)
    if plots:
        _draw_plots(next(parts), plots)
    if row:
        _draw_grids(next(parts), comparison, row)
    return png_of(figure)


def main_plots(plots: Sequence[Plot]) -> list[Plot]:
    """Those for which there is room: what judges, what is minimised, and the speed."""
    judges = [plot for plot in plots if plot.key.startswith(JUDGES)][:_MOST_JUDGES]
    speed = [plot for plot in plots if plot.key == IMAGES_PER_SECOND]
    rest = [plot for plot in plots if not plot.key.startswith((*JUDGES, "speed/"))]
    return [*judges, *rest[: _MOST_PLOTS - len(judges) - len(speed)], *speed]


def main_settings(comparison: Comparison) -> list[str]:
    """A line for each of the first few settings that differ: those that all runs have before the others."""
    if len(comparison.runs) > _MOST_COLUMNS:
        return []
    ordered = sorted(comparison.settings, key=lambda setting: None in setting.values)
    lines = [
        _short(f"{one.key}: {' | '.join('not set' if value is None else value for value in one.values)}", _LONGEST_LINE)
        for one in ordered[:_MOST_SETTINGS]
    ]
    more = len(ordered) - len(lines)
    return [*lines, f"and {more} more"] if more else lines


def _main_row(rows: Sequence[GridRow]) -> GridRow | None:
    return next((row for row in rows if any(grid.picture is not None for grid in row.grids)), None)


def _grid_height(row: GridRow) -> float:
    shown = row.grids[:_MOST_GRIDS]
    width = min(_INCHES / len(shown), _WIDEST_GRID)
    ratios = [grid.picture.height / grid.picture.width for grid in shown if grid.picture is not None]
    return min(width * max(ratios, default=1), 1.5 * width) + 0.5


def _draw_table(part: SubFigure, comparison: Comparison) -> None:
    axes = part.subplots()
    axes.axis("off")
    columns = short_columns(comparison.columns, 2)
    heads = ["run", *map(head_of, columns)]
    rows = [
        [_short(run.name), *(column.cells[place] for column in columns)] for place, run in enumerate(comparison.runs)
    ]
    table = axes.table([heads, *rows], cellLoc="right", loc="center", edges="horizontal", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    table.auto_set_column_width(list(range(len(heads))))
    for (line, column), cell in table.get_celld().items():
        text = cell.get_text()
        text.set_parse_math(False)
        cell.set_edgecolor("#cccccc")
        best = line > 0 and column > 0 and line - 1 in columns[column - 1].best
        text.set_fontweight("bold" if line == 0 or best else "normal")
        if column == 0:
            text.set_horizontalalignment("left")
            if line:
                text.set_text(f"        {text.get_text()}")
    _draw_swatches(axes, len(rows))


def _draw_swatches(axes: Axes, count: int) -> None:
    for place in range(count):
        colour, dashes = style(place)
        y = 1 - (place + 1.5) / (count + 1)
        line = Line2D([0.004, 0.026], [y, y], color=colour, linewidth=2, transform=axes.transAxes)
        if dashes:
            line.set_dashes(dashes)
        axes.add_line(line)


def _draw_lines(part: SubFigure, lines: Sequence[str]) -> None:
    for place, line in enumerate(lines):
        y = 1 - (place + 0.8) / (len(lines) + 0.5)
        part.text(0.005, y, line, fontsize=10, va="center", parse_math=False)


def _draw_plots(part: SubFigure, plots: Sequence[Plot]) -> None:
    lines = -(-len(plots) // _ACROSS)
    axes = np.ravel(part.subplots(lines, _ACROSS, squeeze=False))
    for one, plot in zip(axes, plots, strict=False):
        draw(one, plot)
    for unused in axes[len(plots) :]:
        unused.axis("off")


def _draw_grids(part: SubFigure, comparison: Comparison, row: GridRow) -> None:
    shown = row.grids[:_MOST_GRIDS]
    left_out = len(row.grids) - len(shown)
    if left_out:
        part.suptitle(f"grids of the first {len(shown)} runs; the page has the other {left_out}", fontsize=9)
    places = part.subplots(1, max(2, len(shown)), squeeze=False)[0]
    for place, (axes, grid) in enumerate(zip(places, shown, strict=False)):
        colour, _ = style(place)
        where = "" if grid.nimg is None else f", {grid.nimg / 1000:g} kimg"
        title = f"{_short(comparison.runs[place].name)}{where}"
        axes.set_title(title, fontsize=10, color=colour, parse_math=False)
        if grid.picture is None:
            axes.text(0.5, 0.5, grid.note, ha="center", va="center", wrap=True, fontsize=8, parse_math=False)
        else:
            axes.imshow(np.asarray(grid.picture), interpolation="antialiased")
    for axes in part.axes:
        axes.axis("off")


def _short(text: str, longest: int = _LONGEST_NAME) -> str:
    text = " ".join(text.split())  # one line
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
