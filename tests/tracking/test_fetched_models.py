"""Models in the user's cache: whole ones alone, whoever fetches at once, is killed, or finds a damaged copy."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.tracking import flavour
from hires_gan.tracking.card import ModelCard
from hires_gan.tracking.flavour import fetch_model, log_model
from hires_gan.tracking.store import open_store

CARD = ModelCard(recipe="progressive", resolution=64, format_version=1, nimg=4000, register_as="faces")
URI = "models:/faces/1"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, in a folder, with a registered model and the run that logged it."""
    folder = tmp_path_factory.mktemp("logged")
    client = open_store(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("e", artifact_location=str(folder / "artifacts"))
    run = client.create_run(experiment).info.run_id
    parts = {"generator.average": {"w": torch.arange(4.0)}, "generator": {"w": torch.zeros(4)}}
    saved = checkpoint.write(folder / "checkpoints", 4000, parts, {})
    log_model(client, run, saved.folder, CARD)
    (folder / "run").write_text(run)
    return folder


@pytest.fixture
def store(logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"sqlite:///{logged}/mlflow.db"


@pytest.fixture
def client(store: str) -> Any:
    return MlflowClient(store, store)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is downloaded in this process."""
    import mlflow.artifacts

    own, found = mlflow.artifacts.download_artifacts, list[str]()

    def counted(**arguments: Any) -> str:
        found.append(arguments["artifact_uri"])
        return own(**arguments)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", counted)
    return found


def models(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hires_gan" / "models"


def seen(folder: Path) -> list[str]:
    """What lies in the cache, without locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def is_whole(fetched: Path) -> bool:
    return torch.equal(checkpoint.read(fetched).tensors("generator.average")["w"], torch.arange(4.0))


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_whole_copy_is_used_again(store: str, downloads: list[str], tmp_path: Path) -> None:
    found = fetch_model(URI, store)
    assert is_whole(found) and found.name == "000000004000"
    assert fetch_model(URI, store) == found == fetch_model("models:/faces/latest", store)
    assert len(downloads) == 1
    assert seen(models(tmp_path)) == [found.parent.name]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "state", "MLmodel"])
