"""The MLflow store of a run: where it is, whether it answers, and the client that speaks to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hires_gan.errors import Failure
from hires_gan.tracking.schema import check_schema
from hires_gan.tracking.settings import TrackingSettings

PROBE_SECONDS = 8
"""How long a server may take to answer at the start."""
REMEDY = "start the server, correct tracking.uri, or set tracking.uri=null for a local SQLite store"
"""What helps where training has no server; other commands take their store from elsewhere, and pass their own."""
_HIDDEN = "***"
"""What stands in an address in place of a password."""
_SQLITE = "sqlite:///"
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What a store answers that has no such run or version: which of them depends on the kind of store."""
_NO_ROOM = ("disk is full", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
"""SQLite's words, and the system's: MLflow passes on a file's error as text."""
_LONGEST = 300
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


T = TypeVar("T")


def redact(text: str) -> str:
    """The text without the user names, passwords and tokens of the URIs in it."""
    text = re.sub(r"://[^/\s]*@", f"://{_HIDDEN}@", text)
    return re.sub(r"(?i)([?&](?:\w*password|\w*token|\w*secret|\w*key)=)[^&\s'\"]+", rf"\1{_HIDDEN}", text)


def is_redacted(uri: str) -> bool:
    """Whether a URI lacks what `redact` has taken out of it."""
    return _HIDDEN in uri


def chain_of(problem: BaseException) -> Iterator[BaseException]:
    """An error, those that it was raised from, and those that were being handled then, each once.

    Libraries leave the system's own error now in the one, now in the other.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [problem]
    while left:
        link = left.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            left += [link.__context__, link.__cause__]


def reason(problem: BaseException) -> str:
    """What went wrong in one short line, fit to be shown: the system's word for it if a connection failed."""
    for link in chain_of(problem):
        if isinstance(link, TimeoutError):
            return "timed out"
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        if isinstance(link, http.client.RemoteDisconnected):  # by a server that ended
            return "the connection was lost"
    return " ".join(map(_shortened, _told(str(problem)))) or type(problem).__name__


def _told(text: str) -> Iterator[str]:
    """The first line; where that is a heading, those below it, too, up to the one that says something."""
    for line in filter(None, map(str.strip, text.splitlines())):
        is_heading = line.endswith((":", "#"))  # `##### File x #####` stands above what became of x
        yield f"{line.strip('# ')}:" if line.endswith("#") else line
        if not is_heading:
            return


def _shortened(text: str) -> str:
    text = redact(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_out_of_room(problem: BaseException) -> bool:
    """Whether a disk is full, be it said by an error's number or by its text."""
    return any(words in str(problem) for words in _NO_ROOM)


def resolve_uri(settings: TrackingSettings, run_dir: Path, given: str = "tracking.uri") -> str:
    """The store's URI: `tracking.uri`, else MLFLOW_TRACKING_URI, else SQLite in `run_dir`; SQLite paths are absolute.

    Args:
        settings: the `tracking` block.
        run_dir: the folder of all runs.
        given: what the user calls the URI in `settings`, for the sentence on one that is wrong.

    Raises:
        Failure: a SQLite URI without a path, or with a `?` or `%` in it (SQLAlchemy reads these as options and codes).
    """
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{run_dir / 'mlflow.db'}"
    if not uri.startswith("sqlite:"):
        return uri
    path = uri.removeprefix(_SQLITE)
    location = str(Path(path).absolute())
    if path in ("", uri) or "?" in location or "%" in location:
        name = given if settings.uri else "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "run.dir"
        raise Failure(
            f"{_SQLITE}{location}, by {name}, cannot be a SQLite store: choose a path to a file, without '?' or '%', "
            "as in sqlite:///path/to/mlflow.db"
        )
    return f"{_SQLITE}{location}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI that `resolve_uri` returned; None for any other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def missing_file(uri: str) -> Path | None:
    """The file of a SQLite store that is not there, which opening the store would make; None for any other store."""
    path = sqlite_path(uri)
    return None if path is None or path.exists() else path


def load_mlflow() -> Any:
    """Import MLflow, quiet and without its telemetry; what the user set in the environment stays.

    Its own retries take minutes per request: the sender has a back-off of its own, and says when it waits.
    """
    quiet = "MLFLOW_LOGGING_LEVEL" not in os.environ
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    if quiet:  # its errors reach the user as exceptions that we report in one line
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


@contextlib.contextmanager
def translated(uri: str, remedy: str = REMEDY) -> Iterator[None]:
    """Turn whatever a store throws into one sentence.

    Args:
        uri: the store.
        remedy: what helps where it is a server or a database of one.

    Raises:
        Failure: names the store, what happened and the remedy.
    """
    try:
        yield
    except Failure:
        raise
    except Exception as problem:
        if "out-of-date database schema" in str(problem):
            raise Failure(
                f"the MLflow store {redact(uri)} was made by another version of MLflow: take a copy of it, "
                f"then run `mlflow db upgrade {redact(uri)}`"
            ) from problem
        helps = _sqlite_remedy(problem) if sqlite_path(uri) else remedy
        raise Failure(f"MLflow at {redact(uri)} cannot be used ({reason(problem)}): {helps}") from problem


def _sqlite_remedy(problem: BaseException) -> str:
    return "make room on its disk" if is_out_of_room(problem) else "check that its folder can be written to"


def open_store(uri: str, remedy: str = REMEDY) -> Any:
    """Connect to a store, making a SQLite one where there is none, and return its MlflowClient.

    Two runs may start on the same fresh store at once: a lock file beside it lets one of them create the tables.

    Args:
        uri: the store.
        remedy: what helps where a server does not answer: each command takes its store from somewhere else.

    Raises:
        Failure: the store does not answer within seconds, refuses, or is of another MLflow version.
    """
    with translated(uri, remedy):
        _check_answers(uri, remedy)
        mlflow = load_mlflow()
        with store_lock(uri):
            if _scheme(uri) in (*_PORTS, "sqlite"):
                check_schema(uri, redact(uri))
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    return client


def if_known(ask: Callable[[], T]) -> T | None:
    """What a store answers; None where it says that it has no such thing.

    Args:
        ask: Asks it for one thing.
    """
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as problem:
        if problem.error_code not in _UNKNOWN:
            raise
        return None


def find_run(client: Any, run_id: str) -> Any:
    """MLflow's run, a deleted one, too; None where the store has none of that id."""
    return if_known(lambda: client.get_run(run_id))


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The id of the experiment `name`, created if there is none, its artifacts beside a SQLite store.

    Raises:
        Failure: the experiment was deleted, or the store refuses.
    """
    with translated(uri), store_lock(uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            found = client.get_experiment(_create_experiment(client, uri, name))
        if found.lifecycle_stage != "active":
            raise Failure(
                f"the experiment '{name}' is deleted in MLflow at {redact(uri)}: restore it with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or choose another name in tracking.experiment"
            )
        return str(found.experiment_id)


def _create_experiment(client: Any, uri: str, name: str) -> str:
    path = sqlite_path(uri)
    location = str(path.parent / "mlartifacts") if path else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except Exception:  # on a server another run may have been quicker
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)


@contextlib.contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Hold the lock beside a SQLite store, to write by what was read; nothing for a server, which has its own."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _check_answers(uri: str, remedy: str) -> None:
    """Ask a server for a sign of life; MLflow's own way of finding out takes minutes.

    Raises:
        Failure: no answer, no access, or something that is not MLflow.
    """
    parts = urlsplit(uri)
    kind = _scheme(uri)
    if kind in ("http", "https"):
        _check_http(uri, remedy)
    elif kind in _PORTS:
        with socket.create_connection((parts.hostname or "localhost", parts.port or _PORTS[kind]), PROBE_SECONDS):
            pass


def _scheme(uri: str) -> str:
    """`postgresql` of `postgresql+psycopg://...`."""
    return urlsplit(uri).scheme.split("+")[0]


def _check_http(uri: str, remedy: str) -> None:
    load_mlflow()
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            timeout=PROBE_SECONDS,
            max_retries=0,
            raise_on_status=False,
        )
    except Exception as problem:
        raise Failure(f"MLflow at {redact(uri)} does not answer ({reason(problem)}): {remedy}") from problem
    if answer.status_code == 403 and "Invalid Host header" in answer.text:
        host = urlsplit(uri).netloc.rpartition("@")[2]
        raise Failure(
            f"MLflow at {redact(uri)} does not let itself be called {host} (status 403): start the server with "
            f"--allowed-hosts {host}, or with MLFLOW_SERVER_ALLOWED_HOSTS={host}"
        )
    if answer.status_code in (401, 403):
        raise Failure(
            f"MLflow at {redact(uri)} refuses access (status {answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code != 200:
        # A proxy in front of a server that is not up yet: whoever waits for it sees that by the cause.
        away = ConnectionError(f"status {answer.status_code}") if answer.status_code in (502, 503, 504) else None
        raise Failure(
            f"{redact(uri)} answers with status {answer.status_code}, not as an MLflow server does: {remedy}"
        ) from away
