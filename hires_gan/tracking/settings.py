"""The `tracking` block of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hires_gan.settings import Settings


class TrackingSettings(Settings):
    """Where runs are recorded, under which name, and how often."""

    uri: str | None = None
    """The MLflow store: http(s)://host:port, sqlite:///path/mlflow.db or a database URI; null takes
    MLFLOW_TRACKING_URI, and without it one SQLite store per run.dir."""
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = "hires-gan"
    """The MLflow experiment that the run belongs to."""
    every_kimg: Annotated[float, Field(gt=0)] = 1.0
    """Every how many kimg the metrics are logged, at the first step boundary at or after each multiple."""
