"""The thread that sends the journal to MLflow, in order, and waits for a server that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hires_gan.progress import say
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.flavour import log_model
from hires_gan.tracking.journal import Batch, Entry, Journal
from hires_gan.tracking.pictures import encode
from hires_gan.tracking.protocols import Protocol, record
from hires_gan.tracking.store import load_mlflow, reason

VALUES_PER_REQUEST = 1000
GATHER_SECONDS = 1.0
"""Points of one second travel together, so that fast steps do not make many small requests."""
LONGEST_PAUSE = 60.0
WATCH_SECONDS = 30.0
"""How often the monitor of the machine is looked after when there is nothing to send."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS")
"""Answers that the same request would get again."""


def count_points(count: int) -> str:
    """The number with its noun."""
    return f"{count} point" if count == 1 else f"{count} points"


def latest_steps(client: Any, run_id: str) -> dict[str, int]:
    """Per metric of a run the last step in the store (one request; a metric's whole history may be long)."""
    return {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}


class Sender(threading.Thread):
    """Sends what the journal holds until it is told to finish.

    A request that failed may have arrived all the same, and a killed process may have sent what it did not record:
    before it sends again, the sender asks the store how far each metric got. Images and models have fixed names, so
    that sending them twice leaves one.

    Args:
        client: an MlflowClient.
        run_id: the run that the points belong to.
        journal: where they are.
        place: the store's name for people, without secrets.
        uri: the store's URI.
    """

    def __init__(self, client: Any, run_id: str, journal: Journal, place: str, uri: str) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self.refused = 0
        self._client, self._run_id, self._journal, self._place, self._uri = client, run_id, journal, place, uri
        self._wake, self._finishing = threading.Event(), threading.Event()
        self._deadline, self._status = float("inf"), ""
        self._last_tags: Mapping[str, str] = {}
        self._doubtful = True
        self._failures = self._caught_up = 0
        self._away = self._unkept = False
        self._monitor: Any = None
        self.terminated = False
        """Whether the store knows how the run ended."""

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def finish(self, status: str, wait: float, tags: Mapping[str, str]) -> None:
        """Send the rest, tags, and the run's end, for at most `wait` seconds."""
        self._last_tags, self._status, self._deadline = tags, status, time.monotonic() + wait
        self._finishing.set()
        self._wake.set()
        self.join(wait)

    def run(self) -> None:
        """Send, and pause after failures, until the end is sent or the time is over."""
        while not self.terminated and time.monotonic() < self._deadline:
            try:
                self._send_waiting()
                self._watch()
                self._report_back()
                if self._finishing.is_set():
                    self._terminate()
                else:
                    self._rest()
            except Exception as problem:  # anything at all: training goes on
                self._fail(problem)

    def _rest(self) -> None:
        self._wake.wait(WATCH_SECONDS)
        self._finishing.wait(GATHER_SECONDS)
        self._wake.clear()

    def _send_waiting(self) -> None:
        while time.monotonic() < self._deadline and (batch := self._journal.next_batch(VALUES_PER_REQUEST)):
            self._send_or_refuse(batch)
            self._journal.mark_sent(batch)
            self._doubtful = False
            if self._away:
                self._caught_up += batch.lines

    def _report_back(self) -> None:
        self._failures = 0
        if self._away and not self._journal.waiting:
            say(f"MLflow at {self._place} answers again: {count_points(self._caught_up)} sent")
            self._away, self._caught_up = False, 0

    def _fail(self, problem: Exception) -> None:
        """Say once that the store is away, and pause: 1, 2, 4 ... seconds, 1 when the run is ending."""
        self._doubtful = True
        if not self._away:
            self._away = True
            waiting = count_points(self._journal.waiting)
            say(f"MLflow at {self._place} does not answer ({reason(problem)}): training goes on, {waiting} waiting")
        pause = min(2.0**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 10)
        if not self._finishing.wait(pause):
            return
        time.sleep(max(0.0, min(1.0, self._deadline - time.monotonic())))

    def _send_or_refuse(self, batch: Batch) -> None:
        """Send; what the store refuses for good is said and counted, and does not hold up the rest."""
        from mlflow.exceptions import MlflowException

        try:
            self._send(batch.entries)
        except MlflowException as problem:
            if problem.error_code not in _REFUSALS:
                raise
            if not self.refused:
                say(f"MLflow at {self._place} refuses a point: {reason(problem)}")
            self.refused += batch.lines

    def _send(self, entries: list[Entry]) -> None:
        first = entries[0] if entries else {"metrics": {}}
        if "metrics" in first:
            self._send_metrics(entries)
        elif "image" in first:
            self._send_image(first)
        elif "artifact" in first:
            self._send_artifact(Path(first["artifact"]), first["folder"])
        else:
            self._send_model(Path(first["model"]), ModelCard(**first["card"]))

    def _send_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        latest = latest_steps(self._client, self._run_id) if self._doubtful else {}
        points = [(entry, key) for entry in entries for key in entry["metrics"] if entry["nimg"] > latest.get(key, -1)]
        # Before the numbers: a number that is in the store, and is not sent again, has its protocol there.
        self._send_protocols(
            [
                (key, entry["nimg"], entry["protocols"][key])
                for entry, key in points
                if key in entry.get("protocols", ())
            ]
        )
        metrics = [Metric(key, entry["metrics"][key], entry["time"], entry["nimg"]) for entry, key in points]
        for start in range(0, len(metrics), VALUES_PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + VALUES_PER_REQUEST])

    def _send_protocols(self, taken: list[tuple[str, int, Protocol]]) -> None:
        """Let the store know how numbers were taken; one that does not take that has the numbers all the same."""
        from mlflow.exceptions import MlflowException

        if not taken:
            return
        try:
            record(self._client, self._run_id, taken)
        except MlflowException as problem:
            if problem.error_code not in _REFUSALS:
                raise
            if not self._unkept:
                say(f"MLflow at {self._place} refuses to keep how metrics are measured: {reason(problem)}")
            self._unkept = True

    def _send_image(self, entry: Entry) -> None:
        files = [self._journal.images / name for name in entry["files"]]
        if "raw" in entry and (raw := self._journal.images / entry["raw"]).is_file():
            encode(raw, *files)
        if not all(file.is_file() for file in files):
            self._lost(f"the image {entry['image']} of nimg {entry['nimg']}")
            return
        for file in files:
            self._client.log_artifact(self._run_id, str(file), "images")
        self._client.set_tag(self._run_id, "mlflow.loggedImages", "True")

    def _send_artifact(self, path: Path, folder: str) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._run_id, str(path), f"{folder}/{path.name}".strip("/"))
        elif path.is_file():
            self._client.log_artifact(self._run_id, str(path), folder or None)
        else:
            self._lost(str(path))

    def _send_model(self, checkpoint: Path, card: ModelCard) -> None:
        if checkpoint.is_dir():
            log_model(self._client, self._run_id, checkpoint, card)
        else:
            self._lost(str(checkpoint))

    def _lost(self, what: str) -> None:
        say(f"MLflow at {self._place} does not get {what}: it is not on this disk any more")

    def _watch(self) -> None:
        """Keep MLflow's monitor of processor, memory and GPU alive: it ends when the store does not answer it."""
        if all(key.startswith("image:") for key in self._journal.reached):
            return  # MLflow's comparison begins with what was logged first: that shall be the run's own
        if self._monitor is not None and self._is_watching(self._monitor):
            return
        load_mlflow()
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._client.get_run(self._run_id)  # raises while the store is away, when the monitor would start at step 0
        self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=True, tracking_uri=self._uri)
        self._monitor.start()

    @staticmethod
    def _is_watching(monitor: Any) -> bool:
        # The monitor has no public way to ask: its thread ends in silence, and `finish` alone would tell.
        return monitor._process is not None and bool(monitor._process.is_alive())

    def _terminate(self) -> None:
        if self._journal.waiting:
            return
        if self._monitor is not None:
            self._monitor.finish()
        for key, value in self._last_tags.items():
            self._client.set_tag(self._run_id, key, value)
        self._client.set_terminated(self._run_id, self._status)
        self.terminated = True
