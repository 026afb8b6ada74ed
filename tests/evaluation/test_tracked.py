"""Numbers of `hires-gan evaluate` in MLflow: in the right run, of one protocol each, none twice, none that is false."""

from __future__ import annotations

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

from hires_gan.errors import UsageError
from hires_gan.evaluation import comparing
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.command import Report, Request, evaluate
from hires_gan.evaluation.crew import Alone
from hires_gan.evaluation.instruments import Sources
from hires_gan.evaluation.tracked import TrackedRun
from hires_gan.inference.loading import find
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
            UsageError, match=rf"is of the MLflow run 0+, and the store .* {found}; name the store that"
        ):
            TrackedRun(gone)
        assert (tmp_path / "mlflow.db").exists() == (found == "has not got it"), "none is made"
        MlflowClient(store).search_experiments()
    gone.state["configuration"]["tracking"] = {"uri": store}
    with pytest.raises(UsageError, match=r"has not got it; leave --track out, and keep the numbers with --out"):
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
        other.communicate("go on\n", timeout=60)
        logging.join(60)
    finally:
        other.kill()
    points = [(one.step, one.value) for one in client.get_metric_history(run_id, f"{AFTERWARDS}swd")]
    assert points == [(4000, 5.0)]
    assert len(said) == 1 and "was measured otherwise, so this is evaluate/swd:" in said[0]
