"""Which runs are meant: a run's folder, an MLflow run id or a run's name, each in the store that holds it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say
from hires_gan.tracking.recorded import read_recorded
from hires_gan.tracking.settings import TrackingSettings
from hires_gan.tracking.store import find_run, missing_file, open_store, reason, redact, resolve_uri, translated

_LOOKED_AT = 1000
"""Among so many runs, the latest ones, a similar name is looked for."""
_OF_NAMES = "start the server, or name the store that has the run with --uri or in MLFLOW_TRACKING_URI"
_OF_FOLDERS = "start the server, or where it has another address now, name that with --uri, and the run by its id"
"""What helps where a store does not answer."""
_ALL_RUNS = 3  # mlflow.entities.ViewType.ALL, without importing MLflow before it is quiet


@dataclass(frozen=True)
class Found:
    """A run in its store.

    Attributes:
        argument: What the user wrote.
        uri: The store, with whatever secrets its URI has.
        client: Its MlflowClient.
        run: MLflow's run, with parameters, tags and the last value of each metric.
        folder: The run's folder, if it was named by it.
    """

    argument: str
    uri: str
    client: Any
    run: Any
    folder: Path | None = None


class Finder:
    """Finds runs, and opens each store once.

    Args:
        uri: Where ids and names are looked up; None takes MLFLOW_TRACKING_URI, else the store of `./runs`.
        experiment: The experiment in which names are looked up; None takes all of them.
    """

    def __init__(self, uri: str | None, experiment: str | None) -> None:
        self._uri, self._experiment = uri, experiment
        self._clients: dict[str, Any] = {}
        self._known: dict[str, list[Any]] = {}

    def find_all(self, arguments: Sequence[str]) -> list[Found]:
        """The runs in the order in which they are named, each once.

        Raises:
            UsageError: Nothing goes by one of the names.
            Failure: A store cannot be read, or a run is deleted. All that is wrong is told at once.
        """
        found: dict[tuple[str, str], Found] = {}
        problems: list[Failure] = []
        for argument in arguments:
            try:
                one = self._find(argument)
            except Failure as problem:
                problems.append(problem)
                continue
            first = found.setdefault((one.uri, one.run.info.run_id), one)
            if first is not one:
                again = "named twice" if argument == first.argument else f"the run that {first.argument} names"
                say(f"{argument} is {again}: it is shown once")
        if problems:
            kind = UsageError if all(isinstance(problem, UsageError) for problem in problems) else Failure
            raise kind("\n".join(dict.fromkeys(map(str, problems)))) from problems[0]
        return list(found.values())

    def _find(self, argument: str) -> Found:
        path = Path(argument)
        if path.is_dir():
            found = self._by_folder(argument, path)
        elif re.fullmatch("[0-9a-f]{32}", argument):
            found = self._by_id(argument, self._default_uri(), argument)
        else:
            found = self._by_name(argument, self._default_uri())
        run = found.run.info
        if run.lifecycle_stage != "active":
            raise Failure(
                f"RUN {argument} is deleted in MLflow at {redact(found.uri)}: leave it out, or restore it with "
                f"`mlflow runs restore --run-id {run.run_id}`"
            )
        return found

    def _by_folder(self, argument: str, folder: Path) -> Found:
        recorded = read_recorded(folder)
        if recorded is None:
            raise UsageError(
                f"RUN is {argument}, a folder without tracking/run.json: give a run's own folder, such as runs/mine, "
                "an MLflow run id, or a run's name"
            )
        uri = recorded.full_uri(self._uri)
        if uri is None:
            raise UsageError(
                f"RUN {argument} is in MLflow at {recorded.uri}, whose password is not kept in the folder: give the "
                "whole address as --uri or in MLFLOW_TRACKING_URI"
            )
        return self._by_id(argument, uri, recorded.run_id, folder)

    def _by_id(self, argument: str, uri: str, run_id: str, folder: Path | None = None) -> Found:
        remedy = _OF_FOLDERS if folder else _OF_NAMES
        client = self._open(uri, argument, remedy)
        with translated(uri, remedy):
            run = find_run(client, run_id)
        if run is not None:
            return Found(argument, uri, client, run, folder)
        if folder is not None:
            raise Failure(
                f"RUN {argument} is the MLflow run {run_id}, which is not in the store {redact(uri)} any more: train "
                "goes on in a new one; until then leave it out"
            )
        raise UsageError(
            f"RUN is {argument}, but no run of MLflow at {redact(uri)} has that id{_near(client, argument)}"
        )

    def _by_name(self, argument: str, uri: str) -> Found:
        client = self._open(uri, argument, _OF_NAMES)
        with translated(uri, _OF_NAMES):
            runs = self._named(client, uri, argument)
        active = [run for run in runs if run.info.lifecycle_stage == "active"] or runs
        if len(active) > 1:
            raise UsageError(
                f"RUN is {argument}, the name of {len(active)} runs in MLflow at {redact(uri)}: give the id of one: "
                f"{', '.join(map(_described, active[:5]))}{' ...' if len(active) > 5 else ''}"
            )
        if not active:
            where = f" in the experiment {self._experiment}" if self._experiment else ""
            raise UsageError(
                f"RUN is {argument}, which is neither a folder nor a run of MLflow at {redact(uri)}{where}"
                f"{_near(client, argument)}"
            )
        return Found(argument, uri, client, active[0])

    def _named(self, client: Any, uri: str, name: str) -> list[Any]:
        quote = '"' if "'" in name else "'"
        if quote in name:  # MLflow has no way to write such a name in a search
            return []
        wanted = f"attributes.run_name = {quote}{name}{quote}"
        experiments = self._searched(client, uri)
        return list(client.search_runs(experiments, wanted, run_view_type=_ALL_RUNS, max_results=_LOOKED_AT))

    def _searched(self, client: Any, uri: str) -> list[str]:
        """The ids of the experiments in which names are looked up.

        Raises:
            UsageError: There is none of that name.
        """
        if uri not in self._known:
            self._known[uri] = _experiments(client)
        experiments = self._known[uri]
        if self._experiment is None:
            return [one.experiment_id for one in experiments]
        names = [one.name for one in experiments]
        if self._experiment not in names:
            near = difflib.get_close_matches(self._experiment, names, 3) or names[:5]
            raise UsageError(
                f"--experiment is {self._experiment}, but MLflow at {redact(uri)} has no active one of that name: it "
                f"has {', '.join(near)}"
            )
        return [one.experiment_id for one in experiments if one.name == self._experiment]

    def _default_uri(self) -> str:
        if self._uri is not None and "://" not in self._uri and not self._uri.startswith("databricks"):
            raise UsageError(
                f"--uri is {self._uri}, which is no address of a store: write http(s)://host:port for a server, or "
                "sqlite:///path/to/mlflow.db for a file"
            )
        return resolve_uri(TrackingSettings(uri=self._uri), Path("runs"), "--uri")

    def _open(self, uri: str, argument: str, remedy: str) -> Any:
        if uri not in self._clients:
            if (path := missing_file(uri)) is not None:
                raise UsageError(
                    f"RUN {argument} cannot be looked up: there is no MLflow store at {path}; give a run's folder, or "
                    "the store as --uri or in MLFLOW_TRACKING_URI"
                )
            self._clients[uri] = open_store(uri, remedy)
        return self._clients[uri]


def _experiments(client: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_experiments(max_results=_LOOKED_AT, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _described(run: Any) -> str:
    start = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return f"{run.info.run_id} ({start:%Y-%m-%d %H:%M}, {run.info.status.lower()})"


def _near(client: Any, wanted: str) -> str:
    """What could have been meant, as the end of a sentence."""
    try:
        experiments = [one.experiment_id for one in _experiments(client)]
        runs = client.search_runs(experiments, max_results=_LOOKED_AT) if experiments else []
    except Exception as problem:  # the sentence stands without it
        return f" (what else is there cannot be listed: {reason(problem)})"
    if not runs:
        return ": it has no runs at all"
    names = {run.info.run_id: run.info.run_name for run in runs}
    near = difflib.get_close_matches(wanted, [*names, *names.values()], 3)
    if not near:
        return f"; its latest are {', '.join(list(dict.fromkeys(names.values()))[:5])}"
    known = [f"{name} ({names[name]})" if name in names else name for name in dict.fromkeys(near)]
    return f"; is it {' or '.join(known)}?"
