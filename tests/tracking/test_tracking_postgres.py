"""PostgreSQL as the store: behind a server, as teams have it, and by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import postgres_cluster
import pytest
from mlflow import MlflowClient
from postgres_cluster import Cluster
from test_tracking_server import start, steps, wait_for

from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.errors import Failure
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.flavour import fetch_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(postgres_cluster.missing()), reason=postgres_cluster.missing()),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("psycopg", reason="needs psycopg, the extra postgres")
    with Cluster() as running:
        yield running


@pytest.fixture(autouse=True)
def revived_database(cluster: Cluster) -> Iterator[None]:
    """No test finds a database that another one has left dead."""
    yield
    cluster.start()


@pytest.fixture(scope="module")
def behind(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server over the database, which makes its tables."""
    with LocalServer(tmp_path_factory.mktemp("behind"), f"{cluster.uri}/served") as running:
        yield running


def logged_and_read(uri: str, folder: Path) -> None:
    """A run with points, an image and a registered model; all of it comes back."""
    name = folder.name
    tracker, client = start(uri, folder), MlflowClient(uri, uri)
    for nimg in (1000, 2000):
        tracker.log_metrics(nimg, {"loss": nimg / 3000, "evaluation/swd": 0.1 + nimg, "bad": float("nan")})
    tracker.log_image("samples/grid", 2000, np.zeros((8, 8, 3), np.uint8))
    place = folder / "000000002000"
    place.mkdir()
    (place / "state.json").write_text("{}")
    for _ in range(2):
        tracker.log_model(place, ModelCard("x", 4, 1, 2000, name, False, True, "evaluation/swd", False, "all"))
    tracker.finish("FINISHED", 90)
    assert steps(client, tracker.run_id, "loss") == [(1000, 1000 / 3000), (2000, 2000 / 3000)]
    assert steps(client, tracker.run_id, "evaluation/swd") == [(1000, 1000.1), (2000, 2000.1)]
    assert str(steps(client, tracker.run_id, "bad")) == "[(1000, nan), (2000, nan)]"
    assert len(client.list_artifacts(tracker.run_id, "images")) == 2
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.tags["evaluation/swd"] == "2000.1"
    assert fetch_model(f"models:/{name}@best", uri).name == place.name


def test_a_server_over_postgresql_holds_what_a_run_holds(
    behind: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    logged_and_read(behind.uri, tmp_path)


def test_postgresql_by_itself_holds_what_a_run_holds(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # without a server, MLflow puts the artifacts of a database into the current folder
    logged_and_read(f"{cluster.uri}/direct", tmp_path)


@pytest.mark.parametrize("through", ["server", "database"])
def test_a_database_that_dies_and_comes_back_loses_no_point(
    through: str,
    behind: LocalServer,
    cluster: Cluster,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = behind.uri if through == "server" else f"{cluster.uri}/direct"
    tracker, client = start(uri, tmp_path), MlflowClient(uri, uri)
    tracker.log_metrics(1, {"loss": 1.0})
    wait_for(lambda: tracker.waiting == 0)
    cluster.kill()
    for nimg in range(2, 100):
        tracker.log_metrics(nimg, {"loss": float(nimg)})
    wait_for(lambda: tracker._sender._away)  # it has seen that the database is gone
    cluster.start()
    tracker.finish("FINISHED", 90)
    said = capfd.readouterr().err
    assert "does not answer" in said and "answers again" in said and "p%40ss" not in said
    assert steps(client, tracker.run_id, "loss") == [(nimg, float(nimg)) for nimg in range(1, 100)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_wrong_password_is_refused_without_being_told(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be used") as refusal:
        start(f"{cluster.uri}/direct".replace("p%40ss", "wr%40ng"), tmp_path)
    assert "wr%40ng" not in str(refusal.value) and "***@127.0.0.1" in str(refusal.value)
