"""Checkpoints of every family, to be measured, and networks that stand for those that metrics need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import METRICS, stand_in, untrained
from tiny_networks import TINY, install, on_path


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, with the data, and a feature network that is installed."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "site").mkdir()
    install(folder / "site", "tiny_network", TINY)
    for family in METRICS:
        untrained(family, folder)
    return folder


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with networks that stand for the published ones, and an empty cache."""
    on_path(root / "site", "tiny_network", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    stand_in(monkeypatch)
    return root
