"""Pods wait here until all of them are there: `python -m hires_gan.training.meeting ADDRESS PORT NODES INDEX`.

A launcher gives up when others do not come within minutes, which would count as a failure; a node for a pod that was
preempted may take hours to find. Pods wait as long as it takes, and a signal ends that at once.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time

from hires_gan.progress import say

_GO = b"go\n"
_PAUSE = 1.0
"""Seconds between two attempts to reach the first pod."""
_REMINDER = 60.0
"""Seconds between two lines that say who is missing."""


def meet(address: str, port: int, nodes: int, index: int) -> None:
    """Return when all pods are there.

    Args:
        address: The first pod's name.
        port: Where it listens; free again behind the meeting.
        nodes: How many pods there are.
        index: This one's number, from 0.
    """
    if nodes == 1:
        return
    if index == 0:
        _receive(port, nodes)
    else:
        _visit(address, port, index)


def _receive(port: int, nodes: int) -> None:
    """Let the others in, and let all of them go at once. Those that have ended meanwhile are waited for anew."""
    there: dict[int, socket.socket] = {}
    reminder = _Reminder()
    with socket.create_server(("", port), backlog=nodes) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(there) < nodes - 1:
            reminder.say(f"waiting for pods {_listed(nodes, there)} of {nodes}")
            for key, _ in selector.select(_PAUSE):
                if key.fileobj is server:
                    selector.register(server.accept()[0], selectors.EVENT_READ)
                    continue
                visitor = key.fileobj
                assert isinstance(visitor, socket.socket)
                number = _number_of(visitor, nodes)
                if number is None:
                    selector.unregister(visitor)
                    visitor.close()
                    there = {known: one for known, one in there.items() if one is not visitor}
                else:
                    there[number] = visitor
        for visitor in there.values():
            with contextlib.suppress(OSError):  # it has just ended: the launcher will miss it
                visitor.sendall(_GO)
        for visitor in there.values():
            visitor.close()


def _number_of(visitor: socket.socket, nodes: int) -> int | None:
    """Which pod says that it is there; None if it has gone, or is none of them."""
    try:
        text = visitor.recv(32).decode("ascii", "replace").strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) < nodes else None


def _listed(nodes: int, there: dict[int, socket.socket]) -> str:
    return ", ".join(str(number) for number in range(1, nodes) if number not in there)


def _visit(address: str, port: int, index: int) -> None:
    """Tell the first pod, again and again until it lets go: it may not be there yet, or be started anew."""
    reminder = _Reminder()
    while not _let_go(address, port, index):
        reminder.say(f"waiting for the first pod at {address}:{port}, and those for which it waits")
        time.sleep(_PAUSE)


def _let_go(address: str, port: int, index: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=10) as first:
        first.settimeout(None)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        first.sendall(f"{index}\n".encode())
        return first.recv(len(_GO)) == _GO
    return False


class _Reminder:
    """Says what is waited for: after a while, and then not too often."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 10

    def say(self, what: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _REMINDER
            say(what)


if __name__ == "__main__":
    meet(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
