"""A PostgreSQL of its own for a test: a fresh cluster on loopback, which dies and comes back when asked to."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hires_gan.bench.tracking_servers import KeptPort


def programs() -> Path | None:
    """Where `initdb` and `postgres` are."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else None


def missing() -> str:
    """Why there can be no cluster; empty if there can."""
    if programs() is None:
        return "needs PostgreSQL's initdb and postgres (Debian's package postgresql)"
    if os.getuid() == 0 and _account() is None:
        return "needs an account named postgres or nobody: PostgreSQL refuses to run as root"
    return ""


def _account() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


class Cluster:
    """The databases `served` and `direct` of the user `tracker`, whose password has what a URI has to escape."""

    def __init__(self) -> None:
        self._kept = KeptPort()
        self.port = self._kept.number
        self.uri = f"postgresql://tracker:p%40ss%2Fword@127.0.0.1:{self.port}"
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as: dict[str, Any] = {"user": _account()} if os.getuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lives = 0

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        self._kept.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, unless it runs, and wait until it takes connections."""
        deadline = time.monotonic() + 120
        while self._process is None or not self._answers():
            assert time.monotonic() < deadline, self._said()
            if self._process is None or self._process.poll() is not None:
                assert self._process is None or self._finds_itself(), self._said()
                self._launch()
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a pulled plug does; its children see that it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _launch(self) -> None:
        options = [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "lc_messages=C",
            f"unix_socket_directories={self._folder}",
        ]
        command = [str(self._program("postgres")), "-D", str(self._data), "-p", str(self.port)]
        command += [word for option in options for word in ("-c", option)]
        self._lives += 1
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._as)

    def _finds_itself(self) -> bool:
        """Whether it has ended since children of its former life are still there: they notice its end one by one."""
        return "pre-existing shared memory block" in self._said()

    @property
    def _log(self) -> Path:
        """Of the latest life: children of a former one may still write into its own."""
        return self._folder / f"log-{self._lives}"

    def _said(self) -> str:
        return self._log.read_text() if self._lives else ""

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _program(self, name: str) -> Path:
        folder = programs()
        assert folder is not None
        return folder / name

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text("p@ss/word\n")
        if self._as:
            for path in (self._folder, password):
                shutil.chown(path, self._as["user"])
        options = ["-U", "tracker", "--pwfile", str(password), "--auth", "scram-sha-256", "--no-sync", "-E", "UTF8"]
        command = [str(self._program("initdb")), "-D", str(self._data), *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._folder, timeout=120, **self._as)
        assert done.returncode == 0, done.stderr
        self.start()
        with self._connect("postgres") as connection:
            for name in ("served", "direct"):
                connection.execute(f"CREATE DATABASE {name}")
        self._process, running = None, self._process
        assert running is not None
        running.terminate()
        running.wait(60)

    def _connect(self, database: str) -> Any:
        import psycopg

        return psycopg.connect(f"{self.uri}/{database}", autocommit=True, connect_timeout=5)

    def _answers(self) -> bool:
        import psycopg

        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True
