"""Numbers of `hires-gan evaluate` in the MLflow run of the checkpoint: at its nimg, and none twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hires_gan.checkpoint import Checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.alike import protocols_of
from hires_gan.evaluation.results import Result
from hires_gan.progress import say
from hires_gan.tracking.names import AFTERWARDS, taken_otherwise
from hires_gan.tracking.patience import patiently
from hires_gan.tracking.protocols import Protocol, fingerprint, read_history, record, tag_of
from hires_gan.tracking.recorded import Recorded, read_recorded
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import (
    find_run,
    is_redacted,
    missing_file,
    open_store,
    reason,
    redact,
    resolve_uri,
    sqlite_path,
    store_lock,
    translated,
)

_CHECKPOINTS = "checkpoints"
_OTHERWISE = (
    "name the store that has it with MLFLOW_TRACKING_URI, or leave --track out, and keep the numbers with --out"
)
_REMEDY = f"start the server, {_OTHERWISE}"
_LATER = "start the server"
"""What helps once there are numbers."""


@dataclass(frozen=True)
class _Numbers:
    """What is logged.

    Attributes:
        series: By metric, the name under which it goes on.
        fresh: Values by their names in the store, which has none of them at this step.
        taken: How they were taken.
        time: When they are logged, in milliseconds: the same however often it is tried.
    """

    series: Mapping[str, str]
    fresh: Mapping[str, float]
    taken: Sequence[tuple[str, int, Protocol]]
    time: int


class TrackedRun:
    """The run that wrote a checkpoint, found before anything is measured: then there is a place for the numbers.

    A run's folder says which run that is, and in which store, as `hires-gan compare` reads it; a checkpoint by itself
    names its run, and its configuration the store. Where that has not got the run, MLFLOW_TRACKING_URI is looked at.

    Args:
        saved: The checkpoint.

    Raises:
        UsageError: If nothing names the run, or the store has not got it.
        Failure: If the store cannot be used.
    """

    def __init__(self, saved: Checkpoint) -> None:
        recorded = _recorded(saved)
        self.run_id, self.nimg = _run_id(saved, recorded), saved.nimg
        self.uri, self._client, run = self._found(_stores(saved, recorded))
        self._artifacts = str(run.info.artifact_uri)

    def _found(self, uris: Sequence[str]) -> tuple[str, Any, Any]:
        """The first store that has the run, its MlflowClient, and MLflow's run."""
        problems = []
        for uri in uris:
            try:
                found = self._opened(uri)
            except Failure as problem:
                problems.append(problem)
                continue
            if problems:
                say(
                    f"--track: the MLflow run {self.run_id} is not found at {redact(uris[0])} any more; it is at "
                    f"{redact(uri)}, by MLFLOW_TRACKING_URI"
                )
            return found
        raise problems[0]

    def _opened(self, uri: str) -> tuple[str, Any, Any]:
        if missing_file(uri) is not None:
            raise self._lacking(uri, "is not there")
        client = open_store(uri, _REMEDY)
        with translated(uri, _REMEDY):
            run = find_run(client, self.run_id)
        if run is None or run.info.lifecycle_stage != "active":
            raise self._lacking(uri, "has not got it" if run is None else "has it as deleted")
        return uri, client, run

    def _lacking(self, uri: str, found: str) -> UsageError:
        """What to do about a store that has not got the run."""
        return UsageError(
            f"--track: the checkpoint is of the MLflow run {self.run_id}, and the store {redact(uri)} {found}; "
            f"{_OTHERWISE}"
        )

    def log(self, result: Result, report: str) -> str:
        """Log numbers into the run; a store that is away or overloaded is tried for a minute.

        A number that was measured otherwise than those under its name has a name of its own, which ends in a part of
        the fingerprint of its protocol: a curve is of one protocol. A metric that came out as no finite number, of a
        translation in any direction, is left out as a whole.

        Args:
            result: The numbers.
            report: They, and how they were taken, as JSON; logged as an artifact.

        Returns:
            What was done, in a sentence.

        Raises:
            Failure: If the store cannot be used, or the report has no place where it keeps the run's artifacts.
        """
        place = redact(self.uri)
        with translated(self.uri, _LATER), store_lock(self.uri):
            numbers = patiently(lambda: self._to_log(result), place)
            patiently(lambda: self._write(numbers), place)
            patiently(lambda: self._keep(report, numbers.time), place)
        kept = f"{len(numbers.fresh)} values are in the MLflow run {self.run_id} in {place}, at step {self.nimg}"
        return "; ".join([kept, *_remarks(result, numbers), *self._remark_on_place()])

    def _to_log(self, result: Result) -> _Numbers:
        protocols = protocols_of(result.whole)
        logged = self._client.get_run(self.run_id).data
        series = {metric: _series(logged, metric, protocol) for metric, protocol in protocols.items()}
        values = _named(result.values, series)
        fresh = {name: value for name, value in values.items() if not self._has(name)}
        taken = [(series[one], self.nimg, protocols[one]) for one in series if series[one] in fresh]
        return _Numbers(series, fresh, taken, time.time_ns() // 1_000_000)

    def _has(self, name: str) -> bool:
        return any(point.step == self.nimg for point in self._client.get_metric_history(self.run_id, name))

    def _write(self, numbers: _Numbers) -> None:
        """Log the numbers that are not there yet: of an attempt that failed, some may have arrived."""
        from mlflow.entities import Metric

        record(self._client, self.run_id, numbers.taken)
        left = {name: value for name, value in numbers.fresh.items() if not self._has(name)}
        points = [Metric(name, value, numbers.time, self.nimg) for name, value in left.items()]
        for start in range(0, len(points), 1000):  # as many as a server takes at once
            self._client.log_batch(self.run_id, metrics=points[start : start + 1000])

    def _keep(self, report: str, now: int) -> None:
        """Log the report; a second time, it replaces itself.

        Raises:
            Failure: If the store keeps the run's artifacts in a folder that cannot be written.
        """
        try:
            self._client.log_text(self.run_id, report, f"evaluations/{self.nimg:012d}_evaluate_{now}.json")
        except OSError as problem:
            if (elsewhere := self._moved_from()) is None:
                raise
            raise Failure(
                f"the numbers are in the MLflow run {self.run_id}, but their report cannot be written to {elsewhere} "
                f"({reason(problem)}), where the store {redact(self.uri)} keeps the run's artifacts: a store that was "
                "moved keeps their old place"
            ) from problem

    def _moved_from(self) -> Path | None:
        """Where a SQLite store keeps the run's artifacts, if that is not beside it, as it is where we make it."""
        path, artifacts = sqlite_path(self.uri), urlsplit(self._artifacts)
        if path is None or artifacts.scheme not in ("", "file"):
            return None
        place = Path(unquote(artifacts.path) if artifacts.scheme else self._artifacts)
        return None if place.resolve().is_relative_to(path.parent.resolve()) else place

    def _remark_on_place(self) -> Iterator[str]:
        if (elsewhere := self._moved_from()) is not None:
            yield f"the report is in {elsewhere}: a store that was moved keeps the run's artifacts in their old place"


def _remarks(result: Result, numbers: _Numbers) -> Iterator[str]:
    """What else is to be said of them."""
    series, fresh = numbers.series, numbers.fresh
    known = ", ".join(sorted(metric for metric, name in series.items() if name not in fresh))
    if known:
        yield f"there already at this step, and left as before: {known}"
    lapsed = ", ".join(sorted(name for name in result.not_finite if "/" not in name))
    if lapsed:
        yield f"left out, since no finite number came out: {lapsed}"
    for metric, name in series.items():
        if name in fresh and name != AFTERWARDS + metric:
            yield f"what that run has as {AFTERWARDS}{metric} was measured otherwise, so this is {name}"


def _series(logged: Any, metric: str, protocol: Protocol) -> str:
    """Under which name a metric goes on that is taken in this way.

    Args:
        logged: MLflow's data of the run.
        metric: The metric.
        protocol: How it is taken.
    """
    name = AFTERWARDS + metric
    tag = logged.tags.get(tag_of(name))
    is_new = tag is None and name not in logged.metrics
    if is_new or [entry.protocol for entry in read_history(tag)] == [protocol]:
        return name
    return taken_otherwise(name, fingerprint(protocol))


def _named(values: Mapping[str, float], series: Mapping[str, str]) -> dict[str, float]:
    """Values by their names in the store: `swd/64` has that of `swd`, and its own end; without those of no series."""
    parts = {name: name.partition("/") for name in values}
    return {
        f"{series[metric]}{slash}{detail}": values[name]
        for name, (metric, slash, detail) in parts.items()
        if metric in series
    }


def _recorded(saved: Checkpoint) -> Recorded | None:
    """What the folder of the run says in which the checkpoint lies, if it lies in one."""
    folder = saved.folder.absolute()
    return read_recorded(folder.parents[1]) if folder.parent.name == _CHECKPOINTS else None


def _run_id(saved: Checkpoint, recorded: Recorded | None) -> str:
    """The run's: of the folder first, as training does it, since a store that lost a run has a new one in its place.

    Raises:
        UsageError: If neither names one.
    """
    run_id = recorded.run_id if recorded else str(saved.state.get("mlflow_run_id") or "")
    if not run_id:
        raise UsageError(f"--track: {saved.folder} names no MLflow run; leave it out, and keep the numbers with --out")
    return run_id


def _stores(saved: Checkpoint, recorded: Recorded | None) -> list[str]:
    """The addresses at which the run may be, the likeliest first.

    Raises:
        UsageError: If a password is not known.
    """
    run_dir, full = _run_dir(saved), recorded.full_uri() if recorded else None
    configured = recorded.uri if recorded else saved.state["configuration"].get("tracking", {}).get("uri")
    first = full or resolve_uri(TrackingSettings(uri=_with_password(saved, configured)), run_dir)
    others = [resolve_uri(TrackingSettings(), run_dir)] if os.environ.get("MLFLOW_TRACKING_URI") else []
    return list(dict.fromkeys([first, *others]))


def _with_password(saved: Checkpoint, uri: str | None) -> str | None:
    """An address; with MLFLOW_TRACKING_URI in its place where its password is not known.

    Raises:
        UsageError: If that is not set.
    """
    if uri is None or not is_redacted(uri):
        return uri
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        raise UsageError(
            f"--track: the run of {saved.folder} is in the MLflow store {uri}, whose password no checkpoint keeps; "
            "give the whole address in MLFLOW_TRACKING_URI, or leave --track out"
        )
    return given


def _run_dir(saved: Checkpoint) -> Path:
    """The folder of all runs: where the checkpoint lies, if it lies in a run, else as it was configured."""
    folder = saved.folder.absolute()
    if folder.parent.name == _CHECKPOINTS:
        return folder.parents[2]
    return Path(saved.state["configuration"]["run"]["dir"])
