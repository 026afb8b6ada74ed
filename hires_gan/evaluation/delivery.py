"""Where measured numbers go: to a file, to the checkpoint's MLflow run, and if these fail, to a file nearby."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from hires_gan.checkpoint import Checkpoint, directory_name
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.command import Report
from hires_gan.evaluation.results import Result
from hires_gan.evaluation.tracked import TrackedRun
from hires_gan.inference.files import write_whole
from hires_gan.progress import say


def deliver(report: Report, out: Path | None, run: TrackedRun | None, source: Path | None = None) -> list[str]:
    """Keep numbers in every place that was asked for; one that fails does not stop the other.

    Where none of them could take the numbers, which may have cost hours, they go to a file in the current folder.

    Args:
        report: What was measured.
        out: The file; None for none.
        run: The MLflow run; None for none.
        source: The file that already holds them; None for none.

    Returns:
        What failed, as clauses; the last one says where the numbers are.
    """
    failures: list[str] = []
    kept: Path | str | None = source
    try:
        for place, keep in _places(report, out, run):
            try:
                say(keep())
                kept = kept or place
            except Failure as problem:
                failures.append(str(problem))
    except BaseException:  # whoever does not wait for a server, too
        say(_whereabouts(report, kept, run))
        raise
    return [*failures, _whereabouts(report, kept, run)] if failures else []


def read_report(source: Path, saved: Checkpoint) -> Report:
    """What `--out` wrote, to be logged; what was missing was said when it was measured.

    Args:
        source: The file.
        saved: The checkpoint that was measured.

    Raises:
        UsageError: If it cannot be read, or is of another checkpoint.
    """
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        result, origin = Result.from_json(found), f"{found['checkpoint']}, at nimg {found['nimg']}"
    except OSError as error:
        raise UsageError(f"--from is {source}, which cannot be read ({error.strerror}); name another file") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(
            f"--from is {source}, which is no file of numbers that this version can read; name one that --out wrote"
        ) from error
    if not result.values:
        raise UsageError(f"--from is {source}, which holds no numbers; name another file")
    if not _is_of(result, saved):
        raise UsageError(
            f"--from is {source}, whose numbers are of {origin}, and not of {saved.folder}; name that checkpoint"
        )
    return Report(saved, result, {})


def _is_of(result: Result, saved: Checkpoint) -> bool:
    """Whether all numbers are of a checkpoint: they know the sha256 of the weights."""
    own = saved.nimg, saved.state["files"].get("generator.average.safetensors")
    return all((record.checkpoint.nimg, record.checkpoint.sha256) == own for record in result.records)


def _places(report: Report, out: Path | None, run: TrackedRun | None) -> Iterator[tuple[Path | str, Callable[[], str]]]:
    """Each place that was asked for, and what keeps the numbers there and says so."""
    if out is not None:
        yield out, lambda: _written(report, out)
    if run is not None and report.result.values:
        yield f"the MLflow run {run.run_id}", lambda: run.log(report.result, report.as_json())


def _written(report: Report, path: Path) -> str:
    write_whole(path, lambda partial: partial.write_text(report.as_json(), encoding="utf-8"))
    return f"written to {path}"


def _whereabouts(report: Report, kept: Path | str | None, run: TrackedRun | None) -> str:
    """Where the numbers are; if nowhere yet, they are written to the current folder."""
    if kept is None:
        kept = _free_name(report.saved)
        try:
            _written(report, kept)
        except Failure as problem:
            return f"nor are they kept here: {problem}; they stand above alone"
    later = "" if run is None or isinstance(kept, str) else ", from where `--track --from` logs them"
    return f"all numbers are in {kept}{later}"


def _free_name(saved: Checkpoint) -> Path:
    """A file in the current folder, named like no other there, by the run: its name, or its number in MLflow."""
    configured = saved.state["configuration"].get("run", {}).get("name")
    name = configured or saved.state.get("mlflow_run_id") or saved.folder.name
    # The checkpoint may be somebody else's: no name in it leads to another folder.
    stem = f"evaluate-{Path(str(name)).name}-{directory_name(saved.nimg)}"
    path, number = Path(f"{stem}.json"), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}.json"), number + 1
    return path.absolute()
