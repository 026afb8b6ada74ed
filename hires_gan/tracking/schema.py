"""Whether a database is of the MLflow that is installed: asked before MLflow opens it."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hires_gan.errors import Failure

_STILL_SECONDS = 2.0


def check_schema(uri: str, place: str) -> None:
    """Refuse a database of another MLflow: that package would migrate an older one unasked, in everybody's way.

    Args:
        uri: of SQLAlchemy.
        place: the same for people, without secrets.

    Raises:
        Failure: it is older or newer; says what to do.
        sqlalchemy.exc.SQLAlchemyError: it cannot be read.
    """
    found = _revision(uri)
    scripts = _scripts()
    while found is not None and found not in scripts.get_heads():
        time.sleep(_STILL_SECONDS)
        before, found = found, _revision(uri)
        if found == before:  # else somebody is just making it
            raise Failure(_sentence(place, _is_known(scripts, found)))


def _sentence(place: str, older: bool) -> str:
    installed = f"MLflow {version('mlflow')}, which is installed"
    if older:
        return (
            f"the MLflow store {place} was made by an older version than {installed}: take a copy of it, let nothing "
            f"else use it, then run `mlflow db upgrade {place}`"
        )
    return (
        f"the MLflow store {place} was made by a newer version than {installed}: install that one here, speak to the "
        "store through its server (http://...), or choose another store"
    )


def _revision(uri: str) -> str | None:
    """The revision of the tables; None where there are none yet."""
    import sqlalchemy

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    engine = sqlalchemy.create_engine(uri)
    try:
        if not sqlalchemy.inspect(engine).has_table("alembic_version"):
            return None
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    finally:
        engine.dispose()


def _scripts() -> Any:
    """The steps from one revision to the next, as the installed MLflow brings them."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _is_known(scripts: Any, revision: str) -> bool:
    from alembic.util import CommandError

    try:
        return scripts.get_revision(revision) is not None
    except CommandError:
        return False
