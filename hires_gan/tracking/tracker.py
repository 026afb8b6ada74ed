"""A run in MLflow, as the trainer sees it: everything returns at once, and what the store lacks is sent later."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hires_gan.progress import say
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.description import NOTE, TrainingData, data_input
from hires_gan.tracking.journal import Journal, read_json, write_json
from hires_gan.tracking.machine import machine_tags
from hires_gan.tracking.parameters import TAG_LENGTH, log_parameters, shorten
from hires_gan.tracking.pictures import Picture, keep
from hires_gan.tracking.protocols import Protocol
from hires_gan.tracking.sender import Sender, count_points, latest_steps
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import experiment_id, find_run, open_store, redact, resolve_uri, translated


class Tracker:
    """One run in MLflow. Rank 0 makes it, with `Tracker.start`; it is used from one thread.

    Attributes:
        run_id: the MLflow run.
        place: the store's URI for people, without secrets.
        blocked: for how many seconds whoever logged has waited so far.
    """

    def __init__(self, client: Any, run_id: str, experiment: str, journal: Journal, uri: str) -> None:
        self.run_id, self.place = run_id, redact(uri)
        self._experiment = experiment
        self._journal = journal
        self.blocked = 0.0
        self._not_finite: set[str] = set()
        self._sender = Sender(client, run_id, journal, self.place, uri)
        self._sender.start()

    @classmethod
    def start(
        cls,
        settings: TrackingSettings,
        run_folder: Path,
        run_dir: Path,
        run_name: str,
        run_id: str | None,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        config_file: Path,
        data: TrainingData | None = None,
    ) -> Tracker:
        """Open the store, and create the run or go on with it.

        Args:
            settings: the `tracking` block.
            run_folder: the run's own folder; the journal lies in its `tracking`.
            run_dir: the folder of all runs; holds the SQLite store where no other is configured.
            run_name: the run's name in MLflow.
            run_id: the run to go on with if the run folder does not know better, from a checkpoint; or None.
            parameters: the resolved configuration, nested.
            tags: more tags beside those of the machine; the description only where people wrote none.
            config_file: the resolved configuration as a file; logged as an artifact, without secrets.
            data: what it trains on, for MLflow's list of data sets.

        Raises:
            Failure: the store cannot be used: says which, why, and what to do.
        """
        uri = resolve_uri(settings, run_dir)
        client = open_store(uri)
        journal = Journal(run_folder / "tracking")
        known = read_json(journal.folder / "run.json").get("run_id")
        with translated(uri):
            run = _find_run(client, uri, [known, run_id]) or _create_run(client, uri, settings.experiment, run_name)
            current = run.info.run_id
            write_json(journal.folder / "run.json", {"run_id": current, "uri": redact(uri)})
            if journal.empty:  # the journal was lost, or the run came with a checkpoint: the store knows how far it got
                journal.reached.update(latest_steps(client, current))
            journal.destine(current)
            if known not in (None, current):
                say(f"the MLflow run {current} takes its place, with {count_points(journal.waiting)} logged so far")
            _describe(client, run, settings, parameters, {**machine_tags(), **tags}, config_file)
            if data is not None:
                _describe_data(client, run, data)
        return cls(client, current, run.info.experiment_id, journal, uri)

    def log_metrics(
        self, nimg: int, metrics: Mapping[str, float], protocols: Mapping[str, Protocol] | None = None
    ) -> None:
        """Log values at step `nimg`, and `kimg` beside them.

        A value that is not a finite number is logged as NaN (MLflow would make 1.8e308 of infinity, which flattens a
        chart), counted in the metric `not_finite`, and said the first time for each key.

        Args:
            nimg: images shown to the discriminator so far; a key that was logged at this nimg or beyond is skipped.
            metrics: names (letters, digits, `_ - . / :` and spaces) and values.
            protocols: of some of these names, how the value was taken: kept as a tag of the run.

        Raises:
            Failure: the disk is full.
        """
        with self._counted():
            self._log_metrics(nimg, {key: float(value) for key, value in metrics.items()}, protocols or {})

    def _log_metrics(self, nimg: int, values: dict[str, float], protocols: Mapping[str, Protocol]) -> None:
        bad = [key for key, value in values.items() if not math.isfinite(value)]
        if bad:
            self._report_not_finite(nimg, {key: values[key] for key in bad})
            values.update(dict.fromkeys(bad, math.nan), not_finite=float(len(bad)))
        values["kimg"] = nimg / 1000
        fresh = self._journal.fresh(values, nimg)
        if fresh:
            now = time.time_ns() // 1_000_000
            taken = {key: dict(protocols[key]) for key in fresh if key in protocols}
            entry = {"time": now, "nimg": int(nimg), "metrics": {key: values[key] for key in fresh}}
            self._journal.append(entry | ({"protocols": taken} if taken else {}))
            self._sender.wake()

    def log_image(self, key: str, nimg: int, image: Picture) -> None:
        """Log an image at step `nimg`: MLflow shows those of one key with a slider.

        Args:
            key: the name of the series: letters, digits, `_ - . /` and spaces.
            nimg: images shown so far; an image that was logged at this nimg or beyond is skipped.
            image: uint8 [H, W, 3]; above 4096 pixels a side it is averaged over boxes of a whole size.

        Raises:
            Failure: the disk is full.
        """
        with self._counted():
            if self._journal.fresh([f"image:{key}"], nimg):
                self._log_image(key, nimg, image)

    def _log_image(self, key: str, nimg: int, image: Picture) -> None:
        assert re.fullmatch(r"[\w\-./ ]+", key, re.ASCII), f"{key!r} is no image key"
        now = time.time_ns() // 1_000_000
        # MLflow's own names (MlflowClient.log_image), but fixed now: sending again replaces instead of doubling.
        stem = f"{key.replace('/', '~')}+step+{nimg}+timestamp+{now}+{uuid.uuid4()}"
        names = [f"{stem}.png", f"{stem}+compressed.webp"]
        keep(image, self._journal.images / f"{stem}.npy")
        entry = {"time": now, "nimg": int(nimg), "image": key, "files": names, "raw": f"{stem}.npy"}
        self._journal.append(entry)
        self._sender.wake()

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or a folder with all that is in it; it has to stay in place until it is sent.

        Args:
            path: what to log.
            folder: where it goes among the run's artifacts.
        """
        self._journal.append({"artifact": str(path.absolute()), "folder": folder})
        self._sender.wake()

    def log_model(self, checkpoint_dir: Path, card: ModelCard) -> None:
        """Log a checkpoint directory as a model of our flavour; it has to stay in place until it is sent."""
        self._journal.append({"model": str(checkpoint_dir.absolute()), "card": asdict(card)})
        self._sender.wake()

    def finish(self, status: str, wait: float) -> None:
        """End the run and wait for what is not sent yet; says what remains. Nothing is logged after this.

        Args:
            status: "FINISHED", "KILLED" or "FAILED".
            wait: at most so many seconds.
        """
        self._sender.finish(status, wait, {"tracking.blocked_seconds": f"{self.blocked:.3f}"})
        self._journal.close()
        if self._sender.refused:
            refused = count_points(self._sender.refused)
            say(f"MLflow at {self.place} refused {refused}; the journal {self._journal.path} has them")
        if self._journal.waiting:
            rest = count_points(self._journal.waiting)
            say(f"{rest} not sent to MLflow at {self.place} yet: running the same command again sends the rest")
        elif not self._sender.terminated:
            say(f"MLflow at {self.place} has all points, but does not know yet that the run ended ({status})")

    @property
    def waiting(self) -> int:
        """How many points the store does not have yet."""
        return self._journal.waiting

    def how_to_look(self) -> str:
        """Where people find the run: the address of a server, or the command that opens the store."""
        if self.place.startswith(("http://", "https://")):
            place = self.place.replace("://***@", "://").rstrip("/")  # a browser asks for the password
            # Without the last part a browser may show MLflow's pages for language models.
            return f"{place}/#/experiments/{self._experiment}/runs/{self.run_id}?workflowType=machine_learning"
        return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.place])

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.blocked += time.perf_counter() - start

    def _report_not_finite(self, nimg: int, values: Mapping[str, float]) -> None:
        for key in values.keys() - self._not_finite:
            say(f"{key} is {values[key]} at kimg {nimg / 1000:g}: logged as NaN, counted in the metric not_finite")
            self._not_finite.add(key)


