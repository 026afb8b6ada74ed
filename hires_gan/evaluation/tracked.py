"""Numbers of `hires-gan evaluate` in the MLflow run of the checkpoint: at its nimg, and none twice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hires_gan.checkpoint import Checkpoint
from hires_gan.errors import UsageError
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import open_store, redact, resolve_uri, translated

PREFIX = "evaluate/"
"""Before the metrics' names: those of the run's own evaluations begin with `evaluation/`."""
_CHECKPOINTS = "checkpoints"


def track(saved: Checkpoint, values: Mapping[str, float], records: str) -> str:
    """Log numbers into the run that wrote a checkpoint.

    Args:
        saved: The checkpoint.
        values: By metric, with details.
        records: How they were taken, as JSON; logged as an artifact.

    Returns:
        What was done, in a sentence.

    Raises:
        UsageError: If the checkpoint names no run, or the store has not got it.
        Failure: If the store cannot be used.
    """
    run_id = saved.state.get("mlflow_run_id")
    if not run_id:
        raise UsageError(f"--track: {saved.folder} names no MLflow run; leave it out, and keep the numbers with --out")
    uri = resolve_uri(_settings(saved), _run_dir(saved))
    client = open_store(uri)
    with translated(uri):
        _require_run(client, run_id, uri)
        fresh = {name: value for name, value in values.items() if not _is_logged(client, run_id, name, saved.nimg)}
        _log(client, run_id, saved.nimg, fresh)
        client.log_text(run_id, records, f"evaluations/{saved.nimg:012d}_evaluate_{time.time_ns() // 1_000_000}.json")
    left = sorted(name for name in values.keys() - fresh.keys() if "/" not in name)
    again = f"; {', '.join(left)} were there already at this step, and were left as they are" if left else ""
    return f"{len(fresh)} values are in the MLflow run {run_id} in {redact(uri)}, at step {saved.nimg}{again}"


def _settings(saved: Checkpoint) -> TrackingSettings:
    uri = saved.state["configuration"].get("tracking", {}).get("uri")
    return TrackingSettings(uri=uri)


def _run_dir(saved: Checkpoint) -> Path:
    """The folder of all runs: where the checkpoint lies, if it lies in a run, else as it was configured."""
    folder = saved.folder.absolute()
    if folder.parent.name == _CHECKPOINTS:
        return folder.parents[2]
    return Path(saved.state["configuration"]["run"]["dir"])


def _require_run(client: Any, run_id: str, uri: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except MlflowException as problem:
        if problem.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        stage = None
    if stage != "active":
        found = "has not got it" if stage is None else "has it as deleted"
        raise UsageError(
            f"--track: the checkpoint is of the MLflow run {run_id}, and the store {redact(uri)} {found}; name the "
            "store that has it with MLFLOW_TRACKING_URI, or leave --track out"
        )


def _is_logged(client: Any, run_id: str, name: str, nimg: int) -> bool:
    return any(point.step == nimg for point in client.get_metric_history(run_id, PREFIX + name))


def _log(client: Any, run_id: str, nimg: int, values: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    points = [Metric(PREFIX + name, value, now, nimg) for name, value in values.items()]
    for start in range(0, len(points), 1000):  # as many as a server takes at once
        client.log_batch(run_id, metrics=points[start : start + 1000])
