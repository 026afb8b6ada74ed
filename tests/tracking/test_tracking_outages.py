"""Servers that are gone for a while, or slow: nothing is lost, nothing comes twice, and no step waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from served_runs import ServedRuns
from test_tracking_server import start, steps, wait_for

from hires_gan.bench.tracking_servers import LocalServer, SlowProxy


@pytest.fixture
def client(server: LocalServer) -> MlflowClient:
    return MlflowClient(server.uri, server.uri)


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_server_gone_for_a_minute_loses_no_point(
    seconds: int, server: LocalServer, client: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = start(server.uri, tmp_path)
    tracker.log_metrics(1, {"loss": 1.0})
    wait_for(lambda: len(steps(client, tracker.run_id, "loss")) == 1)
    server.kill()
    nimg, back = 1, time.monotonic() + seconds
    while time.monotonic() < back:
        nimg += 1
        tracker.log_metrics(nimg, {"loss": float(nimg), "odd": float("nan")})
        if nimg % 20 == 0:
            tracker.log_image("samples/grid", nimg, np.full((8, 8, 3), nimg % 256, np.uint8))
        time.sleep(0.25)
    assert tracker.waiting >= nimg - 1
    wait_for(lambda: tracker._sender._away)
    server.start()
    tracker.log_metrics(nimg + 1, {"loss": float(nimg + 1)})
    tracker.finish("FINISHED", 120)
    assert "does not answer" in (said := capfd.readouterr().err) and "answers again" in said
    assert steps(client, tracker.run_id, "loss") == [(one, float(one)) for one in range(1, nimg + 2)]
    assert [step for step, _ in steps(client, tracker.run_id, "odd")] == list(range(2, nimg + 1))
    assert [step for step, _ in steps(client, tracker.run_id, "kimg")] == list(range(1, nimg + 2))
    assert len(client.list_artifacts(tracker.run_id, "images")) == 2 * (nimg // 20)


def test_nothing_waits_for_a_slow_server(server: LocalServer, client: Any, tmp_path: Path) -> None:
    """While the server keeps every answer back, all is logged; once it gives them, all is there."""
    with SlowProxy(server.port, 0.0) as proxy:
        tracker = start(proxy.uri, tmp_path)
        before, proxy.delay = proxy.answers, 3600.0
        for nimg in range(1, 301):
            tracker.log_metrics(nimg, {"loss": float(nimg)})
            if nimg % 100 == 0:
                tracker.log_image("samples/grid", nimg, np.zeros((8, 8, 3), np.uint8))
        assert proxy.answers == before and tracker.waiting == 303
        proxy.delay = 0.0
        tracker.finish("FINISHED", 60)
    assert tracker.waiting == 0
    assert steps(client, tracker.run_id, "loss") == [(nimg, float(nimg)) for nimg in range(1, 301)]
    assert len(client.list_artifacts(tracker.run_id, "images")) == 6


def test_seconds_for_each_answer_lose_nothing(server: LocalServer, client: Any, tmp_path: Path) -> None:
    with SlowProxy(server.port, 0.5) as proxy:
        tracker = start(proxy.uri, tmp_path)
        for nimg in range(1, 21):
            tracker.log_metrics(nimg, {"loss": float(nimg)})
        tracker.finish("FINISHED", 60)
    assert steps(client, tracker.run_id, "loss") == [(nimg, float(nimg)) for nimg in range(1, 21)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_the_time_that_steps_waited_is_a_tag(server: LocalServer, client: Any, tmp_path: Path) -> None:
    tracker = start(server.uri, tmp_path)
    tracker.log_image("samples/grid", 1, np.zeros((512, 512, 3), np.uint8))
    tracker.finish("FINISHED", 60)
    assert tracker.blocked > 0
    assert client.get_run(tracker.run_id).data.tags["tracking.blocked_seconds"] == f"{tracker.blocked:.3f}"


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "tracking/journal.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_ranks_and_a_server_that_dies_and_comes_back(
    server: LocalServer, client: Any, tiny_shards: Path, tmp_path: Path
) -> None:
    runs = ServedRuns(tmp_path, tiny_shards, server.uri)
    config = runs.config(
        run={"total_kimg": 24.0, "name": "two-ranks"},
        tracking={"every_kimg": 0.16, "register_as": None, "experiment": "two ranks"},
        samples={"every_kimg": 8},
        evaluation={"every_kimg": 12},
        checkpoint={"every_kimg": 12},
    )
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    command = [sys.executable, *launcher, "-m", "hires_gan", "train", str(config)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    folder = runs.folder("two-ranks")
    try:
        wait_for(lambda: len(journal(folder)) > 5 or process.poll() is not None, 180)
        server.kill()
        before = len(journal(folder))
        wait_for(lambda: len(journal(folder)) > before + 5 or process.poll() is not None, 120)
        assert process.poll() is None, (tmp_path / "log").read_text()
        server.start()
        assert process.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    (run,) = client.search_runs([client.get_experiment_by_name("two ranks").experiment_id])
    assert run.info.run_id == runs.run_id("two-ranks") and run.info.status == "FINISHED"
    assert run.data.tags["processes"] == "2"
    logged = [entry for entry in journal(folder) if "metrics" in entry]
    for key in ("loss/generator", "evaluation/swd", "kimg", "speed/images_per_second"):
        wanted = [(entry["nimg"], entry["metrics"][key]) for entry in logged if key in entry["metrics"]]
        assert wanted and steps(client, run.info.run_id, key) == wanted
    said = (tmp_path / "log").read_text()
    assert said.count("does not answer") == 1 == said.count("answers again"), said
