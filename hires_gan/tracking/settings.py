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
    register_as: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=200)] | None = None
    """The name in MLflow's registry under which the generator is registered when the run is finished, and the best one,
    if that is another; null: none is."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port on which the first process serves metrics to Prometheus, at /metrics; null: nothing listens."""
    metrics_address: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - only with a port
    """Where it listens, once there is a port: 0.0.0.0 for all IPv4 addresses of the machine, since pods are scraped
    from outside; :: for those of IPv6 as well; 127.0.0.1 for programs on the machine alone. Whoever reaches it can
    read."""
