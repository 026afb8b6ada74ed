"""Pods wait for each other, whoever comes first, goes meanwhile, or knocks without being one of them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import permutations

import pytest
from free_ports import free_port

Start = Callable[[int], "subprocess.Popen[str]"]
NODES = 3


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start(port: int) -> Iterator[Start]:
    """Starts a pod's part by its number."""
    started: list[subprocess.Popen[str]] = []

    def process(index: int) -> subprocess.Popen[str]:
        words = ["127.0.0.1", str(port), str(NODES), str(index)]
        started.append(subprocess.Popen([sys.executable, "-m", "hires_gan.training.meeting", *words], text=True))
        return started[-1]

    yield process
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            one.kill()
        one.wait(120)


def knock(port: int, text: bytes) -> socket.socket:
    """Connect to the first pod, as soon as it listens, and say something."""
    deadline = time.monotonic() + 120
    while True:
        try:
            visitor = socket.create_connection(("127.0.0.1", port), timeout=120)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    visitor.sendall(text)
    return visitor


@pytest.mark.parametrize("order", list(permutations(range(NODES)))[::2])
def test_all_go_when_all_are_there(start: Start, port: int, order: tuple[int, ...]) -> None:
    pods = [start(index) for index in order[:-1]]
    time.sleep(1.0)
    assert [pod.poll() for pod in pods] == [None] * (NODES - 1)
    pods.append(start(order[-1]))
    assert [pod.wait(120) for pod in pods] == [0] * NODES
    with socket.create_server(("127.0.0.1", port)):  # the launcher's, next
        pass


def test_one_that_has_gone_is_waited_for_anew(start: Start, port: int) -> None:
    first, gone = start(0), start(1)
    time.sleep(1.5)
    gone.kill()
    gone.wait(120)
    last = start(2)
    time.sleep(1.0)
    assert first.poll() is last.poll() is None
    assert [pod.wait(120) for pod in (start(1), first, last)] == [0, 0, 0]


def test_a_first_pod_that_is_started_anew_is_found(start: Start) -> None:
    second, third, gone = start(1), start(2), None
    gone = knocked_down(start(0))
    assert gone != 0
    assert [pod.wait(120) for pod in (start(0), second, third)] == [0, 0, 0]


def knocked_down(pod: subprocess.Popen[str]) -> int:
    pod.kill()
    return pod.wait(120)


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n\r\n", b"0\n", b"3\n", b"-1\n", b"\xff\xfe", b""])
def test_who_is_no_pod_of_this_run_is_not_counted(start: Start, port: int, text: bytes) -> None:
    first = start(0)
    knock(port, text).close()
    pods = [start(1)]
    time.sleep(1.0)
    assert first.poll() is None
    pods.append(start(2))
    assert [pod.wait(120) for pod in (first, *pods)] == [0, 0, 0]


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_ends_the_waiting(start: Start, index: int) -> None:
    pod = start(index)
    time.sleep(1.0)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(120) == -signal.SIGTERM