def _find_run(client: Any, uri: str, candidates: list[str | None]) -> Any:
    """The first of the runs that the store still has; says which are gone."""
    for run_id in dict.fromkeys(filter(None, candidates)):
        run = find_run(client, run_id)
        if run is not None and run.info.lifecycle_stage == "active":
            return run
        say(f"the MLflow run {run_id} is not in the store {redact(uri)}{' any more' if run else ''}")
    return None


def _create_run(client: Any, uri: str, experiment: str, name: str) -> Any:
    return client.create_run(experiment_id(client, uri, experiment), run_name=name)


def _describe(
    client: Any,
    run: Any,
    settings: TrackingSettings,
    parameters: Mapping[str, object],
    tags: Mapping[str, str],
    config_file: Path,
) -> None:
    """Log what is known at the start; a run that ended is running again."""
    from mlflow.entities import RunTag

    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    home = client.get_experiment(run.info.experiment_id).name
    if home != settings.experiment:
        say(f"the run stays in the MLflow experiment '{home}': tracking.experiment names that of new runs")
    log_parameters(client, run, parameters)
    new = {key: value for key, value in tags.items() if key != NOTE or not run.data.tags.get(NOTE)}
    client.log_batch(run_id, tags=[RunTag(key, shorten(value, TAG_LENGTH)) for key, value in new.items()])
    client.log_text(run_id, redact(config_file.read_text()), config_file.name)


def _describe_data(client: Any, run: Any, data: TrainingData) -> None:
    """Name the data set, so that the list of runs shows which of them saw the same; again only where it is another."""
    wanted = data_input(data)
    known = [one.dataset.digest for one in run.inputs.dataset_inputs] if run.inputs else []
    if wanted.dataset.digest not in known:
        client.log_inputs(run.info.run_id, [wanted])
