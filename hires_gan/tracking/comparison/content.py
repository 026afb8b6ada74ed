"""All that is compared, read and computed once: the page, the picture and the terminal show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hires_gan.tracking.comparison.curves import Plot, plots_of, single_points
from hires_gan.tracking.comparison.differences import Difference, machines_that_differ, settings_that_differ
from hires_gan.tracking.comparison.grids import GridRow, read_grids
from hires_gan.tracking.comparison.locate import Finder
from hires_gan.tracking.comparison.measured import Measurement, measurements_of, notes_on_measuring, some
from hires_gan.tracking.comparison.naming import under_one_name
from hires_gan.tracking.comparison.runs import Run, read_runs
from hires_gan.tracking.comparison.summary import Summary, summarise
from hires_gan.tracking.comparison.table import Column, columns_of, notes_on


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        summaries: Of each run.
        columns: The summary as text.
        measurements: How each metric was measured.
        settings: The settings that differ.
        machines: What differs in code and machines.
        plots: The curves.
        single: The metrics that have one point in each run, and no plot.
        grids: The sample grids.
    """

    summaries: Sequence[Summary]
    columns: Sequence[Column]
    measurements: Sequence[Measurement]
    settings: Sequence[Difference]
    machines: Sequence[Difference]
    plots: Sequence[Plot]
    single: Sequence[str]
    grids: Sequence[GridRow]

    @property
    def runs(self) -> list[Run]:
        """The runs, in the order in which they were named."""
        return [summary.run for summary in self.summaries]


def read_comparison(
    arguments: Sequence[str], uri: str | None, experiment: str | None, higher: Collection[str]
) -> Comparison:
    """Read runs and lay them side by side.

    Args:
        arguments: Runs' folders, MLflow run ids, or runs' names.
        uri: The store of ids and names; None takes MLFLOW_TRACKING_URI, else the store of `./runs`.
        experiment: The experiment in which names are looked up; None takes all.
        higher: The metrics of which more is better.

    Raises:
        UsageError: Nothing goes by one of the names.
        Failure: A store cannot be read, or a run is deleted.
    """
    runs = under_one_name(read_runs(Finder(uri, experiment).find_all(arguments)))
    summaries = summarise(runs, higher)
    return Comparison(
        summaries,
        columns_of(summaries, higher),
        measurements_of(summaries),
        settings_that_differ(runs),
        machines_that_differ(runs),
        plots_of(runs),
        single_points(runs),
        read_grids(runs),
    )


def measuring_notes(comparison: Comparison) -> list[str]:
    """Of which metrics no best is marked, and why."""
    return notes_on_measuring(comparison.measurements, [run.name for run in comparison.runs])


def notes(comparison: Comparison) -> list[str]:
    """What is to be known beside the numbers, each note once, with the runs that it is about."""
    about: dict[str, list[str]] = defaultdict(list)
    for summary in comparison.summaries:
        for note in notes_on(summary):
            about[note].append(summary.run.name)
    for row in comparison.grids:
        for run, grid in zip(comparison.runs, row.grids, strict=True):
            if grid.picture is None:
                about[grid.note].append(run.name)
    own = [f"{some(list(dict.fromkeys(names)))}: {note}" for note, names in about.items()]
    return [*measuring_notes(comparison), *own]
