"""Fixtures that several files of tests share: of sets that are streamed, of domains, of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from domain_sets import DECODERS, make_kinds
from shard_server import ShardServer, serving

from hires_gan.data import retries
from hires_gan.data.stream_settings import StreamSettings


@pytest.fixture(scope="module")
def fresh_server() -> None:
    """Another test may have started a server that has not imported torch: every worker would do so by itself."""
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The data of each kind of domains; see `make_kinds`."""
    return make_kinds(tmp_path_factory.mktemp("sets"))


@pytest.fixture(params=DECODERS)
def decoder(request) -> dict[str, Any]:
    if request.param == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    return DECODERS[request.param]


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[ShardServer]:
    """A web server with the set in the module's fixture `folder`."""
    with serving(folder, tmp_path / "server") as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def settings(cache: Path) -> Callable[..., StreamSettings]:
    """Makes the block `data.stream`, with an own cache."""

    def make(**changes: object) -> StreamSettings:
        return StreamSettings(**{"cache": cache, "patience": 20, **changes})

    return make


@pytest.fixture
def everything_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test said asks for silence, which would swallow what this one looks for."""
    monkeypatch.setattr(retries, "_VOICE", retries._Voice())
