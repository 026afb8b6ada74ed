"""Machines for tests: network namespaces, each with a name, an address and processes of its own, on one switch.

Nothing of the real machine's network is touched, and nothing is left behind.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX = "hires-gan"
_numbers = itertools.count()
# As a cluster's name service would, a file tells each machine the names of all; gloo looks up its own there.
_ENTER = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """One machine on the switch.

    Attributes:
        name: Its own, which the others may know.
        address: IPv4.
    """

    name: str
    address: str
    namespace: str
    switch: str
    port: str
    hosts: Path

    def start(self, command: list[str], *more: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command on the machine; the pid is that of the command itself.

        Args:
            command: What to start.
            *more: Options of `unshare`, beside those that make a machine; with --fork the pid is that of unshare.
            **options: Of `subprocess.Popen`.
        """
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", *more, "sh", "-c", _ENTER]
        return subprocess.Popen([*inside, str(self.hosts), self.name, *command], text=True, **options)

    def pull_cable(self) -> None:
        """Between machine and switch: packets are lost in silence, and connections stay."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def plug_in(self) -> None:
        """Undo `pull_cable`."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    def kill_all(self) -> None:
        """End every process of the machine by SIGKILL."""
        _kill(self.namespace)


@contextmanager
def machines(names: int | list[str], known: bool = True) -> Iterator[list[Machine]]:
    """Machines that reach each other, and nothing else.

    Args:
        names: What they are called: the first part of a name with dots is a machine's own, and the others may call it
            by both. A number makes as many names.
        known: Whether they know each other's names, and each its own.
    """
    if isinstance(names, int):
        names = [f"machine-{number}" for number in range(names)]
    _sweep()
    prefix = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
    addresses = {name: f"10.77.0.{number + 1}" for number, name in enumerate(names)}
    with ExitStack() as stack:
        hosts = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hosts"
        told = {"localhost": "127.0.0.1"} | (addresses if known else {})
        hosts.write_text("".join(f"{at} {' '.join({name, name.split('.')[0]})}\n" for name, at in told.items()))
        switch = _add(stack, f"{prefix}-switch")
        _ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        made = []
        for number, (name, address) in enumerate(addresses.items()):
            namespace = _add(stack, f"{prefix}-{number}")
            machine = Machine(name.split(".")[0], address, namespace, switch, f"port-{number}", hosts)
            _connect(machine)
            made.append(machine)
        yield made


@functools.cache
def missing() -> str | None:
    """Why there can be no machines here, for people; None if there can."""
    try:
        with machines(1) as (machine,):
            process = machine.start(["true"], stderr=subprocess.PIPE)
            _, said = process.communicate(timeout=60)
            return said.strip() if process.returncode else None
    except FileNotFoundError as error:
        return f"there is no program {error.filename}"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()


def _connect(machine: Machine) -> None:
    inside = ("-n", machine.namespace)
    ends = ("eth0", "netns", machine.namespace, "type", "veth", "peer", "name", machine.port, "netns", machine.switch)
    _ip("link", "add", *ends)
    _ip("-n", machine.switch, "link", "set", machine.port, "master", "bridge", "up")
    _ip(*inside, "address", "add", f"{machine.address}/24", "dev", "eth0")
    for interface in ("lo", "eth0"):
        _ip(*inside, "link", "set", interface, "up")


def _sweep() -> None:
    """Remove what tests have left that were killed themselves; one process at a time, or two would remove the same."""
    with (Path(tempfile.gettempdir()) / f"{_PREFIX}-sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for line in _ip("netns", "list").splitlines():
            owner = re.match(rf"{_PREFIX}-(\d+)-", line)
            if owner and not Path(f"/proc/{owner[1]}").exists():
                _remove(line.split()[0])


def _add(stack: ExitStack, namespace: str) -> str:
    _ip("netns", "add", namespace)
    stack.callback(_remove, namespace)
    return namespace


def _remove(namespace: str) -> None:
    _kill(namespace)
    _ip("netns", "delete", namespace)


def _kill(namespace: str) -> None:
    """Until none is left: one may start another meanwhile."""
    while pids := _ip("netns", "pids", namespace).split():
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
