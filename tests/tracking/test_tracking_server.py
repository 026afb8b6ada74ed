"""The tracker against a real `mlflow server` on loopback: absent, dying, coming back."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.errors import Failure
from hires_gan.tracking import sender, store
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.flavour import fetch_model
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import PROBE_SECONDS
from hires_gan.tracking.tracker import Tracker

Server = LocalServer


def start(uri: str, folder: Path) -> Tracker:
    config = folder / "config.yaml"
    config.write_text("a: 1\n")
    settings = TrackingSettings(uri=uri)
    return Tracker.start(settings, folder, folder, "run", None, {"empty": "", "size": 64}, {}, config)


def steps(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)


def test_server_dies_and_comes_back(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One outage, two runs: one trains on until the server is back, the other ends meanwhile and is started again."""
    from mlflow import MlflowClient

    monkeypatch.setattr(sender, "LONGEST_PAUSE", 2.0)
    client = MlflowClient(server.uri, server.uri)
    (tmp_path / "long").mkdir()
    (tmp_path / "short").mkdir()
    long, short = start(server.uri, tmp_path / "long"), start(server.uri, tmp_path / "short")
    long.log_metrics(1000, {"loss": 0.5})
    wait_for(lambda: len(steps(client, long.run_id, "loss")) == 1)
    server.kill()
    for nimg in range(2000, 8000, 1000):
        long.log_metrics(nimg, {"loss": nimg / 2000})
        time.sleep(0.3)
    long.log_image("samples/grid", 7000, np.zeros((8, 8, 3), np.uint8))
    said = heard("does not answer", capfd)
    end_without_server(short, capfd)
    server.start()
    wait_for(lambda: len(steps(client, long.run_id, "loss")) == 7)
    long.log_metrics(8000, {"loss": 4.0})
    long.finish("FINISHED", 120)
    out, rest = capfd.readouterr()
    lines = [line for line in (said + rest).splitlines() if line]
    assert len(lines) == 2 and out == "", lines
    assert f"MLflow at {server.uri} does not answer" in lines[0]
    # How the last request ended depends on where the server was in it.
    assert re.search(r"\([\w ]+\): training goes on, \d points? waiting", lines[0])
    assert re.search(r"answers again: [789] points sent", lines[1])
    assert steps(client, long.run_id, "loss") == [(nimg, nimg / 2000) for nimg in range(1000, 9000, 1000)]
    assert [step for step, _ in steps(client, long.run_id, "kimg")] == list(range(1000, 9000, 1000))
    images = [file.path for file in client.list_artifacts(long.run_id, "images")]
    assert len(images) == 2 and all("samples~grid+step+7000+timestamp+" in path for path in images)
    assert client.get_run(long.run_id).info.status == "FINISHED"
    again = start(server.uri, tmp_path / "short")
    again.finish("FINISHED", 120)
    assert again.run_id == short.run_id
    assert steps(client, short.run_id, "loss") == [(1000, 1.0), (2000, 1.0)]


def heard(words: str, capfd: pytest.CaptureFixture[str]) -> str:
    """All that is said until a line with these words is."""
    said, deadline = "", time.monotonic() + 90
    while words not in said or not said.endswith("\n"):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
        said += capfd.readouterr().err
    return said


def end_without_server(tracker: Tracker, capfd: pytest.CaptureFixture[str]) -> None:
    """End a run that has two points to send, and check what it says."""
    for nimg in (1000, 2000):
        tracker.log_metrics(nimg, {"loss": 1.0})
    wait_for(lambda: tracker._sender._away)
    begin = time.monotonic()
    tracker.finish("KILLED", wait=3)
    assert time.monotonic() - begin < 60
    said = capfd.readouterr().err
    assert "2 points not sent to MLflow" in said and "running the same command again" in said


def test_server_holds_what_a_run_holds(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tracker, client = start(server.uri, tmp_path), MlflowClient(server.uri, server.uri)
    tracker.log_metrics(1000, {"bad": float("inf")})
    place = tmp_path / "000000008000"
    place.mkdir()
    (place / "state.json").write_text("{}")
    for _ in range(2):
        tracker.log_model(place, ModelCard("progressive", 64, 1, 8000, register_as="server-faces"))
    tracker.finish("FINISHED", 120)
    assert str(steps(client, tracker.run_id, "bad")) == "[(1000, nan)]"
    assert client.get_run(tracker.run_id).data.params == {"empty": "", "size": "64"}
    assert len(client.search_model_versions("name = 'server-faces'")) == 1
    assert fetch_model("models:/server-faces/1", server.uri).name == place.name


def test_server_absent_at_the_start(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://ann:s3cret@127.0.0.1:{closed.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(Failure, match=r"does not answer \(Connection refused\): start the server") as refusal:
            start(uri, tmp_path)
    assert time.monotonic() - begin < 60
    assert "s3cret" not in str(refusal.value) and "http://***@127.0.0.1" in str(refusal.value)
    assert "tracking.uri=null" in str(refusal.value)


def test_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROBE_SECONDS < 10
    monkeypatch.setattr(store, "PROBE_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(Failure, match=r"does not answer \(timed out\)"):
            start(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(("status", "sentence"), [(401, "MLFLOW_TRACKING_USERNAME"), (502, "not as an MLflow server")])
def test_server_that_is_not_ours(status: int, sentence: str, tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        with pytest.raises(Failure, match=sentence):
            start(f"http://127.0.0.1:{refusing.server_port}", tmp_path)
        refusing.shutdown()


def test_server_that_is_called_by_a_name_it_does_not_allow(server: Server, tmp_path: Path) -> None:
    name = f"127.1:{server.uri.rpartition(':')[2]}"  # the same address, but to a browser another host
    with pytest.raises(Failure, match=rf"does not let itself be called {name} .*--allowed-hosts {name}"):
        start(f"http://{name}", tmp_path)


def test_database_server_absent_at_the_start(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        begin = time.monotonic()
        with pytest.raises(Failure, match="Connection refused"):
            start(f"postgresql://ann:s3cret@127.0.0.1:{closed.getsockname()[1]}/mlflow", tmp_path)
    assert time.monotonic() - begin < 60
