"""A server, and small runs that speak to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_runs import ServedRuns, make_shards

from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.tracking import store


@pytest.fixture(scope="module", autouse=True)
def unhurried_probe() -> Iterator[None]:
    """A server on a machine with much else to do may take its time for a sign of life."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PROBE_SECONDS", 60)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A real server over SQLite; whoever kills it starts it again, and `revived` does for a test that failed before."""
    with LocalServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def revived(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test finds a server that another one has left dead."""
    running: LocalServer | None = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if running is not None:
        running.start()


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 16x16."""
    return make_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def served(server: LocalServer, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedRuns:
    """Two runs of seconds, trained as a user would, whose generators the server has registered as `tiny`."""
    runs = ServedRuns(tmp_path_factory.mktemp("served"), tiny_shards, server.uri)
    for name, rate in (("slow-rate", 0.001), ("fast-rate", 0.01)):
        runs.train(name, f"recipe.generator_optimizer.learning_rate={rate}")
    return runs
