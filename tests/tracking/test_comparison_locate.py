"""Which runs are meant, and what is said where that is not clear."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from comparison_store import RecordedRuns, fresh_store, sqlite

from hires_gan.errors import Failure, UsageError
from hires_gan.tracking.comparison.locate import Finder
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordedRuns:
    recorded = RecordedRuns(sqlite(tmp_path_factory.mktemp("store")))
    recorded.add("castle", experiment="other")
    recorded.add("twin")
    recorded.add("twin", experiment="other")
    return recorded


def folder_of(run_id: str, uri: str, folder: Path) -> Path:
    (folder / "tracking").mkdir(parents=True)
    (folder / "tracking" / "run.json").write_text(json.dumps({"run_id": run_id, "uri": uri}))
    return folder


def find(store: RecordedRuns, *arguments: str | Path, experiment: str | None = None) -> list[str]:
    found = Finder(store.uri, experiment).find_all([str(argument) for argument in arguments])
    return [one.run.info.run_id for one in found]


def test_a_run_goes_by_its_folder_its_id_and_its_name(store, tmp_path, capsys):
    run_id = store.add("named")
    folder = folder_of(run_id, store.uri, tmp_path / "folder")
    other = store.add("another")
    assert find(store, folder, other, run_id, "named", other) == [run_id, other]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{run_id} is the run that {folder} names: it is shown once",
        f"named is the run that {folder} names: it is shown once",
        f"{other} is named twice: it is shown once",
    ]


def test_the_tracker_leaves_what_finds_its_run(tmp_path):
    shutil.copyfile(fresh_store(), tmp_path / "mlflow.db")
    (config := tmp_path / "config.yaml").write_text("a: 1\n")
    tracker = Tracker.start(TrackingSettings(), tmp_path / "run", tmp_path, "run", None, {"a": 1}, {}, config)
    tracker.finish("FINISHED", 120)
    (found,) = Finder(None, None).find_all([str(tmp_path / "run")])
    assert (found.run.info.run_id, found.folder) == (tracker.run_id, tmp_path / "run")


def test_a_folder_that_was_moved_with_its_store_is_found(store, tmp_path):
    moved = RecordedRuns(sqlite(tmp_path))
    run_id = moved.add("run")
    folder = folder_of(run_id, "sqlite:////where/it/was/mlflow.db", tmp_path / "run")
    assert find(store, folder) == [run_id]


def test_of_an_unknown_id_or_name_the_nearest_is_said(store):
    run_id = store.add("cathedral")
    wrong = run_id[:-1] + ("0" if run_id[-1] != "0" else "1")
    with pytest.raises(UsageError) as caught:
        find(store, wrong, "cathedrall", "zzzzzz")
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"RUN is {wrong}, but no run of MLflow") and f"{run_id} (cathedral)" in first
    assert second.endswith("; is it cathedral?")
    assert "is neither a folder nor a run" in third and "its latest are" in third


def test_a_name_of_several_runs_needs_an_id_or_an_experiment(store):
    with pytest.raises(UsageError, match="the name of 2 runs .* give the id of one: [0-9a-f]{32} .*, [0-9a-f]{32} "):
        find(store, "twin")
    assert len(find(store, "twin", experiment="other")) == 1
    with pytest.raises(UsageError, match=r"--experiment is othr, but .* has no active one of that name: it has other"):
        find(store, "twin", experiment="othr")
    with pytest.raises(UsageError, match="in the experiment hires-gan"):
        find(store, "castle", experiment="hires-gan")


@pytest.mark.parametrize("name", ["it's", 'the "best" one', "a% _b"])
def test_names_may_hold_quotes(store, name):
    run_id = store.add(name)
    assert find(store, name) == [run_id]


def test_a_deleted_run_is_refused_with_the_way_back(store, tmp_path):
    run_id = store.add("gone")
    store.client.delete_run(run_id)
    for argument in ("gone", run_id, folder_of(run_id, store.uri, tmp_path / "run")):
        with pytest.raises(Failure, match=f"is deleted .* `mlflow runs restore --run-id {run_id}`") as caught:
            find(store, argument)
        assert not isinstance(caught.value, UsageError)
    again = store.add("gone")
    assert find(store, "gone") == [again], "an active run of that name is meant"


def test_a_folder_whose_run_is_in_no_store_any_more(store, tmp_path):
    folder = folder_of("f" * 32, store.uri, tmp_path / "run")
    with pytest.raises(Failure, match=f"is the MLflow run {'f' * 32}, which is not in the store"):
        find(store, folder)


def test_a_folder_that_is_no_run(store, tmp_path):
    with pytest.raises(UsageError, match="a folder without tracking/run.json: give a run's own folder"):
        find(store, tmp_path)


def test_a_path_is_no_address(tmp_path):
    with pytest.raises(
        UsageError, match=r"--uri is runs/mlflow.db, which is no address .* sqlite:///path/to/mlflow.db"
    ):
        Finder("runs/mlflow.db", None).find_all(["run"])


def test_no_store_is_made_by_looking(tmp_path):
    with pytest.raises(UsageError, match="there is no MLflow store at"):
        Finder(sqlite(tmp_path), None).find_all(["run"])
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_mlflow_version(store, tmp_path):
    run_id = store.add("old")
    shutil.copyfile(store.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '97727af70f4d'")  # of MLflow 1
    with pytest.raises(Failure, match="was made by an.* version .*: take a copy of it, .*`mlflow db upgrade"):
        Finder(sqlite(tmp_path), None).find_all([run_id])


def test_a_password_is_asked_for_and_never_shown(tmp_path, monkeypatch):
    recorded = "http://***@127.0.0.1:9"  # nothing listens on the port for discarding
    folder = folder_of("a" * 32, recorded, tmp_path / "run")
    with pytest.raises(UsageError, match="whose password is not kept in the folder: give the whole address as --uri"):
        Finder("http://me:secret@127.0.0.1:7", None).find_all([str(folder)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(Failure, match="does not answer") as caught:
        Finder(None, None).find_all([str(folder)])
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (folder / "config.yaml").write_text("tracking: {uri: 'http://me:secret@127.0.0.1:9'}")
    with pytest.raises(Failure, match="does not answer"):
        Finder(None, None).find_all([str(folder)])


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://127.0.0.1:9/mlflow", "file:///proc/none"])
def test_what_helps_where_a_store_does_not_answer_names_what_this_command_has(uri, tmp_path):
    """Nothing listens on the port for discarding, and nobody makes folders in /proc."""
    with pytest.raises(Failure) as caught:
        Finder(uri, None).find_all(["run"])
    assert "name the store that has the run with --uri or in MLFLOW_TRACKING_URI" in str(caught.value)
    with pytest.raises(Failure) as caught:
        Finder(None, None).find_all([str(folder_of("a" * 32, uri, tmp_path / "run"))])
    assert "where it has another address now, name that with --uri, and the run by its id" in str(caught.value)


def test_a_path_that_is_no_sqlite_store_is_said_with_the_option():
    with pytest.raises(Failure, match=r"/a%20b\.db, by --uri, cannot be a SQLite store: choose a path to a file"):
        Finder("sqlite:///a%20b.db", None).find_all(["run"])
