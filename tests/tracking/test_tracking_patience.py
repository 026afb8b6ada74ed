"""A request that a store does not answer: made again while the store is away, and not where it refuses."""

from __future__ import annotations

import errno
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from hires_gan.tracking import patience
from hires_gan.tracking.patience import is_passing, patiently
from hires_gan.tracking.store import load_mlflow

RUN = b'{"run": {"info": {"run_id": "a", "status": "RUNNING"}, "data": {}}}'


class Scripted(HTTPServer):
    """Answers with one status after the other, and then as a store does that has every run."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.uri, self.statuses, self.asked = f"http://127.0.0.1:{self.server_port}", list[int](), 0


class _Answer(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        self.server.asked += 1
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        body = RUN if status == 200 else b'{"error_code": "PERMISSION_DENIED"}' if status == 403 else b"<html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    load_mlflow()
    with Scripted() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES", ())
    monkeypatch.setattr(patience, "_LONGEST_PAUSE", 0.01)


def test_an_overloaded_server_is_asked_again_and_that_is_said_once(
    scripted: Scripted, capfd: pytest.CaptureFixture[str]
) -> None:
    scripted.statuses = [503, 429, 502, 504, 503]
    client = MlflowClient(scripted.uri)
    assert patiently(lambda: client.get_run("a"), "the store").info.run_id == "a"
    assert scripted.asked == 6
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("MLflow at the store does not answer (") and first.endswith("it is asked again for 60 s")
    assert second == "MLflow at the store answers again"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_a_refusal_is_no_reason_to_ask_again(
    status: int, scripted: Scripted, capfd: pytest.CaptureFixture[str]
) -> None:
    scripted.statuses = [status] * 9
    client = MlflowClient(scripted.uri)
    with pytest.raises(MlflowException):
        patiently(lambda: client.get_run("a"), "the store")
    assert scripted.asked == 1 and capfd.readouterr().err == ""


def test_a_refusal_that_comes_later_ends_it(scripted: Scripted) -> None:
    scripted.statuses = [503, 503, 403, 403]
    client = MlflowClient(scripted.uri)
    with pytest.raises(MlflowException, match="PERMISSION_DENIED"):
        patiently(lambda: client.get_run("a"), "the store")
    assert scripted.asked == 3


def test_in_the_end_the_last_problem_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [ConnectionRefusedError("first"), *(ConnectionResetError("later") for _ in range(10_000))]
    monkeypatch.setattr(patience, "PATIENCE", 0.2)
    monkeypatch.setattr(patience, "time", Clock())
    with pytest.raises(ConnectionResetError, match="later"):
        patiently(lambda: raising(problems.pop(0)), "the store")
    assert len(problems) < 9_999, "it was tried more than twice"


class Clock:
    """Stands for `time`: it goes on while somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def raising(problem: Exception) -> None:
    raise problem


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


def of_database(words: str, kind: Callable[[str], Exception] = sqlite3.OperationalError) -> Exception:
    try:
        raise MlflowException("database") from OperationalError("SELECT", {}, kind(words))
    except MlflowException as problem:
        return problem


@pytest.mark.parametrize(
    ("problem", "passing"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (requests.ReadTimeout(), True),
        (answered(503), True),  # of an artifact
        (of_database("database is locked"), True),
        (of_database("connection refused", Exception), True),  # of another database than SQLite
        (requests.exceptions.SSLError("certificate"), False),
        (answered(403), False),
        (of_database("database or disk is full"), False),
        (of_database("attempt to write a readonly database"), False),
        (OSError(errno.ENOSPC, "no space"), False),
        (PermissionError(), False),
        (MlflowException("the run is deleted"), False),
        (ValueError(), False),
    ],
)
def test_what_passes_by_itself(problem: Exception, passing: bool) -> None:
    assert is_passing(problem) == passing


WAITING = """
import signal
from hires_gan.tracking import patience

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start in the background ignore it

def ask():
    raise ConnectionRefusedError("nobody")

patience.PATIENCE = 3600.0
patience.patiently(ask, "the store")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(number: signal.Signals) -> None:
    waiting = subprocess.Popen([sys.executable, "-c", WAITING], stderr=subprocess.PIPE, text=True)
    try:
        assert waiting.stderr is not None
        assert waiting.stderr.readline().endswith("it is asked again for 3600 s\n")
        waiting.send_signal(number)
        assert waiting.wait(60) == -number
    finally:
        if waiting.poll() is None:
            waiting.kill()
            waiting.wait()
