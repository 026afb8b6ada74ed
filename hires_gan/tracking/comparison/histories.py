"""The points of many metrics of many runs, in as few requests as their store allows."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from sqlalchemy import create_engine, select

from hires_gan.errors import Failure
from hires_gan.tracking.store import redact, translated

SERVER_POINTS = 2500
"""How many points of a curve a server sends at the most; of a longer one, those at even distances."""
DRAWN_POINTS = 500
"""How many it is asked for where they are drawn alone."""
_RUNS_PER_REQUEST = 100
_AT_ONCE = 4
_SECONDS = 120
_INFINITE = 1e308
"""MLflow keeps infinity as the largest number there is."""
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_REMEDY = "start the server, and run the same command again"
_BULK = "/api/2.0/mlflow/metrics/get-history-bulk-interval"

Wanted = Mapping[str, Sequence[str]]
"""By metric, the ids of the runs that have it."""


@dataclass(frozen=True)
class Curve:
    """A metric of a run.

    Attributes:
        steps: int64 `[n]`, ascending, each once: images shown to the discriminator.
        values: float64 `[n]`; NaN where it was not a finite number.
        sampled: Whether the store had more points than these.
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    sampled: bool = False


class _Points:
    """Points of one metric of one run, as they come."""

    def __init__(self) -> None:
        self.times, self.steps, self.values = array("q"), array("q"), array("d")

    def add(self, time: int, step: int, value: float) -> None:
        self.times.append(time)
        self.steps.append(step)
        self.values.append(value)

    def curve(self, limit: int | None = None) -> Curve:
        """In the order of their steps; of several at one step the one that was logged last."""
        steps, values = np.array(self.steps, np.int64), np.array(self.values, np.float64)
        order = np.lexsort((np.array(self.times, np.int64), steps))
        steps, values = steps[order], values[order]
        last = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
        values = np.where(np.abs(values) < _INFINITE, values, np.nan)
        return Curve(steps[last], values[last], limit is not None and len(steps) >= limit)


def read_histories(client: Any, uri: str, wanted: Wanted, drawn: Collection[str] = ()) -> dict[tuple[str, str], Curve]:
    """Read metrics of runs of one store.

    A database is asked once for all of them. A server is asked once for each metric: it sends up to 2,500 points of a
    curve (500 where they are drawn alone), and of a longer one those at even distances, with the first and the last.
    Other stores are asked for each metric of each run.

    Args:
        client: The store's MlflowClient.
        uri: The store.
        wanted: Which metrics of which runs.
        drawn: The metrics of which nothing is computed but medians.

    Returns:
        The curves, by run id and metric.

    Raises:
        Failure: The store does not answer.
    """
    scheme = urlsplit(uri).scheme.split("+")[0]
    with translated(uri, _REMEDY):
        if scheme in _DATABASES:
            return _from_database(uri, wanted)
        if scheme in ("http", "https"):
            return _in_threads(
                lambda key: _from_server(
                    client, uri, key, wanted[key], DRAWN_POINTS if key in drawn else SERVER_POINTS
                ),
                wanted,
            )
        return _in_threads(lambda key: _one_by_one(client, key, wanted[key]), wanted)


def _in_threads(
    read: Callable[[str], dict[tuple[str, str], Curve]], keys: Iterable[str]
) -> dict[tuple[str, str], Curve]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return {name: curve for part in threads.map(read, keys) for name, curve in part.items()}


def _from_database(uri: str, wanted: Wanted) -> dict[tuple[str, str], Curve]:
    """The columns of MLflow's own table: an object for each point would take ten times as long."""
    from mlflow.store.tracking.dbmodels.models import SqlMetric

    run_ids = {run_id for ids in wanted.values() for run_id in ids}
    columns = (SqlMetric.run_uuid, SqlMetric.key, SqlMetric.timestamp, SqlMetric.step, SqlMetric.value)
    query = select(*columns, SqlMetric.is_nan).where(SqlMetric.run_uuid.in_(run_ids), SqlMetric.key.in_(wanted))
    points: dict[tuple[str, str], _Points] = defaultdict(_Points)
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            for run_id, key, time, step, value, is_nan in connection.execution_options(yield_per=10_000).execute(query):
                points[run_id, key].add(time, step, np.nan if is_nan else value)
    finally:
        engine.dispose()
    return {name: found.curve() for name, found in points.items()}


def _from_server(client: Any, uri: str, key: str, run_ids: Sequence[str], limit: int) -> dict[tuple[str, str], Curve]:
    """One metric, as MLflow's own pages ask for it; of a server that does not know the request, one by one.

    Raises:
        Failure: The server refuses.
    """
    points: dict[tuple[str, str], _Points] = defaultdict(_Points)
    for first in range(0, len(run_ids), _RUNS_PER_REQUEST):
        answer = _ask(uri, key, run_ids[first : first + _RUNS_PER_REQUEST], limit)
        if answer.status_code == 404:
            return _one_by_one(client, key, run_ids)
        if answer.status_code != 200:
            raise Failure(
                f"MLflow at {redact(uri)} does not give the points of {key} (status {answer.status_code}): look at its "
                "log, and run the same command again"
            )
        for point in answer.json().get("metrics", []):
            name = (point["run_id"], point["key"])
            points[name].add(int(point["timestamp"]), int(point.get("step", 0)), float(point.get("value", np.nan)))
    return {name: found.curve(limit) for name, found in points.items()}


def _ask(uri: str, key: str, run_ids: Sequence[str], limit: int) -> Any:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    query = [*(("run_ids", run_id) for run_id in run_ids), ("metric_key", key), ("max_results", limit)]
    credentials = get_default_host_creds(uri)
    return http_request(credentials, _BULK, "GET", params=query, timeout=_SECONDS, max_retries=2, raise_on_status=False)


def _one_by_one(client: Any, key: str, run_ids: Sequence[str]) -> dict[tuple[str, str], Curve]:
    curves = {}
    for run_id in run_ids:
        points = _Points()
        for metric in client.get_metric_history(run_id, key):
            points.add(metric.timestamp, metric.step, metric.value)
        curves[run_id, key] = points.curve()
    return curves
