"""The benchmark of an evaluation, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hires_gan.bench.evaluation import stand_in

SMALL = ("--resolution", "16", "--count", "64", "--rounds", "2", "--features", "torchvision.models:resnet18")


def bench(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hires_gan", "bench", "evaluate", *SMALL, *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_what_an_evaluation_costs_is_recorded(tmp_path: Path) -> None:
    done = bench(tmp_path, "--metrics", "fid,kid", "--out", "costs.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "costs.json").read_text())
    assert (record["count"], record["resolution"], record["metrics"]) == (64, 16, ["fid", "kid"])
    assert record["features"] == "torchvision.models:resnet18"
    assert len(record["alone"]) == len(record["whole"]) == 2 and min(*record["alone"], *record["whole"]) > 0
    assert record["share"] == pytest.approx(min(record["whole"]) / min(record["alone"]) - 1)
    assert f"{record['share']:+.1%}" in done.stdout


def test_a_metric_of_too_few_images_is_refused(tmp_path: Path) -> None:
    done = bench(tmp_path, "--metrics", "inception_score", "--count", "4")
    assert done.returncode == 2 and "inception_score" in done.stderr


def test_its_network_has_the_features_of_the_published_one() -> None:
    found = stand_in(torch.device("cpu"))(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert found.features.shape == (2, 2048) and found.logits is None
