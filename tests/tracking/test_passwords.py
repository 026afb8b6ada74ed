"""A password in the store's address: a run needs it, and nothing that is passed on holds it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from served_runs import ServedRuns, hires_gan

from hires_gan.bench.tracking_servers import LocalServer

pytestmark = pytest.mark.slow


def test_no_checkpoint_holds_the_password_and_all_goes_on_without_it(
    server: LocalServer, tiny_shards: Path, tmp_path: Path
) -> None:
    whole = server.uri.replace("://", "://ann:s3cret@")
    runs = ServedRuns(tmp_path, tiny_shards, whole)
    short = ("run.total_kimg=0.16", "tracking.register_as=kept-secret", "checkpoint.keep=9")
    runs.train("secret", *short)
    runs.train("secret", *short, "run.total_kimg=0.32")
    for state in (runs.folder("secret") / "checkpoints").glob("*/state.json"):
        assert "s3cret" not in state.read_text() and "http://***@127.0.0.1" in state.read_text()
    client = MlflowClient(server.uri, server.uri)
    run_id = runs.run_id("secret")
    assert [point.step for point in client.get_metric_history(run_id, "evaluation/swd")] == [0, 160, 320]
    assert {version.run_id for version in client.search_model_versions("name = 'kept-secret'")} == {run_id}
    passed_on = shutil.copytree(runs.folder("secret") / "checkpoints/000000000320", tmp_path / "passed on")
    done = hires_gan("evaluate", passed_on, "--count", "16", "--track", MLFLOW_TRACKING_URI="")
    assert done.returncode == 2 and "whose password no checkpoint keeps" in done.stderr, done.stderr
    for count, checkpoint, given in (("16", passed_on, whole), ("17", runs.folder("secret"), "")):
        done = hires_gan("evaluate", checkpoint, "--count", count, "--track", MLFLOW_TRACKING_URI=given)
        assert done.returncode == 0 and "s3cret" not in done.stderr, done.stderr
    points = [client.get_metric_history(run_id, name) for name in client.get_run(run_id).data.metrics]
    found = [point for one in points for point in one if re.fullmatch("evaluate/swd(:[0-9a-f]{8})?", point.key)]
    assert [point.step for point in found] == [320, 320], "the folder's own configuration has the password"
