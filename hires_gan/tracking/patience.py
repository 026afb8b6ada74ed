"""A store that is away for a while, and a request that cannot wait in a journal: it is made again for a minute."""

from __future__ import annotations

import errno
import itertools
import socket
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from hires_gan.progress import say
from hires_gan.tracking.store import chain_of, reason

PATIENCE = 60.0
"""Seconds: as long as a run that ends waits for its store."""
_PAUSES = (1.0, 2.0, 4.0)
_LONGEST_PAUSE = 5.0
_OVERLOADED = (408, 429, 502, 503, 504)
"""Of HTTP: the same request may be answered later."""
_BROKEN = "too many 500 "
"""In the words for a request that MLflow's own client gave up: an error of the server's, not too much to do."""
_UNREACHABLE = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)
_LOCKED = "database is locked"
"""SQLite's, while something else writes."""

T = TypeVar("T")


def patiently(ask: Callable[[], T], place: str) -> T:
    """What a store answers; one that is away or overloaded is asked again for `PATIENCE` seconds, which is said once.

    Args:
        ask: Makes a request. One that failed may have arrived all the same: making it again has to change nothing.
        place: The store's name for people, without secrets.

    Raises:
        Exception: Whatever `ask` raises: at once where the same request would get the same answer, else that of the
            last attempt.
    """
    try:
        return ask()
    except Exception as problem:
        if not is_passing(problem):
            raise
        say(f"MLflow at {place} does not answer ({reason(problem)}): it is asked again for {PATIENCE:g} s")
    answer = _again(ask, time.monotonic() + PATIENCE)
    say(f"MLflow at {place} answers again")
    return answer


def _again(ask: Callable[[], T], end: float) -> T:
    pauses = itertools.chain(_PAUSES, itertools.repeat(_LONGEST_PAUSE))
    while True:
        time.sleep(max(0.0, min(next(pauses), end - time.monotonic())))
        try:
            return ask()
        except Exception as problem:
            if time.monotonic() >= end or not is_passing(problem):
                raise


def is_passing(problem: BaseException) -> bool:
    """Whether a store could not be reached, or has too much to do; not where it refuses, or a disk is full."""
    links = list(chain_of(problem))
    status = next(filter(None, map(_status, links)), None)
    return any(map(_is_unreached, links)) if status is None else status in _OVERLOADED


def _status(problem: BaseException) -> int | None:
    """That of an answer; None if this is about none."""
    from mlflow.exceptions import RestException

    if isinstance(problem, RestException):
        return int(problem.get_http_status_code())
    status = getattr(getattr(problem, "response", None), "status_code", None)  # requests' own, of an artifact
    return status if isinstance(status, int) else None


def _is_unreached(problem: BaseException) -> bool:
    """Whether a connection was refused, cut or too slow, led nowhere, or ended in an answer that asks to come again."""
    import requests
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    if isinstance(problem, DBAPIError):
        if isinstance(problem.orig, sqlite3.Error):
            return _LOCKED in str(problem.orig)
        return isinstance(problem, (OperationalError, InterfaceError))
    if isinstance(problem, requests.RequestException):
        given_up = isinstance(problem, requests.exceptions.RetryError) and _BROKEN not in str(problem)
        lost = isinstance(problem, (requests.ConnectionError, requests.Timeout))
        return given_up or (lost and not isinstance(problem, requests.exceptions.SSLError))
    away = isinstance(problem, (ConnectionError, TimeoutError, socket.gaierror))
    return away or (isinstance(problem, OSError) and problem.errno in _UNREACHABLE)
