"""A server, and small runs that speak to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_runs import ServedRuns, make_shards

from hires_gan.bench.tracking_servers import LocalServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A real server over SQLite; whoever kills it starts it again."""
    with LocalServer(tmp_path_factory.mktemp("server")) as running:
        yield running


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
