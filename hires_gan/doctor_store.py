"""What the doctor finds out about the MLflow store of a run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hires_gan.doctor_devices import Finding
from hires_gan.doctor_folders import nearest_folder, rights, unwritable
from hires_gan.doctor_pod import in_pod
from hires_gan.errors import Failure
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import open_store, redact, resolve_uri, sqlite_path


def store(settings: TrackingSettings, folder: Path) -> Finding:
    """Whether the store takes runs; a server is asked, and told to be silent within seconds.

    Args:
        settings: The `tracking` block.
        folder: run.dir, in which a store in a file would be.
    """
    try:
        uri = resolve_uri(settings, folder)
        file = sqlite_path(uri)
        if file is not None:
            return _file(file)
        open_store(uri)
    except Failure as failure:
        return _failed(failure)
    return Finding("ok", f"{redact(uri)} answers")


def _failed(failure: Failure) -> Finding:
    """What a server did not do: nothing at all, or not what was asked of it."""
    passing = _unreached(failure)
    if not in_pod():
        return Finding("wrong", str(failure), passing=passing)
    if passing:
        remedy = (
            "from a pod, the address is http://SERVICE.NAMESPACE:PORT: see whether that Service has a pod behind it "
            "with `kubectl get endpointslices`, and whether a network policy lets this pod reach it"
        )
    else:
        remedy = "in a pod, variables come from its ConfigMap and its Secret: see which with `kubectl describe pod`"
    return Finding("wrong", str(failure), remedy, passing)


def _unreached(failure: Failure) -> bool:
    """Whether a connection failed: it was refused, timed out, or led to no known name."""
    link: BaseException | None = failure
    while link is not None:
        if isinstance(link, OSError) and not isinstance(link, ValueError):  # requests' InvalidURL is both
            return True
        link = link.__cause__ or link.__context__
    return False


def _file(file: Path) -> Finding:
    """Nothing is made here: the first run makes the file."""
    nearest = nearest_folder(file.parent)
    remedy = f"choose another run.dir, or tracking.uri{rights('write')}"
    if not nearest.is_dir() or (why := unwritable(nearest)):
        return Finding("wrong", f"{nearest} cannot take {file.name} ({why if nearest.is_dir() else 'a file'})", remedy)
    if not file.exists():
        return Finding("ok", f"{file}, made by the first run")
    try:
        _try_out(file)
    except sqlite3.Error as error:
        return Finding("wrong", f"{file} cannot be used ({error})", remedy)
    return Finding("ok", str(file))


def _try_out(file: Path) -> None:
    connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=5)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.rollback()
    finally:
        connection.close()
