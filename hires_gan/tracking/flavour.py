"""A model flavour of our own: an `MLmodel` file and the checkpoint directory as it is; nothing in it executes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hires_gan.checkpoint import STATE
from hires_gan.data.cache_locks import locked
from hires_gan.data.demo import cache_folder
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.names import EVALUATION
from hires_gan.tracking.registry import find_version, register, what_is_there
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import (
    find_run,
    if_known,
    is_out_of_room,
    load_mlflow,
    missing_file,
    open_store,
    reason,
    redact,
    resolve_uri,
)

FLAVOUR = "hires_gan"
_OTHER_STORE = "set MLFLOW_TRACKING_URI to the store that holds it"


def log_model(client: Any, run_id: str, checkpoint_dir: Path, card: ModelCard) -> None:
    """Log a checkpoint directory as a model of a run, and register it if the card says so.

    May be repeated after a failure in the middle: what is there already is not made again.

    Args:
        client: an MlflowClient.
        run_id: the run that trained it.
        checkpoint_dir: a complete checkpoint directory.
        card: what the model is.
    """
    load_mlflow()
    from mlflow.entities import LoggedModelOutput

    name = f"generator-{card.nimg}"
    values = _evaluation(client, run_id, card.nimg)
    model = _find_model(client, run_id, name) or _create_model(client, run_id, name, card)
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            _write_mlmodel(Path(folder), model, run_id, checkpoint_dir.name, card)
            _write_configuration(Path(folder), card)
            client.log_model_artifacts(model.model_id, folder)
        client.log_model_artifacts(model.model_id, str(checkpoint_dir), checkpoint_dir.name)
        _link_metrics(client, run_id, model, values)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=card.nimg)])
        client.finalize_logged_model(model.model_id, "READY")
    if card.register_as is not None:
        register(client, run_id, model, card, {metric.key: metric.value for metric in values})


def _evaluation(client: Any, run_id: str, nimg: int) -> list[Any]:
    """The points of the run's evaluation at `nimg`, as the store has them."""
    keys = sorted(key for key in client.get_run(run_id).data.metrics if key.startswith(EVALUATION))
    return [point for key in keys for point in client.get_metric_history(run_id, key) if point.step == nimg]


def _link_metrics(client: Any, run_id: str, model: Any, points: list[Any]) -> None:
    """Let the model have the points, too.

    They are logged once more as they are, in every digit: the store knows them, and the run has each of them once.
    """
    from mlflow.entities import Metric

    again = [Metric(one.key, one.value, one.timestamp, one.step, model_id=model.model_id) for one in points]
    if again:
        client.log_batch(run_id, metrics=again)


def _find_model(client: Any, run_id: str, name: str) -> Any:
    experiment = client.get_run(run_id).info.experiment_id
    wanted = f"name = '{name}' AND source_run_id = '{run_id}'"
    found = client.search_logged_models([experiment], filter_string=wanted, max_results=1)
    return found[0] if found else None


def _create_model(client: Any, run_id: str, name: str, card: ModelCard) -> Any:
    return client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        model_type="generator",
        params={"recipe": card.recipe, "resolution": str(card.resolution), "nimg": str(card.nimg)},
        tags={"flavor": FLAVOUR},
    )


def _write_mlmodel(folder: Path, model: Any, run_id: str, checkpoint: str, card: ModelCard) -> None:
    from mlflow.models import Model

    description = Model(
        artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
    )
    description.add_flavor(
        FLAVOUR,
        checkpoint=checkpoint,
        format_version=card.format_version,
        recipe=card.recipe,
        resolution=card.resolution,
        nimg=card.nimg,
    )
    description.save(str(folder / "MLmodel"))


def _write_configuration(folder: Path, card: ModelCard) -> None:
    """Put the resolved configuration beside the MLmodel file, without secrets."""
    if card.config and (source := Path(card.config)).is_file():
        (folder / source.name).write_text(redact(source.read_text()))


