"""Runs whose evaluations go wrong: what they keep of a metric that lapses, and how they end where the GPU is full."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from tiny_models import configured, lapsing_at

from hires_gan.config import Configuration, to_yaml
from hires_gan.errors import Failure
from hires_gan.evaluation import comparing
from hires_gan.tracking.names import EVALUATION
from hires_gan.tracking.protocols import histories_of
from hires_gan.training.run import train


@pytest.fixture
def plan(here: Path, tmp_path: Path) -> Configuration:
    """Two steps of a translation, with an evaluation before and behind each."""
    return configured(
        "munit",
        here,
        run={"name": "judged", "dir": str(tmp_path / "runs"), "total_kimg": 0.008},
        batch={"size": 4},
        samples={"every_kimg": None},
        checkpoint={"every_kimg": None},
        evaluation={"every_kimg": 0.004, "metrics": ["swd", "fid"], "features": "tiny_network:Tiny", "count": 16},
        tracking={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
    )


def test_a_run_keeps_no_false_history_where_a_direction_lapses(
    plan: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "fid", lapsing_at(4))  # of the second evaluation the second direction
    assert train(plan, to_yaml(plan))
    client = MlflowClient(plan.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("hires-gan").experiment_id])
    history = histories_of(run.data.tags)[f"{EVALUATION}fid"]
    assert [(entry.nimg, entry.protocol["data.domain"]) for entry in history] == [(0, "right | left")]
    points = client.get_metric_history(run.info.run_id, f"{EVALUATION}fid")
    assert [(point.step, math.isnan(point.value)) for point in points] == [(0, False), (4, True), (8, False)]


def test_a_run_says_that_it_is_the_evaluation_for_which_the_gpu_has_no_room(
    plan: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller micro-batch, which helps a step, does not help it."""

    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr(comparing, "fid", full)
    words = r"^the GPU has no room for the evaluation \(CUDA out of memory. Tried to allocate 2.00 GiB\): let nothing"
    with pytest.raises(Failure, match=words):
        train(plan, to_yaml(plan))
    status = json.loads((plan.run.dir / "judged" / "status.json").read_text())
    assert status["state"] == "failed" and "evaluation.every_kimg=null" in json.dumps(status)