def test_a_damaged_copy_is_fetched_again(
    damage: str, store: str, downloads: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = fetch_model(URI, store)
    weights = found / "generator.average.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "gone":
        (found / "generator.safetensors").unlink()
    elif damage == "state":
        (found / checkpoint.STATE).write_text('{"files": ')
    else:
        (found.parent / "MLmodel").write_text("")
    capfd.readouterr()
    assert fetch_model(URI, store) == found and is_whole(found)
    assert len(downloads) == 2
    assert capfd.readouterr().err.count(f"warning: the copy of {URI} in {found.parent} is damaged: it is") == 1
    assert seen(models(tmp_path)) == [found.parent.name]
    fetch_model(URI, store)
    assert len(downloads) == 2


@pytest.fixture
def spoilt(logged: Path) -> Iterator[Path]:
    """A file of the model where it was logged, which is as it was afterwards."""
    (file,) = (logged / "artifacts").rglob("generator.average.safetensors")
    content = file.read_bytes()
    yield file
    file.write_bytes(content)


def test_what_is_damaged_in_the_store_is_said_and_not_kept(
    store: str, spoilt: Path, downloads: list[str], tmp_path: Path
) -> None:
    content = spoilt.read_bytes()
    spoilt.write_bytes(content[:50])
    for _ in range(2):
        with pytest.raises(Failure, match=r"^models:/faces/1 is damaged: generator.average.safetensors in it is not"):
            fetch_model(URI, store)
    assert len(downloads) == 2 and seen(models(tmp_path)) == []
    spoilt.write_bytes(content)
    assert is_whole(fetch_model(URI, store))


def test_a_damaged_copy_of_a_damaged_model_is_no_copy(store: str, spoilt: Path, tmp_path: Path) -> None:
    found = fetch_model(URI, store)
    for file in (found / spoilt.name, spoilt):
        file.write_bytes(b"")
    with pytest.raises(Failure, match="is damaged"):
        fetch_model(URI, store)


def test_a_model_that_is_not_logged_to_its_end_is_refused(
    store: str, client: Any, logged: Path, tmp_path: Path
) -> None:
    run = (logged / "run").read_text()
    model = flavour._create_model(client, run, "generator-8000", CARD)
    half = logged / "half"
    half.mkdir(exist_ok=True)
    (half / "MLmodel").write_text("flavors: {hires_gan: {checkpoint: x}}")
    client.log_model_artifacts(model.model_id, str(half))
    for status in ("PENDING", "FAILED"):
        if status == "FAILED":
            client.finalize_logged_model(model.model_id, "FAILED")
        for uri in (f"models:/{model.model_id}", f"runs:/{run}/generator-8000"):
            with pytest.raises(Failure) as error:
                fetch_model(uri, store)
            assert str(error.value) == (
                f"{uri} is {status} in MLflow, not READY: not all of its files are there; wait for the run that logs "
                "it, run that run's command again if it has ended, or take another model"
            )
    assert not models(tmp_path).exists()


class Registry:
    """Says of every version that it is not there yet, as one whose files are still being copied does."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_model_version(self, name: str, version: str) -> Any:
        found = self._client.get_model_version(name, version)
        found._status = "PENDING_REGISTRATION"
        return found


def test_a_version_that_is_not_registered_to_its_end_is_refused(
    store: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavour, "open_store", lambda uri, remedy: Registry(client))
    with pytest.raises(Failure, match="^models:/faces/1 is PENDING_REGISTRATION in MLflow, not READY"):
        fetch_model(URI, store)


def test_a_runs_folder_may_change_and_readers_keep_theirs(
    store: str, client: Any, logged: Path, downloads: list[str], tmp_path: Path
) -> None:
    run = (logged / "run").read_text()
    uri = f"runs:/{run}/elsewhere"
    found = []
    for value in (1.0, 2.0, 2.0):
        saved = checkpoint.write(tmp_path / "again", 5, {"generator.average": {"w": torch.full((2,), value)}}, {})
        client.log_artifacts(run, str(saved.folder), f"elsewhere/{saved.folder.name}")
        client.log_text(run, f"flavors: {{hires_gan: {{checkpoint: '{saved.folder.name}'}}}}", "elsewhere/MLmodel")
        found.append(fetch_model(uri, store))
    first, second, third = found
    assert first != second == third and len(downloads) == 3
    for folder, value in ((first, 1.0), (second, 2.0)):
        assert checkpoint.read(folder).tensors("generator.average")["w"].tolist() == [value, value]


def test_a_cache_that_cannot_be_written_is_named(store: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        Failure, match=r"cannot be kept in .*/cache/hires_gan/models .*: set XDG_CACHE_HOME to a folder"
    ):
        fetch_model(URI, store)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("models:/faces/2", "has the versions 1 of faces; give another one, or set MLFLOW_TRACKING_URI to the store"),
        ("models:/faces@best", "has the versions 1 of faces; give another one"),
        ("models:/face/latest", "has no registered model face, but faces; give another one"),
    ],
)
def test_what_is_there_is_said_in_place_of_a_version_that_is_not(uri: str, sentence: str, store: str) -> None:
    with pytest.raises(UsageError, match=rf"^{uri}: MLflow at {store} {sentence}"):
        fetch_model(uri, store)


def test_files_that_are_gone_from_the_store_are_named(store: str, logged: Path, tmp_path: Path) -> None:
    (logged / "artifacts").rename(logged / "elsewhere")
    try:
        with pytest.raises(Failure, match=r"No such artifact: .*\): see whether its files are where the store keeps"):
            fetch_model(URI, store)
    finally:
        (logged / "elsewhere").rename(logged / "artifacts")
    assert seen(models(tmp_path)) == []


def test_a_full_disk_of_the_cache_is_named(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalArtifactRepository, "_download_file", full)
    with pytest.raises(Failure, match=rf"No space left on device\): make room in {models(tmp_path)}, or set XDG_CACHE"):
        fetch_model(URI, store)


def test_what_helps_where_the_store_does_not_answer_names_what_this_command_has(store: str) -> None:
    with pytest.raises(
        Failure, match="start the server, or set MLFLOW_TRACKING_URI to the store that holds it"
    ) as error:
        fetch_model(URI, "http://127.0.0.1:9")  # the port for discarding: nothing listens there
    assert "tracking.uri" not in str(error.value)


# --- several processes ------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
import mlflow.artifacts
from hires_gan.tracking.flavour import fetch_model

own = mlflow.artifacts.download_artifacts
store, notes, allowed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


def slow(**arguments):
    found = own(**arguments)
    last = next(Path(found).rglob("generator.average.safetensors"))
    content = last.read_bytes()
    last.write_bytes(content[:10])  # the middle of a download
    with notes.open("a") as file:
        file.write("began\\n")
    while not allowed.exists():
        time.sleep(0.02)
    last.write_bytes(content)
    return found


mlflow.artifacts.download_artifacts = slow
print(fetch_model("models:/faces/1", store))
"""


def fetching(store: str, notes: Path, allowed: Path) -> subprocess.Popen[str]:
    """A process that stops in the middle of a download, which it notes, until there is a file that allows the rest."""
    command = [sys.executable, "-c", SLOW, store, str(notes), str(allowed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(notes: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not notes.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never began"
        time.sleep(0.02)


def first_line(processes: list[subprocess.Popen[str]]) -> str:
    """What one of them says before any other says something."""
    speaking, _, _ = select.select([process.stderr for process in processes], [], [], 240)
    assert speaking, "none of them says anything"
    return str(speaking[0].readline())


@pytest.mark.slow
def test_two_that_ask_at_once_fetch_once(store: str, tmp_path: Path) -> None:
    notes, allowed = tmp_path / "notes", tmp_path / "allowed"
    processes = [fetching(store, notes, allowed) for _ in range(2)]
    try:
        assert first_line(processes).startswith("waiting for another process that fetches models:/faces/1")
        allowed.touch()
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(60)
    assert [process.returncode for process in processes] == [0, 0], said
    assert len({out for out, _ in said}) == 1 and is_whole(Path(said[0][0].strip()))
    assert notes.read_text().splitlines() == ["began"], said


@pytest.mark.slow
def test_who_is_killed_leaves_nothing_that_is_taken_for_whole(
    store: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    killed = fetching(store, notes, tmp_path / "never")
    waiting = None
    try:
        wait_for(notes, killed)
        waiting = fetching(store, tmp_path / "other", tmp_path)
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("waiting for another process that fetches models:/faces/1")
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        out, err = waiting.communicate(timeout=240)
        assert waiting.returncode == 0, err
    finally:
        for process in (killed, waiting):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(60)
    assert is_whole(Path(out.strip()))
    assert "damaged" not in err, "what was begun never took the model's place"
    assert seen(models(tmp_path)) == [Path(out.strip()).parent.name]
    assert fetch_model(URI, store) == Path(out.strip())
    assert "is damaged" not in capfd.readouterr().err


def test_the_description_of_a_checkpoint_names_every_file(store: str) -> None:
    found = fetch_model(URI, store)
    files = json.loads((found / checkpoint.STATE).read_text())["files"]
    assert sorted(files) == sorted(path.name for path in found.glob("*.safetensors")) and len(files) == 2