def fetch_model(uri: str, tracking_uri: str | None = None) -> Path:
    """Download a model of our flavour into the user's cache.

    Processes may ask at once: one of them downloads, and the others wait for it. What lies in the cache is checked by
    the sums that the checkpoint keeps, and fetched again if it is damaged.

    Args:
        uri: `models:/NAME/VERSION`, `models:/NAME/latest`, `models:/NAME@ALIAS`, `models:/MODEL_ID` or
            `runs:/RUN/PATH`.
        tracking_uri: the store; None takes MLFLOW_TRACKING_URI, else the store of `./runs`.

    Returns:
        The checkpoint directory in it. A whole earlier download of the same model is used again.

    Raises:
        UsageError: what is asked for is no model, or no such store, model, version, alias or run is there.
        Failure: the store does not answer; a model that is not logged to its end, damaged, or of another flavour; a
            cache that cannot be written.
    """
    store = tracking_uri or resolve_uri(TrackingSettings(), Path("runs"))
    if (path := missing_file(store)) is not None:
        raise UsageError(f"{uri}: there is no MLflow store at {path}: set MLFLOW_TRACKING_URI to the one that holds it")
    client = open_store(store, f"start the server, or {_OTHER_STORE}")
    try:
        location = _location(client, uri, redact(store))
        folder = _cache() / hashlib.sha256(f"{store} {location}".encode()).hexdigest()[:32]
        return _fetched(uri, location, store, folder)
    except Failure:
        raise
    except Exception as problem:
        raise Failure(
            f"{uri} cannot be fetched from MLflow at {redact(store)} ({reason(problem)}): {_remedy(problem)}"
        ) from problem


def _remedy(problem: Exception) -> str:
    if is_out_of_room(problem):
        return f"make room in {_cache()}, or set XDG_CACHE_HOME to a folder with more of it"
    return (
        "see whether its files are where the store keeps its artifacts (a SQLite store that was moved keeps their old "
        "place), or take a checkpoint in the run's own folder"
    )


def _location(client: Any, uri: str, place: str) -> str:
    """Where the artifacts of a model lie, which never change; for what is no logged model of a run, the URI itself."""
    if run := re.fullmatch(r"runs:/(?P<id>\w+)/(?P<name>[^'/]+)", uri):
        return _in_run(client, uri, place, run["id"], run["name"])
    parts = re.fullmatch(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))?", uri)
    if parts is None:
        raise UsageError(
            f"{uri} is no model: write models:/NAME/VERSION, models:/NAME/latest, models:/NAME@ALIAS or runs:/RUN/PATH"
        )
    if parts["version"] is None and parts["alias"] is None:
        return _logged(client, uri, place, parts["name"])
    version = find_version(client, parts["name"], parts["version"], parts["alias"])
    if version is None:
        raise UsageError(
            f"{uri}: MLflow at {place} {what_is_there(client, parts['name'])}; give another one, or {_OTHER_STORE}"
        )
    _ready(uri, version)
    return str(client.get_model_version_download_uri(parts["name"], version.version))


def _in_run(client: Any, uri: str, place: str, run_id: str, name: str) -> str:
    if find_run(client, run_id) is None:
        raise UsageError(f"{uri}: MLflow at {place} has no run {run_id}; give another one, or {_OTHER_STORE}")
    model = _find_model(client, run_id, name)
    return uri if model is None else str(_ready(uri, model).artifact_location)


def _logged(client: Any, uri: str, place: str, model_id: str) -> str:
    model = if_known(lambda: client.get_logged_model(model_id))
    if model is None:
        raise UsageError(
            f"{uri}: MLflow at {place} has no logged model {model_id}; write models:/NAME/VERSION for a registered one,"
            f" models:/NAME/latest for its newest, or {_OTHER_STORE}"
        )
    return str(_ready(uri, model).artifact_location)


def _ready(uri: str, model: Any) -> Any:
    """A logged model or a version of a registered one, if all of it is there.

    Raises:
        Failure: it is still being logged, or that was given up.
    """
    if str(model.status) != "READY":
        raise Failure(
            f"{uri} is {model.status} in MLflow, not READY: not all of its files are there; wait for the run that logs "
            f"it, run that run's command again if it has ended, or take another model"
        )
    return model


