"""`hires-gan compare`: read, show, and write one HTML file and one PNG."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hires_gan.data.writer import write_atomically
from hires_gan.errors import UsageError
from hires_gan.tracking.comparison.content import Comparison, notes, read_comparison
from hires_gan.tracking.comparison.page import page
from hires_gan.tracking.comparison.picture import picture
from hires_gan.tracking.comparison.table import lines_of, short_columns

PAGE, PICTURE = "comparison.html", "comparison.png"


def compare(
    arguments: Sequence[str], out: Path, uri: str | None, experiment: str | None, higher: Collection[str]
) -> list[str]:
    """Lay runs side by side, and write `comparison.html` and `comparison.png`, each whole or not at all.

    Args:
        arguments: Runs' folders, MLflow run ids, or runs' names.
        out: The folder of the two files; made if it is missing. Earlier ones are replaced.
        uri: The store of ids and names; None takes MLFLOW_TRACKING_URI, else the store of `./runs`.
        experiment: The experiment in which names are looked up; None takes all.
        higher: The metrics of which more is better.

    Returns:
        Lines to print: the summary, notes, and the two files last.

    Raises:
        UsageError: Nothing goes by one of the names, or `out` is a file.
        Failure: A store cannot be read, a run is deleted, or the files cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out is {out}, which is a file; give a folder, or a name that is free")
    comparison = read_comparison(arguments, uri, experiment, higher)
    files = {PAGE: page(comparison).encode(), PICTURE: picture(comparison)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content)
    return [*_lines(comparison), *(str(out / name) for name in files)]


def _lines(comparison: Comparison) -> list[str]:
    names = [run.name for run in comparison.runs]
    differ = len(comparison.settings)
    settings = [f"{differ} {'setting differs' if differ == 1 else 'settings differ'}"] if len(names) > 1 else []
    lines = [*lines_of(names, short_columns(comparison.columns, 2)), *settings, *notes(comparison)]
    return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    """Without characters that would steer a terminal: names may hold any."""
    return "".join(one if one.isprintable() else " " for one in line)
