"""What people read of a run in MLflow before they look at a number: a description, and the data set."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hires_gan.tracking.store import redact

NOTE = "mlflow.note.content"
"""The tag that holds a run's description, in Markdown."""
_NAME_LENGTH = 500
"""MLflow's limit."""
_DIGEST_LENGTH = 12
"""Enough to tell data apart, and short enough for a column (MLflow takes 36)."""


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    Attributes:
        location: the shard sets, as the configuration names them.
        digest: identifies them, in hexadecimal.
        images: how many there are.
        resolution: the side in pixels at which they are stored.
    """

    location: str
    digest: str
    images: int
    resolution: int


def data_input(data: TrainingData) -> Any:
    """The data as MLflow's list of data sets has them."""
    from mlflow.entities import Dataset, DatasetInput

    place = redact(data.location)
    return DatasetInput(
        Dataset(
            name=place[-_NAME_LENGTH:],
            digest=data.digest[:_DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": place}),
            profile=json.dumps({"num_rows": data.images, "resolution": data.resolution}),
        )
    )


def description(
    recipe: str, resolution: int, total_kimg: float, processes: int, folder: Path, data: TrainingData
) -> str:
    """What the run is, and how it goes on.

    Args:
        recipe: the recipe's name.
        resolution: the side of its images in pixels.
        total_kimg: thousands of images shown until it is finished.
        processes: how many train together.
        folder: the run's folder.
        data: what it trains on.

    Returns:
        Markdown.
    """
    place = folder.absolute()
    command = shlex.join(["hires-gan", "train", str(place / "config.yaml"), f"run.dir={place.parent}"])
    launched = "" if processes == 1 else f", under a launcher with {processes} processes or another number of them"
    return (
        f"**{recipe}**, {resolution}x{resolution}, {total_kimg:g} kimg of {data.images:,} images in "
        f"`{redact(data.location)}`.\n\n"
        f"A step is one image shown to the discriminator: 10k on an axis are 10 kimg.\n\n"
        f"It goes on from its latest checkpoint with `{redact(command)}`{launched}."
    )
