"""An object store for tests: a web server in a process of its own, which can be killed, slowed and made to fail.

What it does wrong stands in a file that it reads anew at every request; what it was asked for it writes into another.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

from hires_gan.bench.tracking_servers import KeptPort

PIECE = 2048


class Handler(BaseHTTPRequestHandler):
    """Serves the files of a folder.

    Faults, each `{name of a file, or "*": value}`: `status` answers so; `swap` sends another file; `short` sends only
    so many bytes, and says so; `cut` says that there are all bytes, and sends only so many; `pause` waits so long
    between pieces; `hang` waits so long behind the first piece. `auth` (one for all): `user:password`.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    faults: Path
    log: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        faults = json.loads(self.faults.read_text())
        with self.log.open("a") as log:
            log.write(json.dumps([self.command, name, self.headers.get("Range"), self.headers.get("X-Rank")]) + "\n")
        wanted = faults.get("auth")
        if wanted and self.headers.get("Authorization") != "Basic " + base64.b64encode(wanted.encode()).decode():
            return self.refuse(401)

        def fault(kind):
            return faults.get(kind, {}).get(name, faults.get(kind, {}).get("*"))

        path = self.folder / (fault("swap") or name)
        if fault("status") or not path.is_file():
            return self.refuse(fault("status") or 404)
        data = path.read_bytes()[: fault("short")]
        status = 200
        if self.headers.get("Range"):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.send(data, fault("cut"), fault("pause"), fault("hang"))
        return None

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, cut: int | None, pause: float | None, hang: float | None) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(data[:cut]), PIECE):
                self.wfile.write(data[:cut][start : start + PIECE])
                time.sleep(pause or 0)
                if start == 0:
                    time.sleep(hang or 0)
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class ShardServer:
    """The server, from outside.

    Args:
        served: The folder with a set.
        scratch: Where its files go.
    """

    def __init__(self, served: Path, scratch: Path) -> None:
        self.served, self.faults, self.log = served, scratch / "faults.json", scratch / "requests.log"
        self.place = KeptPort()
        self.port = self.place.number
        self.url = f"http://127.0.0.1:{self.port}/sets/{served.name}"
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False
        self.fail()
        self.log.touch()

    def start(self) -> None:
        if self.closed:  # a timer of a test that has failed meanwhile
            return
        command = [sys.executable, __file__, self.served, str(self.port), self.faults, self.log]
        self.process = process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End it for good."""
        self.closed = True
        self.kill()
        self.place.close()

    def fail(self, **faults: object) -> None:
        """Do wrong from now on what these faults say, and nothing else."""
        partial = self.faults.with_suffix(".new")
        partial.write_text(json.dumps(faults))
        partial.rename(self.faults)

    def requests(self) -> list[tuple[str, str, str | None, str | None]]:
        """Method, file, range and rank of every request."""
        whole = self.log.read_text().rpartition("\n")[0]  # of a line that is being written, a part may be there
        return [tuple(json.loads(line)) for line in whole.splitlines()]

    def fetched(self, rank: str | None = None) -> Counter[str]:
        """How often each file was asked for."""
        return Counter(name for _, name, _, who in self.requests() if rank is None or who == rank)

    def get(self, name: str) -> bytes:
        with urlopen(f"{self.url}/{name}") as answer:
            return answer.read()


@contextmanager
def serving(served: Path, scratch: Path):
    scratch.mkdir(exist_ok=True)
    server = ShardServer(served, scratch)
    try:
        server.start()
        yield server
    finally:
        server.close()


def end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    Handler.folder, Handler.faults, Handler.log = Path(sys.argv[1]), Path(sys.argv[3]), Path(sys.argv[4])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
