"""Numbers of `hires-gan evaluate` in the MLflow run of the checkpoint: at its nimg, and none twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hires_gan.checkpoint import Checkpoint
from hires_gan.errors import UsageError
from hires_gan.evaluation.alike import protocols_of
from hires_gan.evaluation.results import Result
from hires_gan.tracking.names import AFTERWARDS, taken_otherwise
from hires_gan.tracking.protocols import Protocol, fingerprint, read_history, record, tag_of
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import find_run, open_store, redact, resolve_uri, sqlite_path, store_lock, translated

_HIDDEN = "***"
"""What stands in an address in place of a password."""
_CHECKPOINTS = "checkpoints"


class TrackedRun:
    """The run that wrote a checkpoint, found before anything is measured: then there is a place for the numbers.

    Args:
        saved: The checkpoint.

    Raises:
        UsageError: If the checkpoint names no run, or the store has not got it.
        Failure: If the store cannot be used.
    """

    def __init__(self, saved: Checkpoint) -> None:
        self.run_id, self.nimg = str(saved.state.get("mlflow_run_id") or ""), saved.nimg
        if not self.run_id:
            raise UsageError(
                f"--track: {saved.folder} names no MLflow run; leave it out, and keep the numbers with --out"
            )
        self.uri = resolve_uri(TrackingSettings(uri=_configured(saved)), _run_dir(saved))
        path = sqlite_path(self.uri)
        if path is not None and not path.exists():  # opening it would make one
            raise _lacking(saved, self.uri, "is not there")
        self._client = open_store(self.uri)
        with translated(self.uri):
            run = find_run(self._client, self.run_id)
        if run is None or run.info.lifecycle_stage != "active":
            raise _lacking(saved, self.uri, "has not got it" if run is None else "has it as deleted")

    def log(self, result: Result, report: str) -> str:
        """Log numbers into the run.

        A number that was measured otherwise than those under its name has a name of its own, which ends in a part of
        the fingerprint of its protocol: a curve is of one protocol. A metric that came out as no finite number, of a
        translation in any direction, is left out as a whole.

        Args:
            result: The numbers.
            report: They, and how they were taken, as JSON; logged as an artifact.

        Returns:
            What was done, in a sentence.

        Raises:
            Failure: If the store cannot be used.
        """
        protocols = protocols_of(result.whole)
        with translated(self.uri), store_lock(self.uri):
            logged = self._client.get_run(self.run_id).data
            series = {metric: _series(logged, metric, protocol) for metric, protocol in protocols.items()}
            values = _named(result.values, series)
            fresh = {name: value for name, value in values.items() if not self._has(name)}
            taken = [(series[one], self.nimg, protocols[one]) for one in series if series[one] in fresh]
            record(self._client, self.run_id, taken)
            self._write(fresh, report)
        kept = f"{len(fresh)} values are in the MLflow run {self.run_id} in {redact(self.uri)}, at step {self.nimg}"
        return "; ".join([kept, *_remarks(result, series, fresh)])

    def _has(self, name: str) -> bool:
        return any(point.step == self.nimg for point in self._client.get_metric_history(self.run_id, name))

    def _write(self, values: Mapping[str, float], report: str) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        points = [Metric(name, value, now, self.nimg) for name, value in values.items()]
        for start in range(0, len(points), 1000):  # as many as a server takes at once
            self._client.log_batch(self.run_id, metrics=points[start : start + 1000])
        self._client.log_text(self.run_id, report, f"evaluations/{self.nimg:012d}_evaluate_{now}.json")


def _remarks(result: Result, series: Mapping[str, str], fresh: Mapping[str, float]) -> Iterator[str]:
    """What else is to be said."""
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


def _configured(saved: Checkpoint) -> str | None:
    """The store that the run was told to use; with MLFLOW_TRACKING_URI where its password is not known.

    Raises:
        UsageError: If that is not set.
    """
    uri: str | None = saved.state["configuration"].get("tracking", {}).get("uri")
    if uri is None or _HIDDEN not in uri:
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


def _lacking(saved: Checkpoint, uri: str, found: str) -> UsageError:
    """What to do about a store that has not got the run."""
    configured = saved.state["configuration"].get("tracking", {}).get("uri")
    remedy = "leave --track out, and keep the numbers with --out"
    if configured is None or _HIDDEN in configured:
        remedy = "name the store that has it with MLFLOW_TRACKING_URI, or leave --track out"
    return UsageError(
        f"--track: the checkpoint is of the MLflow run {saved.state['mlflow_run_id']}, and the store {redact(uri)} "
        f"{found}; {remedy}"
    )
