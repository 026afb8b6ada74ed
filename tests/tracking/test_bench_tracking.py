"""`hires-gan bench tracking`: it measures each store, and what it refuses."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hires_gan.bench import tracking
from hires_gan.bench.tracking import Request, bench_tracking, table
from hires_gan.bench.tracking_servers import KeptPort, LocalServer
from hires_gan.cli_bench import app
from hires_gan.errors import UsageError

SHORT = ["--step-ms", "1", "--kimg", "3.2", "--every-kimg", "0.1", "--samples-every-kimg", "0.8", "--side", "64"]


def test_the_record_has_shares_of_the_time_of_the_steps(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    done = CliRunner().invoke(app, ["tracking", *SHORT, "--store", "sqlite", "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    (one,) = record["stores"].values()
    assert one["seconds"] >= 0.1 and 0 < one["blocked"] < 1 and one["beside"] >= 0
    assert 0 < one["longest"] <= one["blocked"] * one["seconds"]
    assert record["settings"]["step_ms"] == 1.0 and record["version.mlflow"]
    assert table(record)[1].startswith("sqlite")


def test_the_record_has_the_processor_time_of_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """By how much it grew over the steps; two clocks that disagree by a tick make nothing less than nothing."""
    request = Request(1.0, 32, 0.32, 0.1, 0.8, 64, 5, 1.0, ("sqlite",), None)
    for clock, grown in (([3.0, 3.5], 0.5), ([3.0, 2.99], 0.0)):
        monkeypatch.setattr(tracking, "_beside", iter(clock).__next__)
        (one,) = bench_tracking(request)["stores"].values()
        assert one["beside"] * one["seconds"] == pytest.approx(grown)


def test_the_time_beside_is_that_of_other_threads() -> None:
    """And not that of the thread that asks, which computes as long before it does."""

    def compute() -> None:
        start = time.thread_time()
        while time.thread_time() - start < 0.2:
            pass

    before = tracking._beside()
    compute()
    between = tracking._beside()
    other = threading.Thread(target=compute)
    other.start()
    other.join()
    assert between - before < 0.1 and tracking._beside() - between > 0.15


@pytest.mark.slow
def test_a_slow_server_costs_no_step_more() -> None:
    """Its answers take longer than the whole run, so that a step that waited for one would be seen."""
    request = Request(1.0, 32, 3.2, 0.1, 0.8, 64, 5, 1.0, ("slow",), None)
    (one,) = bench_tracking(request)["stores"].values()
    assert one["left"] > 0 and one["longest"] < request.delay


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kimg": 0}, "--kimg is 0"),
        ({"stores": ("sqlite", "cloud")}, "--store is cloud; sqlite, server, slow are allowed"),
        ({"delay": -1}, "--delay is -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Request(**change)  # type: ignore[arg-type]


def test_a_port_is_nobody_elses_while_its_server_is_down() -> None:
    port = KeptPort()
    for _ in range(2):
        with socket.create_server(("127.0.0.1", port.number)):
            assert not port.refuses()
        assert port.refuses()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port.number))
    port.close()


def test_behind_a_kill_no_connection_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens may end later than the process that was started."""
    monkeypatch.setattr(LocalServer, "start", lambda server: None)
    with LocalServer(tmp_path) as server:
        listening = socket.create_server(("127.0.0.1", server.port))
        threading.Timer(0.5, listening.close).start()
        server.kill()
        with socket.socket() as asking, pytest.raises(ConnectionRefusedError):
            asking.connect(("127.0.0.1", server.port))
