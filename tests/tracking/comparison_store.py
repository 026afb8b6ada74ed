"""An MLflow store with runs that look like this package's own, made in moments."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

Points = Mapping[str, Mapping[int, float]]
"""By metric: the values by nimg."""
TRAINED: Points = {
    "evaluation/swd": {0: 5.0, 1000: 90.0, 2000: 40.0, 3000: 60.0},
    "loss/generator": {1000: 1.0, 2000: 2.0, 3000: 3.0},
    "speed/seconds_per_kimg": {1000: 10.0, 2000: 20.0, 3000: 30.0},
    "speed/images_per_second": {1000: 100.0, 2000: 50.0, 3000: 33.0},
    "speed/data_wait": {1000: 0.1, 2000: 0.2, 3000: 0.3},
    "kimg": {1000: 1.0, 2000: 2.0, 3000: 3.0},
}


Protocols = Mapping[str, Mapping[int, Mapping[str, str]]]
"""By metric: how it was measured, by the nimg from which on it was."""
ALIKE: Protocols = {"evaluation/swd": {0: {"fakes": "16"}}}


class RecordedRuns:
    """Logs runs through MLflow's own client.

    Args:
        uri: The store; made if it is missing.
    """

    def __init__(self, uri: str) -> None:
        from hires_gan.tracking.store import experiment_id, open_store, sqlite_path

        path = sqlite_path(uri)
        if path is not None and not path.exists():  # making one takes seconds, copying it none
            shutil.copyfile(fresh_store(), path)
        self.uri, self.client = uri, open_store(uri)
        self.experiment = lambda name: experiment_id(self.client, uri, name)

    def add(
        self,
        name: str,
        points: Points = TRAINED,
        parameters: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        grids: Mapping[int, Image.Image | bytes] | None = None,
        experiment: str = "hires-gan",
        protocols: Protocols = ALIKE,
        data: str = "",
    ) -> str:
        """A finished run; returns its id. `data` is the digest of what it was trained on."""
        from mlflow.entities import Metric, Param, RunTag

        from hires_gan.tracking.description import TrainingData, data_input

        run_id = str(self.client.create_run(self.experiment(experiment), run_name=name).info.run_id)
        metrics = [
            Metric(key, value, 1_700_000_000_000 + nimg, nimg)
            for key, values in points.items()
            for nimg, value in values.items()
        ]
        self.client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(key, value) for key, value in (parameters or {}).items()],
            tags=[RunTag(key, value) for key, value in (protocol_tags(protocols) | dict(tags or {})).items()],
        )
        if data:
            self.client.log_inputs(run_id, [data_input(TrainingData("shards", data, 24, 16))])
        for nimg, grid in (grids or {}).items():
            self.add_grid(run_id, nimg, grid)
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def add_grid(self, run_id: str, nimg: int, grid: Image.Image | bytes, key: str = "samples~grid") -> str:
        """An image of the run, by the name that MLflow's `log_image` gives; returns the artifact's path."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{key}+step+{nimg}+timestamp+{1_700_000_000_000 + nimg}+{uuid.uuid4()}.png"
            if isinstance(grid, bytes):
                file.write_bytes(grid)
            else:
                grid.save(file)
            self.client.log_artifact(run_id, str(file), "images")
        return f"images/{file.name}"

    def artifacts(self, run_id: str) -> Path:
        """Where the artifacts of a run lie."""
        return Path(self.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def protocol_tags(protocols: Protocols) -> dict[str, str]:
    """The tags of a run that say how its metrics were measured, written out."""
    return {
        f"protocol.{metric}": json.dumps([{"nimg": nimg, **one} for nimg, one in entries.items()])
        for metric, entries in protocols.items()
    }


@functools.cache
def fresh_store() -> Path:
    """A SQLite store without runs, for this process."""
    from hires_gan.tracking.store import open_store

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    open_store(sqlite(folder))
    return folder / "mlflow.db"


def sqlite(folder: Path) -> str:
    """The URI of a store in a folder."""
    return f"sqlite:///{folder}/mlflow.db"


def plain(colour: str, size: int = 64) -> Image.Image:
    """A grid of one colour."""
    return Image.new("RGB", (size, size), colour)


def run_of(**changes: Any) -> Any:
    """A run as it is compared, without a store."""
    from hires_gan.tracking.comparison.runs import Run

    values: dict[str, Any] = {
        "name": "run",
        "run_id": "0" * 32,
        "place": "",
        "experiment": "",
        "status": "finished",
        "parameters": {},
        "tags": {},
        "protocols": {},
        "data": {},
        "curves": {},
        "nimg": 0,
        "undrawn": 0,
        "client": None,
        "folder": None,
    }
    return Run(**{**values, **changes})
