"""A password in the store's address: a run needs it, and nothing that is passed on holds it."""

from __future__ import annotations

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
    evaluate = ("evaluate", runs.folder("secret"), "--count", "16", "--track")
    done = hires_gan(*evaluate, MLFLOW_TRACKING_URI="")
    assert done.returncode == 2 and "whose password no checkpoint keeps" in done.stderr, done.stderr
    done = hires_gan(*evaluate, MLFLOW_TRACKING_URI=whole)
    assert done.returncode == 0 and "s3cret" not in done.stderr, done.stderr
    assert [point.step for point in client.get_metric_history(run_id, "evaluate/swd")] == [320]
