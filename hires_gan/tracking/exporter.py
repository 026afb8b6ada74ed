"""How a run stands, for Prometheus: the first process serves it on a port, and no step waits for whoever asks."""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from hires_gan.errors import Failure
from hires_gan.progress import say
from hires_gan.tracking.names import EVALUATION


@dataclass(frozen=True)
class Family:
    """What Prometheus calls a metric.

    Attributes:
        name: Behind `hires_gan_`.
        help: What it is, with its unit.
        label: Where one metric has many values: the label that tells them apart.
    """

    name: str
    help: str
    label: str = ""


FAMILIES: Mapping[str, Family] = {
    "progress/kimg": Family("kimg", "Thousands of images shown to the discriminator, at this very moment."),
    "progress/total_kimg": Family("total_kimg", "Thousands of images shown when the run will be finished."),
    "checkpoint/kimg": Family("checkpoint_kimg", "Where the run goes on from after a kill."),
    "checkpoint/age": Family(
        "checkpoint_age_seconds",
        "Seconds since the state of the last whole checkpoint, at most since this start: what a kill costs.",
    ),
    "speed/images_per_second": Family(
        "images_per_second", "Images shown per second; samples, evaluation and checkpoints left out."
    ),
    "speed/data_wait": Family("data_wait_ratio", "The share of the training time spent waiting for data, 0 to 1."),
    "loss/": Family("loss", "Mean since the last log.", "name"),
    "statistics/": Family("statistic", "What the recipe watches beside its losses, mean since the last log.", "name"),
    EVALUATION: Family("evaluation", "The last value of a metric of the averaged network.", "name"),
    "schedule/resolution": Family("resolution", "Pixels a side that are trained now."),
    "schedule/batch": Family("batch_size", "Images in a step, of all processes together."),
    "schedule/learning_rate_": Family("learning_rate", "Of each player's optimizer.", "player"),
    "gradients/nonfinite": Family(
        "nonfinite_gradient_entries", "Gradients' entries that were not finite and set to zero, of the whole run."
    ),
    "data/skipped": Family("skipped_samples", "Corrupt samples that another one was shown for, of the whole run."),
    "data/retries": Family("read_retries", "Reads that were done again after a passing fault, since this start."),
    "memory/gpu/": Family("gpu_memory_bytes", "The most that was allocated on a process's GPU, by rank.", "rank"),
    "memory/resident/": Family(
        "resident_memory_bytes", "Without a GPU: what a process has in memory, by rank.", "rank"
    ),
    "ranks/slowest": Family("slowest_rank", "The process for which the others wait."),
    "ranks/slowest_seconds": Family("slowest_rank_step_seconds", "The slowest process's own seconds per step."),
    "ranks/median_seconds": Family("median_rank_step_seconds", "The median process's own seconds per step."),
}
"""By the names under which the trainer logs; with a label, by how these names begin: the rest is its value.

All are gauges: a run that goes on from a checkpoint counts on from there, which `rate` would take for a start at 0."""


class Exporter(Collector):
    """Serves the last values of a run's metrics, from threads of its own, until it is closed.

    Entered for a run. What is handed over replaces a mapping as a whole, and an answer is made of the one that is
    there: neither side waits for the other.

    Args:
        address: Where to listen: an address or a name of this machine, 0.0.0.0 for all IPv4 ones, :: for all.
        port: Which port, 1 to 65535.
        run: The run's name, the label `run` of every metric: a preempted run goes on in another place under its name.

    Raises:
        Failure: If it cannot listen there.
    """

    def __init__(self, address: str, port: int, run: str) -> None:
        self._run, self._info = run, dict[str, str]()
        self._values: Mapping[str, float] = {}
        self._current: Callable[[], Mapping[str, float]] = dict
        registry = CollectorRegistry()  # of this run alone: the library's own one outlives it
        registry.register(self)
        try:
            self._server = _Server(address, port)
        except OSError as error:
            raise Failure(_remedy(error, address, port)) from error
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="prometheus", daemon=True)
        self._thread.start()
        say(f"metrics for Prometheus at http://{_reached_at(address)}:{port}/metrics")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more: the port is free behind this."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def follow(self, current: Callable[[], Mapping[str, float]], info: Mapping[str, str]) -> None:
        """Serve a run.

        Args:
            current: Gives what is wanted fresh, by the names of `FAMILIES`; called from another thread at every
                scrape, so it reads what is there and waits for nothing.
            info: Labels of the metric `hires_gan_run_info`.
        """
        self._info, self._current = dict(info), current

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Serve these values from now on, and what was logged before under other names.

        Args:
            metrics: By the names under which the trainer logs; what is not in `FAMILIES` is left out.
        """
        self._values = {**self._values, **metrics}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The answer to a scrape."""
        info = {"run": self._run, **self._info}
        described = GaugeMetricFamily("hires_gan_run_info", "The run, in labels.", labels=list(info))
        described.add_metric(list(info.values()), 1)
        yield described
        values = {**self._values, **self._current()}
        for key, family in FAMILIES.items():
            found = _of_family(values, key, family)
            if found:
                yield self._gauge(family, found)

    def _gauge(self, family: Family, values: Mapping[str, float]) -> GaugeMetricFamily:
        labels = ["run", family.label] if family.label else ["run"]
        gauge = GaugeMetricFamily(f"hires_gan_{family.name}", family.help, labels=labels)
        for which, value in values.items():
            gauge.add_metric([self._run, which] if family.label else [self._run], value)
        return gauge


class _Answer(WSGIRequestHandler):
    """One request, of which nothing is logged; whoever is silent for some seconds is not waited for."""

    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it has in the base
        pass


class _Server(ThreadingWSGIServer):
    """Answers each request in a thread: the library's server, silent about clients that break off.

    The library's `start_http_server` has a traceback for each of them, in the run's log.
    """

    def __init__(self, address: str, port: int) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, place = found[0]
        super().__init__(place[:2], _Answer)  # type: ignore[arg-type]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a broken connection; the rest is a bug."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _of_family(values: Mapping[str, float], key: str, family: Family) -> dict[str, float]:
    """Its values, by what stands in its label."""
    if not family.label:
        return {"": values[key]} if key in values else {}
    return {name.removeprefix(key): value for name, value in values.items() if name.startswith(key)}


def _reached_at(address: str) -> str:
    """Whom to ask, for people: of several machines this one."""
    if address in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return socket.gethostname()
    return f"[{address}]" if ":" in address else address


def _remedy(error: OSError, address: str, port: int) -> str:
    """What to do about a port or an address that cannot be had."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"tracking.metrics_port is {port}, but another program, or another run, listens there already on "
            f"{address}: take another port, or null for no metrics"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"tracking.metrics_port is {port}, which this user may not listen on: take one from 1024 to 65535"
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return (
            f"tracking.metrics_address is {address!r}, which is no address of this machine: take 0.0.0.0 for all that "
            "it has, or 127.0.0.1 for programs on it alone"
        )
    return (
        f"cannot listen on tracking.metrics_address {address!r}, tracking.metrics_port {port} "
        f"({error.strerror or error}): take others, or null as the port for no metrics"
    )
