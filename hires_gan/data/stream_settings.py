"""The block `data.stream`: how shards come from an object store, a web server or a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hires_gan.settings import Settings

GB = 10**9
"""Bytes."""


class StreamSettings(Settings):
    """What holds where `data.shards` is a URL or a pipe; a folder and `demo:NAME` take no notice of it."""

    cache: Path | None = None
    """A folder on a local disk that keeps fetched shards; null: `hires_gan/shards` in the user's cache folder."""

    cache_gb: Annotated[float, Field(gt=0)] = 50.0
    """The most that the cache may hold, in GB (10^9 bytes); what was not read for longest goes first."""

    lanes: Literal["auto"] | Annotated[int, Field(ge=1, le=65536)] = "auto"
    """Into how many lanes an epoch is cut, as many shards being read at the same time; auto: the smallest multiple of
    the batch that is at least 32. Part of the order: it stays as it is for a whole run."""

    downloads: Annotated[int, Field(ge=1, le=64)] = 8
    """How many shards are fetched at once, per training process."""

    patience: Annotated[float, Field(ge=0)] = 600.0
    """Seconds for which what may pass (a store that is away, or overloaded) is tried again before the run gives up."""

    allow_pipe: bool = False
    """Whether `data.shards` may be a `pipe:`, which runs a shell command that the configuration names."""
