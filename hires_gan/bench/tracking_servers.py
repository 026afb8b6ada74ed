"""A real `mlflow server` on loopback, and a slow network in front of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from hires_gan.errors import Failure

START_SECONDS = 180.0
_ANSWER_SECONDS = 30.0
"""For one request while it starts: the first one that needs the store takes longer than all others."""
_END_SECONDS = 30.0
_CHUNK = 2**16


class KeptPort:
    """A port of loopback that nobody gets who does not name it, until it is closed.

    It is bound and never listens: connections are refused, and a server that sets SO_REUSEADDR, as servers do, takes
    the port beside it, as often as it likes.

    Attributes:
        number: of the port.
    """

    def __init__(self) -> None:
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind(("127.0.0.1", 0))
        self.number = int(self._kept.getsockname()[1])

    def close(self) -> None:
        """Whoever asks for any port may get it now."""
        self._kept.close()

    def refuses(self) -> bool:
        """Whether nobody listens on it."""
        with socket.socket() as asking:
            asking.settimeout(1.0)
            return asking.connect_ex(("127.0.0.1", self.number)) == errno.ECONNREFUSED


class LocalServer:
    """An `mlflow server`, in a process group of its own, on one port in all its lives; artifacts go through it.

    Args:
        folder: for its files: the SQLite store, the artifacts, its log.
        backend: another store for it than that, as a URI of SQLAlchemy.

    Attributes:
        uri: where it answers.
        folder: for its files.
    """

    def __init__(self, folder: Path, backend: str | None = None) -> None:
        self._kept = KeptPort()
        self.port = self._kept.number
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self._backend = folder, backend or f"sqlite:///{folder}/mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.kill()
        finally:
            self._kept.close()

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers.

        Raises:
            Failure: it ended, or does not answer within 3 minutes; says the end of its log.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._launched()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise Failure(f"mlflow server does not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it as a lost machine ends: at once; behind this, connections to it are refused.

        Raises:
            Failure: something still takes them after half a minute.
        """
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        # Its first process is gone; the others of the group, which listen, may need a moment more.
        deadline = time.monotonic() + _END_SECONDS
        while not self._kept.refuses():
            if time.monotonic() > deadline:
                raise Failure(f"port {self.port} takes connections {_END_SECONDS:g} s after its server was killed")
            time.sleep(0.02)

    def _launched(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                self._command(), stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _command(self) -> list[str]:
        options = {
            "--backend-store-uri": self._backend,
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        return [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]

    def _answers(self) -> bool:
        """Whether it does what it is there for: it answers as to its health before it has opened its store."""
        search = f"{self.uri}/api/2.0/mlflow/experiments/search?max_results=1"
        try:
            with urllib.request.urlopen(search, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310 - our own, on loopback
                return bool(answer.status == 200)
        except OSError:
            return False


class SlowProxy:
    """Passes connections on to a port of loopback, and keeps each answer back for some seconds.

    Args:
        port: where to.
        delay: seconds; may be changed while it runs.

    Attributes:
        uri: where it listens.
        answers: how many it has kept back and passed on.
    """

    def __init__(self, port: int, delay: float) -> None:
        self.delay, self.answers = delay, 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="slow-proxy", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                continue
            asked = threading.Event()
            for pump in (self._ask, self._answer):
                threading.Thread(target=pump, args=(client, server, asked), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := client.recv(_CHUNK):
                asked.set()
                server.sendall(chunk)
        _hang_up(server)

    def _keep_back(self) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < self.delay and not self._closing.is_set():
            time.sleep(min(0.05, self.delay))

    def _answer(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := server.recv(_CHUNK):
                if asked.is_set():  # the first piece of an answer
                    asked.clear()
                    self._keep_back()
                    self.answers += 1
                client.sendall(chunk)
        _hang_up(client)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
