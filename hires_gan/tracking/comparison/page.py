"""The comparison as one HTML file: no script, no request, readable from a disk in any browser."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from hires_gan import __version__
from hires_gan.tracking.comparison.content import Comparison, notes
from hires_gan.tracking.comparison.curves import Plot, picture_of, style
from hires_gan.tracking.comparison.differences import Difference
from hires_gan.tracking.comparison.grids import Grid, GridRow, width_for
from hires_gan.tracking.comparison.markup import Markup, data_uri, element, joined
from hires_gan.tracking.comparison.measured import measured_differently, sentence
from hires_gan.tracking.comparison.runs import Run
from hires_gan.tracking.comparison.table import Column, number

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing but what the file itself holds, whatever a run's name may say."""
_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 1500px;
  padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, ul { max-width: 75ch; margin: .4rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding: .2rem 0; color: #444; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d8d8d8; text-align: right; white-space: nowrap; }
th { font-weight: 600; } thead th { background: #f3f4f6; } thead th[scope=colgroup] { text-align: center; }
thead th:first-child, tbody th { text-align: left; } tbody th { position: sticky; left: 0; background: #fff; }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 22rem; }
.settings thead th { text-align: left; }
.best { font-weight: 700; background: #e7f3ea; }
.absent { color: #6b6b6b; font-style: italic; }
.name { overflow-wrap: anywhere; white-space: normal; }
.swatch { vertical-align: middle; margin-right: .45rem; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; max-width: none; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #444; overflow-wrap: anywhere; }
.curve { width: 430px; max-width: 100%; } .curve img { width: 100%; }
.grid img { width: 100%; border: 1px solid #d8d8d8; }
footer { margin-top: 2.5rem; color: #555; font-size: .85rem; }
"""
_SECTIONS = {
    "evaluation": "Evaluation",
    "evaluate": "Measured afterwards",
    "loss": "Losses",
    "speed": "Speed",
    "statistics": "Statistics",
}


def page(comparison: Comparison) -> str:
    """The whole file."""
    runs = comparison.runs
    title = f"{len(runs)} runs side by side" if len(runs) > 1 else f"The run {runs[0].name}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(_CSS)),
    )
    body = element(
        "body",
        element("h1", title),
        element(
            "main",
            _summary(comparison),
            _curves(comparison),
            _grids(comparison),
            *_measured(comparison),
            *_settings(comparison),
            _places(comparison),
        ),
        element("footer", f"Made by hires_gan {__version__}: hires-gan compare."),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _swatch(place: int) -> Markup:
    colour, dashes = style(place)
    line = element(
        "line",
        x1="0",
        y1="5",
        x2="26",
        y2="5",
        stroke=colour,
        stroke_width="3",
        stroke_dasharray=" ".join(f"{3 * dash:g}" for dash in dashes) or "none",
    )
    return element("svg", line, width="26", height="10", class_="swatch", aria_hidden="true")


def _named(runs: Sequence[Run], place: int) -> Markup:
    return joined(_swatch(place), element("span", runs[place].name, class_="name"))


def _summary(comparison: Comparison) -> Markup:
    columns = comparison.columns
    groups = [
        element("th", group, scope="colgroup", colspan=str(len(list(members))))
        for group, members in groupby(column.group for column in columns)
    ]
    heads = [element("th", "run", scope="col"), *(element("th", column.head, scope="col") for column in columns)]
    rows = [
        element("tr", element("th", _named(comparison.runs, place), scope="row"), *(_cell(c, place) for c in columns))
        for place in range(len(comparison.runs))
    ]
    table = element(
        "table",
        element("caption", _about(comparison)),
        element("thead", element("tr", element("td"), *groups), element("tr", *heads)),
        element("tbody", *rows),
    )
    return _section("Summary", _scrolling("summary", table), *_notes(comparison))


def _cell(column: Column, place: int) -> Markup:
    if place in column.best:
        return element("td", column.cells[place], class_="best")
    return element("td", column.cells[place])


def _about(comparison: Comparison) -> str:
    found = [column.group for column in comparison.columns if column.best]
    best = f" The best one is marked of {', '.join(dict.fromkeys(found))}." if found else ""
    return (
        "Images/s and data wait are medians; s/kimg is the mean of the whole run. Hours are those of training steps: "
        "grids, evaluations and work that a kill undid are not in them. A value that is not of the place that the head "
        f"of its column names has its kimg behind it.{best}"
    )


def _notes(comparison: Comparison) -> list[Markup]:
    items = [element("li", f"{note}.") for note in notes(comparison)]
    return [element("ul", *items)] if items else []


def _places(comparison: Comparison) -> Markup:
    """Where each run is in MLflow."""
    heads = (element("th", head, scope="col") for head in ("run", "MLflow run", "experiment", "store"))
    rows = [
        element(
            "tr",
            element("th", _named(comparison.runs, place), scope="row"),
            *(element("td", text) for text in (run.run_id, run.experiment, run.place)),
        )
        for place, run in enumerate(comparison.runs)
    ]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="settings")
    return _section("Where they are", _scrolling("places", table))


def _curves(comparison: Comparison) -> Markup:
    if not comparison.plots:
        return _section("Curves", element("p", "No run has logged metrics that could be drawn."))
    names = (element("li", _named(comparison.runs, place)) for place in range(len(comparison.runs)))
    legend = element("ul", *names, class_="legend")
    parts = [
        joined(
            element("h3", _SECTIONS.get(prefix, prefix)),
            element("div", *(_curve(comparison.runs, plot) for plot in plots), class_="row"),
        )
        for prefix, plots in groupby(comparison.plots, lambda plot: _prefix(plot.key))
    ]
    about = "All over thousands of images shown. A line is the mean of what falls into one place of the plot" + (
        "; behind it lies the band from the smallest to the largest." if len(comparison.runs) <= 4 else "."
    )
    one_point = f"{', '.join(comparison.single)}: one point in a run, so no curve; it stands in the summary."
    single = [element("p", one_point)] if comparison.single else []
    return _section("Curves", element("p", about), legend, *parts, *single)


def _prefix(key: str) -> str:
    prefix, slash, _ = key.partition("/")
    return prefix if slash and prefix in _SECTIONS else "Other metrics"


def _curve(runs: Sequence[Run], plot: Plot) -> Markup:
    ends = ", ".join(
        f"{runs[place].name} {number(float(curve.mean[-1]))} at {number(float(curve.kimg[-1]))} kimg"
        for place, curve in plot.curves.items()
    )
    image = element(
        "img", src=data_uri(picture_of(plot), "image/png"), alt=f"{plot.key} over kimg. Last values: {ends}"
    )
    missing = ", ".join(runs[place].name for place in plot.missing)
    captions = [f"Not measured alike: {plot.unlike}."] if plot.unlike else []
    captions += [f"Not in {missing}."] if missing else []
    return element("figure", image, *(element("figcaption", one) for one in captions), class_="curve")


def _grids(comparison: Comparison) -> Markup:
    if not comparison.grids:
        return _section("Grids", element("p", "No run has logged sample grids."))
    return _section("Grids", *(_grid_row(comparison, row) for row in comparison.grids))


def _grid_row(comparison: Comparison, row: GridRow) -> Markup:
    where = "at different places, the nearest that each run has" if row.nimg is None else f"at {row.nimg / 1000:g} kimg"
    name = "Samples" if row.name == "grid" else row.name.replace("_", " ")
    figures = (_grid(comparison, place, grid) for place, grid in enumerate(row.grids))
    return joined(element("h3", f"{name}, {where}"), element("div", *figures, class_="row"))


def _grid(comparison: Comparison, place: int, grid: Grid) -> Markup:
    style_ = f"width: {width_for(len(comparison.runs))}px; max-width: 100%"
    caption = [_named(comparison.runs, place)]
    if grid.picture is None:
        return element(
            "figure", element("p", f"{grid.note}.", class_="absent"), element("figcaption", *caption), style=style_
        )
    where = f"{(grid.nimg or 0) / 1000:g} kimg"
    alt = f"Samples of {comparison.runs[place].name} at {where}"
    image = element("img", src=data_uri(_webp(grid.picture), "image/webp"), alt=alt)
    return element("figure", image, element("figcaption", *caption, f", {where}"), class_="grid", style=style_)


def _webp(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=90)
    return file.getvalue()


def _measured(comparison: Comparison) -> list[Markup]:
    """The section on how metrics were measured: what all agree in, and what not."""
    runs, measurements = comparison.runs, comparison.measurements
    if not measurements:
        return []
    names = [run.name for run in runs]
    lines = element("ul", *(element("li", f"{sentence(one, names)}.") for one in measurements))
    rows = measured_differently(measurements, len(runs))
    title = "How they were measured"
    table = [_scrolling(title, _table_of(runs, rows))] if rows else []
    return [_section(title, lines, *table)]


def _settings(comparison: Comparison) -> list[Markup]:
    """The sections on what differs."""
    if len(comparison.runs) < 2:
        return []
    runs, machines = comparison.runs, "commits, versions and machines"
    return [
        _differing(runs, "Settings that differ", "configurations", comparison.settings),
        _differing(runs, "Code and machines that differ", machines, comparison.machines),
    ]


def _differing(runs: Sequence[Run], title: str, what: str, differences: Sequence[Difference]) -> Markup:
    if not differences:
        return _section(title, element("p", f"None: the {what} are equal."))
    return _section(title, _scrolling(title, _table_of(runs, differences)))


def _table_of(runs: Sequence[Run], differences: Sequence[Difference]) -> Markup:
    """A row for each difference, a column for each run."""
    heads = (element("th", _named(runs, place), scope="col") for place in range(len(runs)))
    rows = (element("tr", element("th", row.key, scope="row"), *map(_value, row.values)) for row in differences)
    return element(
        "table",
        element("thead", element("tr", element("td"), *heads)),
        element("tbody", *rows),
        class_="settings",
    )


def _value(value: str | None) -> Markup:
    if value is None:
        return element("td", "not set", class_="absent")
    return element("td", value if value else '""')


def _scrolling(label: str, table: Markup) -> Markup:
    """A table that may be wider than the page; a keyboard can scroll it, too."""
    return element("div", table, class_="wide", role="region", aria_label=label, tabindex="0")


def _section(title: str, *content: Markup) -> Markup:
    return element("section", element("h2", title), *content)
