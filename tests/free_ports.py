"""Ports for programs under test: found in one process, and taken later in another."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and the last port that Linux gives to whoever asks for any: connections, and programs that bind to 0."""
_FIRST, _USUAL = 10081, 32768
"""The first port that no browser refuses, and the first one that Linux gives if nobody has said otherwise."""
_TRIES = 100


def free_port() -> int:
    """A port of this machine on which nothing listens, and which nobody gets who does not name it.

    One that Linux has given and that was closed again may be given to any connection that is made meanwhile.
    """
    # Not the seeded generator, which may say the same in several processes.
    tried = random.SystemRandom().sample(_named_only(), _TRIES)
    return next(port for port in tried if _is_free(port))


def _named_only() -> range:
    given = int(_GIVEN.read_text().split()[0])
    return range(_FIRST, given if given >= _FIRST + _TRIES else _USUAL)


def _is_free(port: int) -> bool:
    with socket.socket() as found:
        try:
            found.bind(("", port))
        except OSError:
            return False
        return True
