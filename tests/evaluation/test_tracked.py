"""Numbers of `hires-gan evaluate` in MLflow: in the right run, of one protocol each, none twice, none that is false."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from tiny_models import lapsing_at, untrained

from hires_gan.bench.tracking_servers import LocalServer
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import comparing
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.command import Report, Request, evaluate
from hires_gan.evaluation.crew import Alone
from hires_gan.evaluation.instruments import Sources
from hires_gan.evaluation.tracked import TrackedRun
from hires_gan.inference.loading import find
from hires_gan.tracking import patience
from hires_gan.tracking.names import AFTERWARDS
from hires_gan.tracking.protocols import fingerprint, histories_of


def measured(folder: Path, *metrics: MetricName, **changes: Any) -> Report:
    request = Request(metrics, **{"count": 20, "sources": Sources("tiny_network:Tiny"), **changes})
    return evaluate(find(folder), request, Alone(), torch.device("cpu"))


def logged(report: Report) -> str:
    return TrackedRun(report.saved).log(report.result, report.as_json())


def recorded(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MlflowClient, str]:
    """A checkpoint of a run that a store has."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = MlflowClient(store)
    home = client.create_experiment("e", artifact_location=str(folder / "artifacts"))
    run_id = str(client.create_run(home).info.run_id)
    untrained(family, folder, run_id=run_id)
    return client, run_id


def test_a_run_that_cannot_be_found_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--track: .* names no MLflow run; leave it out"):
        TrackedRun(find(root / "runs" / "progressive"))
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    gone = find(untrained("progressive", tmp_path, run_id="0" * 32))
    for found in ("is not there", "has not got it"):
        with pytest.raises(
            UsageError, match=rf"is of the MLflow run 0+, and the store .* {found}; name the store that has it with"
        ):
            TrackedRun(gone)
        assert (tmp_path / "mlflow.db").exists() == (found == "has not got it"), "none is made"
        MlflowClient(store).search_experiments()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    gone.state["configuration"]["tracking"] = {"uri": "http://127.0.0.1:9"}  # nothing listens there
    with pytest.raises(
        Failure, match="start the server, name the store that has it with MLFLOW_TRACKING_URI, or leave"
    ):
        TrackedRun(gone)


