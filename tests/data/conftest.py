"""Fixtures of the tests that stream a set: the module's own `folder`, served, and where what is fetched is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shard_server import ShardServer, serving

from hires_gan.data import retries
from hires_gan.data.stream_settings import StreamSettings


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
