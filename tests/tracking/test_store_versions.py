"""A database that another version of MLflow made: refused before anything in it changes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from hires_gan.errors import Failure
from hires_gan.tracking.store import open_store


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(fresh: Path, tmp_path: Path) -> Path:
    """A copy of a store of the installed version."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(fresh.read_bytes())
    return path


def revise(path: Path, revision: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_a_store_of_an_older_version_is_not_migrated_unasked(store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("DROP TABLE logged_model_metrics")  # MLflow would migrate where one is missing
    connection.close()
    revise(store, "0584bdc529eb")
    before = store.read_bytes()
    with pytest.raises(Failure, match=rf"older version than MLflow .* `mlflow db upgrade sqlite:///{store}`"):
        open_store(f"sqlite:///{store}")
    assert store.read_bytes() == before


def test_a_store_of_a_newer_version_is_named(store: Path) -> None:
    revise(store, "ffffffffffff")
    with pytest.raises(
        Failure, match=r"newer version than MLflow .* install that one here, .* or choose another store"
    ):
        open_store(f"sqlite:///{store}")


def test_a_store_of_this_version_opens(store: Path) -> None:
    assert open_store(f"sqlite:///{store}").search_experiments(max_results=1)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but long enough to be looked at as one" * 100)
    with pytest.raises(Failure, match=r"mlflow\.db cannot be used \(.*not a database"):
        open_store(f"sqlite:///{tmp_path}/mlflow.db")