def test_a_store_whose_password_is_not_kept_is_asked_for(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    saved = find(untrained("progressive", tmp_path, run_id="0" * 32))
    saved.state["configuration"]["tracking"] = {"uri": "http://***@mlflow:5000"}
    with pytest.raises(
        UsageError, match=r"MLflow store http://\*\*\*@mlflow:5000, whose password no checkpoint keeps; "
    ):
        TrackedRun(saved)


def recorded_at(folder: Path, run_id: str, uri: str) -> None:
    """Let a run's folder name its run, as a tracker leaves it."""
    (folder / "tracking").mkdir()
    (folder / "tracking/run.json").write_text(json.dumps({"run_id": run_id, "uri": uri}))


@pytest.mark.parametrize("configured", [None, "sqlite:///rel.db"])
def test_a_runs_folder_says_in_which_store_the_run_is(
    configured: str | None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it that MLFLOW_TRACKING_URI said so when it trained, or a path from where that was."""
    _, run_id = recorded("progressive", tmp_path, monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = tmp_path / "runs/progressive"
    (tmp_path / "mlflow.db").rename(tmp_path / "rel.db")
    saved = find(folder)
    saved.state["configuration"]["tracking"] = {"uri": configured}
    with pytest.raises(UsageError, match="is not there; name the store"):
        TrackedRun(saved)
    recorded_at(folder, run_id, f"sqlite:///{tmp_path}/rel.db")
    monkeypatch.chdir(root)
    assert TrackedRun(saved).uri == f"sqlite:///{tmp_path}/rel.db"
    shutil.move(folder, tmp_path / "elsewhere")
    assert TrackedRun(find(tmp_path / "elsewhere")).uri == f"sqlite:///{tmp_path}/rel.db", "wherever the folder lies"
    (tmp_path / "rel.db").rename(tmp_path / "rel.db.old")
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "elsewhere", tmp_path / "new/progressive")
    shutil.move(tmp_path / "rel.db.old", tmp_path / "new/rel.db")
    moved = TrackedRun(find(tmp_path / "new/progressive"))
    assert (moved.run_id, moved.uri) == (run_id, f"sqlite:///{tmp_path}/new/rel.db"), "moved with its store"


def test_the_run_that_took_the_place_of_a_lost_one_is_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = recorded("progressive", tmp_path, monkeypatch)
    again = str(client.create_run(client.get_run(run_id).info.experiment_id).info.run_id)
    client.delete_run(run_id)
    with pytest.raises(UsageError, match="has it as deleted"):
        TrackedRun(find(tmp_path / "runs/progressive"))
    recorded_at(tmp_path / "runs/progressive", again, f"sqlite:///{tmp_path}/mlflow.db")
    assert TrackedRun(find(tmp_path / "runs/progressive")).run_id == again


def test_a_store_that_has_another_address_now_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, run_id = recorded("progressive", tmp_path, monkeypatch)
    folder, store = tmp_path / "runs/progressive", f"sqlite:///{tmp_path}/mlflow.db"
    recorded_at(folder, run_id, "http://127.0.0.1:9")
    assert TrackedRun(find(folder)).uri == store
    assert capfd.readouterr().err.endswith(
        f"\n--track: the MLflow run {run_id} is not found at http://127.0.0.1:9 any more; it is at {store}, by "
        "MLFLOW_TRACKING_URI\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:7")
    with pytest.raises(Failure, match="http://127.0.0.1:9 does not answer"):
        TrackedRun(find(folder))


def moved_store(folder: Path, patch: pytest.MonkeyPatch) -> tuple[MlflowClient, str]:
    """A store whose folder was copied to a new place; then the old one was renamed. Returns its client, and the run."""
    (folder / "old").mkdir()
    _, run_id = recorded("progressive", folder / "old", patch)
    recorded_at(folder / "old/runs/progressive", run_id, f"sqlite:///{folder}/old/mlflow.db")
    (folder / "old/mlflow.db").rename(folder / "old/runs/mlflow.db")
    shutil.copytree(folder / "old/runs", folder / "new/runs")
    (folder / "old").rename(folder / "away")
    patch.delenv("MLFLOW_TRACKING_URI")
    return MlflowClient(f"sqlite:///{folder}/new/runs/mlflow.db"), run_id


def test_a_store_that_was_moved_keeps_artifacts_in_their_old_place_and_that_is_said(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = moved_store(tmp_path, monkeypatch)
    report = measured(tmp_path / "new/runs/progressive", "swd", data=(str(tmp_path / "away/plain"),))
    old = tmp_path / f"old/artifacts/{run_id}/artifacts"
    said = f"the report is in {old}: a store that was moved keeps the run's artifacts in their old place"
    assert logged(report).endswith(f"; {said}")
    assert len(list(old.rglob("*_evaluate_*.json"))) == 1
    assert client.get_run(run_id).data.metrics.keys() >= {f"{AFTERWARDS}swd"}


def test_where_that_place_cannot_be_written_the_numbers_are_there_all_the_same(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = moved_store(tmp_path, monkeypatch)
    (tmp_path / "old").write_text("a file")
    report = measured(tmp_path / "new/runs/progressive", "swd", data=(str(tmp_path / "away/plain"),))
    with pytest.raises(
        Failure, match=rf"the numbers are in the MLflow run {run_id}, but their report cannot be written "
    ):
        logged(report)
    assert client.get_run(run_id).data.metrics.keys() >= {f"{AFTERWARDS}swd"}


def test_a_run_that_was_deleted_meanwhile_is_not_waited_for(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client, run_id = recorded("progressive", tmp_path, monkeypatch)
    report = measured(tmp_path / "runs/progressive", "swd")
    run = TrackedRun(report.saved)
    client.delete_run(run_id)
    with pytest.raises(Failure, match="cannot be used"):
        run.log(report.result, report.as_json())
    assert "asked again" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_away_just_then_is_waited_for(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is killed before the numbers are logged, and once more after them, before their report is."""
    (tmp_path / "server").mkdir()
    with LocalServer(tmp_path / "server") as server:
        client = MlflowClient(server.uri, server.uri)
        run_id = str(client.create_run(client.create_experiment("e")).info.run_id)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        report = measured(untrained("progressive", tmp_path, run_id=run_id), "swd")
        run, said, starting = TrackedRun(report.saved), list[str](), list[threading.Thread]()

        def back_later(line: str) -> None:
            said.append(line)
            if "asked again" in line:
                starting.append(threading.Thread(target=server.start))
                starting[-1].start()

        monkeypatch.setattr(patience, "say", back_later)
        monkeypatch.setattr(patience, "PATIENCE", 300.0)  # of a machine with much else to do
        keep, kills = run._client.log_text, [server.kill]

        def killed_before(*arguments: Any) -> None:
            while kills:
                starting[-1].join()
                kills.pop()()
            keep(*arguments)

        monkeypatch.setattr(run._client, "log_text", killed_before)
        server.kill()
        sentence = run.log(report.result, report.as_json())
        for one in starting:
            one.join()
        names = client.get_run(run_id).data.metrics
        assert {name: [one.step for one in client.get_metric_history(run_id, name)] for name in names} == {
            "evaluate/swd": [4000],
            "evaluate/swd/16": [4000],
        }
        assert len(client.list_artifacts(run_id, "evaluations")) == 1
        assert sentence == f"2 values are in the MLflow run {run_id} in {server.uri}, at step 4000"
        away = r"MLflow at \S+ does not answer \([\w ]+\): it is asked again for 300 s"
        assert [bool(re.fullmatch(away, line)) for line in said] == [True, False] * 2, said
        assert said[1::2] == [f"MLflow at {server.uri} answers again"] * 2
        server.kill()
        monkeypatch.setattr(patience, "say", said.append)  # nobody starts it any more
        monkeypatch.setattr(patience, "PATIENCE", 0.0)
        with pytest.raises(
            Failure, match=rf"MLflow at {server.uri} cannot be used \(Connection refused\): start the server$"
        ):
            run.log(report.result, report.as_json())


def test_numbers_that_were_measured_otherwise_have_a_name_of_their_own(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = recorded("progressive", tmp_path, monkeypatch)
    folder = tmp_path / "runs/progressive"

    def tracked(**changes: Any) -> str:
        return logged(measured(folder, "swd", **changes))

    def points() -> dict[str, list[int]]:
        names = client.get_run(run_id).data.metrics
        return {name: sorted(point.step for point in client.get_metric_history(run_id, name)) for name in names}

    assert tracked().endswith("at step 4000")
    (first,) = histories_of(client.get_run(run_id).data.tags).values()
    assert [(entry.nimg, entry.protocol["fakes"]) for entry in first] == [(4000, "20")]
    said = tracked(count=30)
    (other,) = [name for name in points() if ":" in name and name.count("/") == 1]
    second = histories_of(client.get_run(run_id).data.tags)[other]
    assert other == f"evaluate/swd:{fingerprint(second[0].protocol)[:8]}" and second[0].protocol["fakes"] == "30"
    assert said.endswith(f"; what that run has as evaluate/swd was measured otherwise, so this is {other}")
    for changes in ({"count": 30}, {"count": 20}, {"seed": 7}):
        assert tracked(**changes).endswith("there already at this step, and left as before: swd")
    assert points() == {name: [4000] for name in ("evaluate/swd", "evaluate/swd/16", other, f"{other}/16")}
    untrained("progressive", tmp_path, nimg=2000, run_id=run_id)
    shutil.rmtree(folder / "checkpoints/000000004000")
    (folder / "checkpoints/latest").write_text("000000002000")
    tracked()
    assert points()["evaluate/swd"] == [2000, 4000]
    histories = histories_of(client.get_run(run_id).data.tags)
    assert [entry.nimg for entry in histories["evaluate/swd"]] == [2000] and len(histories) == 2
    client.set_tag(run_id, "protocol.evaluate/swd", "[")
    shown = fingerprint(first[0].protocol)[:8]
    assert tracked().endswith(f"so this is evaluate/swd:{shown}"), "nothing says how the others were measured"


def test_a_direction_that_lapses_leaves_no_false_history(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = recorded("munit", tmp_path, monkeypatch)
    folder, said = tmp_path / "runs/munit", list[str]()
    monkeypatch.setattr(comparing, "fid", lapsing_at(4))  # of the second evaluation the second direction
    for nimg in (1000, 2000, 3000):
        shutil.rmtree(folder)
        untrained("munit", tmp_path, nimg=nimg, run_id=run_id)
        said.append(logged(measured(folder, "fid", "swd")))
    histories = histories_of(client.get_run(run_id).data.tags)
    (entry,) = histories[f"{AFTERWARDS}fid"]
    assert (entry.nimg, entry.protocol["data.domain"], len(histories)) == (1000, "right | left", 2)
    names = client.get_run(run_id).data.metrics
    steps = {name: [one.step for one in client.get_metric_history(run_id, name)] for name in names}
    assert {name: found for name, found in steps.items() if "swd" not in name} == {
        f"{AFTERWARDS}fid{end}": [1000, 3000] for end in ("", "/left_to_right", "/right_to_left")
    }
    assert {tuple(found) for name, found in steps.items() if "swd" in name} == {(1000, 2000, 3000)}
    lapse = "; left out, since no finite number came out: fid"
    assert [one.endswith(lapse) for one in said] == [False, True, False] and "there already" not in "".join(said)


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_that_logs_waits_for_another_and_sees_what_that_one_has_logged(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = recorded("progressive", tmp_path, monkeypatch)
    report = measured(tmp_path / "runs/progressive", "swd")
    run, said = TrackedRun(report.saved), list[str]()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "mlflow.db.lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        logging = threading.Thread(target=lambda: said.append(run.log(report.result, report.as_json())), daemon=True)
        logging.start()
        logging.join(1.0)
        assert logging.is_alive(), "it waits"
        client.log_metric(run_id, f"{AFTERWARDS}swd", 5.0, step=4000)
        other.communicate("go on\n", timeout=240)
        logging.join(60)
    finally:
        other.kill()
    points = [(one.step, one.value) for one in client.get_metric_history(run_id, f"{AFTERWARDS}swd")]
    assert points == [(4000, 5.0)]
    assert len(said) == 1 and "was measured otherwise, so this is evaluate/swd:" in said[0]
