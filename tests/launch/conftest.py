"""Small runs that are launched: the shards and the configuration of the tests of training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from launching import end_all
from training.conftest import settings, shards, write_config

__all__ = ["settings", "shards", "write_config"]


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """Behind a test nothing runs any more that it started."""
    yield
    end_all()