def _fetched(uri: str, location: str, store: str, folder: Path) -> Path:
    """The checkpoint of a model: of the copy that is kept, if it is whole, else of one that is made now.

    A run's own folder may change: it is downloaded each time, and each state of it has a copy by itself, which nobody
    replaces while others read it.
    """
    changes = location == uri
    found = None if changes else _kept(folder, uri)  # without the lock: ranks need not wait for each other to read
    if found is None:
        with _held(folder, uri):
            found = None if changes else _kept(folder, uri)
            if found is None:
                found = _download(uri, location, store, folder, changes)
    return found


def _kept(folder: Path, uri: str) -> Path | None:
    """The checkpoint of a copy; None if there is none, or it is damaged."""
    try:
        return _whole(folder, uri) if folder.is_dir() else None
    except (Failure, OSError):
        return None


@contextlib.contextmanager
def _held(folder: Path, uri: str) -> Iterator[None]:
    """Hold the lock of a model's place in the cache; it ends with its process, however that ends."""
    told: list[bool] = []

    def wait() -> None:
        if not told:
            say(f"waiting for another process that fetches {uri}")
            told.append(True)

    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), wait))
        except OSError as problem:
            raise Failure(
                f"{uri} cannot be kept in {folder.parent} ({problem.strerror}): set XDG_CACHE_HOME to a folder that "
                f"can be written and has POSIX locks"
            ) from problem
        yield


def _cache() -> Path:
    return cache_folder() / "models"


def _download(uri: str, location: str, store: str, folder: Path, changes: bool) -> Path:
    """Download beside the place and move there what is whole; who holds the lock does this alone.

    Raises:
        Failure: what was downloaded is damaged, or of another flavour; nothing of it is kept.
    """
    from mlflow.artifacts import download_artifacts

    if folder.exists():
        say(f"warning: the copy of {uri} in {folder} is damaged: it is fetched again")
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    try:
        place = str(scratch / "model")
        found = Path(download_artifacts(artifact_uri=location, dst_path=place, tracking_uri=store))
        name = _whole(found, uri).name
        if changes:
            folder = folder.with_name(f"{folder.name}-{_digest(found)[:16]}")
        _put(found, folder, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return (folder / name).resolve()


def _put(found: Path, folder: Path, scratch: Path) -> None:
    """Let a whole copy take its place, unless it is there already."""
    if _kept(folder, str(folder)) is not None:
        return
    if folder.exists():
        folder.rename(scratch / "damaged")
    found.rename(folder)


def _digest(folder: Path) -> str:
    """The sha256 of all files in a folder and of their names."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)} {_sum(file)}\n".encode())
    return digest.hexdigest()


def _whole(folder: Path, uri: str) -> Path:
    """The checkpoint directory that the MLmodel file names, if its files are those that were written.

    Raises:
        Failure: the model is of another flavour, or damaged.
    """
    found = _checkpoint_in(folder, uri)
    try:
        files = json.loads((found / STATE).read_text(encoding="utf-8")).get("files", {})
        wrong = [name for name, expected in files.items() if _sum(found / name) != expected]
    except (OSError, ValueError, AttributeError) as problem:
        raise Failure(
            f"{uri} is damaged ({reason(problem)}): take another version, or the run's own folder"
        ) from problem
    if wrong:
        raise Failure(
            f"{uri} is damaged: {', '.join(wrong)} in it is not what was written (the sha256 differs): take another "
            f"version, or the run's own folder"
        )
    return found


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _checkpoint_in(folder: Path, uri: str) -> Path:
    """The checkpoint directory that the MLmodel file names.

    Raises:
        Failure: the model is of another flavour, or damaged.
    """
    try:
        description = yaml.safe_load((folder / "MLmodel").read_text())
        name = str(description["flavors"][FLAVOUR]["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as problem:
        raise Failure(f"{uri} is no model of hires_gan: its MLmodel file names no '{FLAVOUR}' flavour") from problem
    checkpoint = (folder / name).resolve()
    if checkpoint.parent != folder.resolve() or not checkpoint.is_dir():
        raise Failure(f"{uri} is damaged: its MLmodel file names the checkpoint {name!r}, which is not in it")
    return checkpoint
