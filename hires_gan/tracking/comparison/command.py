"""`hires-gan compare`: read, show, and write one HTML file and one PNG."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from hires_gan.data.writer import write_atomically
from hires_gan.errors import Failure, UsageError
from hires_gan.tracking.comparison.content import Comparison, notes, read_comparison
from hires_gan.tracking.comparison.page import page
from hires_gan.tracking.comparison.picture import picture
from hires_gan.tracking.comparison.table import lines_of, short_columns

PAGE, PICTURE = "comparison.html", "comparison.png"


def compare(
    arguments: Sequence[str], out: Path, uri: str | None, experiment: str | None, higher: Collection[str]
) -> Iterator[str]:
    """Lay runs side by side, and write `comparison.html` and `comparison.png`, each whole or not at all.

    Args:
        arguments: Runs' folders, MLflow run ids, or runs' names.
        out: The folder of the two files; made if it is missing. Earlier ones are replaced.
        uri: The store of ids and names; None takes MLFLOW_TRACKING_URI, else the store of `./runs`.
        experiment: The experiment in which names are looked up; None takes all.
        higher: The metrics of which more is better.

    Yields:
        Lines to print: the summary and notes before anything is written, and each of the two files when it is there.

    Raises:
        UsageError: Nothing goes by one of the names, or `out` is no folder that can be written.
        Failure: A store cannot be read, a run is deleted, or the files cannot be written.
    """
    _make_folder(out)
    comparison = read_comparison(arguments, uri, experiment, higher)
    yield from _lines(comparison)
    yield _written(out / PAGE, page(comparison).encode())
    yield _written(out / PICTURE, picture(comparison))


def _make_folder(out: Path) -> None:
    """Find out before the stores are read, which may take minutes, whether there is a place for the files.

    Raises:
        UsageError: There is none.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out is {out}, which is a file; give a folder, or a name that is free")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # a folder may be there, and on a disk that is mounted read-only
            pass
    except OSError as problem:
        raise UsageError(
            f"--out is {out}, where nothing can be written ({problem.strerror or problem}); make room, or give another "
            "folder"
        ) from problem


def _written(file: Path, content: bytes) -> str:
    try:
        write_atomically(file, content)
    except OSError as problem:
        raise Failure(
            f"cannot write {file} ({problem.strerror or problem}); make room, or give another folder as --out"
        ) from problem
    return str(file)


def _lines(comparison: Comparison) -> list[str]:
    names = [run.name for run in comparison.runs]
    differ = len(comparison.settings)
    settings = [f"{differ} {'setting differs' if differ == 1 else 'settings differ'}"] if len(names) > 1 else []
    lines = [*lines_of(names, short_columns(comparison.columns, 2)), *settings, *notes(comparison)]
    return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    """Without characters that would steer a terminal: names may hold any."""
    return "".join(one if one.isprintable() else " " for one in line)
