"""The benchmark of an evaluation, small."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hires_gan.bench import evaluation
from hires_gan.bench.evaluation import Request, bench_evaluation, line, stand_in, write_reals
from hires_gan.data.shards import ShardSet
from hires_gan.errors import UsageError

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
    assert record["reals"] == 64, "as many as fakes"
    assert "fid, kid of 64 fakes and 64 reals: generator and feature network alone" in done.stdout
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


def few(*metrics: Any, **more: Any) -> Request:
    return Request(resolution=16, count=64, metrics=metrics, rounds=1, device="cpu", **more)


def test_of_patches_the_generator_alone_is_what_it_is_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "stand_in", None)
    described = []
    monkeypatch.setattr(evaluation, "_pass", lambda subject, extractor, counts: described.append((extractor, counts)))
    found = bench_evaluation(few("swd", reals=32))
    ((extractor, counts),) = described
    assert extractor is None and counts.patched == 32 == found["reals"]
    assert found["features"] is None
    assert line(found).startswith("swd of 64 fakes and 32 reals: generator alone ")


def test_with_features_beside_patches_the_network_is_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(evaluation, "_pass", lambda subject, extractor, counts: seen.append((extractor, counts)))
    found = bench_evaluation(few("swd", "fid", features="torchvision.models:resnet18", reals=8))
    ((extractor, counts),) = seen
    assert extractor is not None and (counts.fakes, counts.reals) == (64, 8)
    assert found["features"] == "torchvision.models:resnet18"


@pytest.mark.parametrize("metric", ["ppl_z_end", "ms_ssim", "content_preservation", "lpips_diversity_munit"])
def test_a_metric_of_other_networks_is_refused_by_name(metric: Any) -> None:
    with pytest.raises(UsageError, match=f"--metrics has {metric}, which takes other .*; allowed are swd, fid, kid, "):
        bench_evaluation(few("fid", metric))


def test_logits_take_a_network_that_gives_them() -> None:
    with pytest.raises(UsageError, match="inception_score, which needs the logits .* name one that does with --featu"):
        bench_evaluation(few("inception_score"))


def test_too_few_reals_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "write_reals", None)
    with pytest.raises(UsageError, match="density cannot be computed from 5 reals"):
        bench_evaluation(few("density", reals=5))


@pytest.mark.parametrize("resolution", [16, 128])
def test_its_reals_are_all_different(tmp_path: Path, resolution: int) -> None:
    write_reals(tmp_path / "shards", 100, resolution)
    shards = ShardSet(tmp_path / "shards")
    assert len(shards) == 100 and shards.resolution == resolution
    assert len({shards.read(row, "image") for row in range(100)}) == 100


def test_each_round_is_kept_as_soon_as_it_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is cut off leaves the rounds before; and the reals are made once, for all rounds."""
    out, seen, made = tmp_path / "costs.json", [], []

    def passed(*_: object) -> None:
        seen.append(json.loads(out.read_text()) if out.exists() else None)

    def written(*arguments: Any) -> None:
        made.append(arguments)
        write_reals(*arguments)

    monkeypatch.setattr(evaluation, "_pass", passed)
    monkeypatch.setattr(evaluation, "write_reals", written)
    last = bench_evaluation(replace(few("swd", reals=8), rounds=3, out=out))
    assert seen[0] is None
    assert [(one["complete"], len(one["alone"]), len(one["whole"])) for one in seen[1:]] == [
        (False, 1, 1),
        (False, 2, 2),
    ]
    assert json.loads(out.read_text()) == json.loads(json.dumps(last))
    assert last["complete"] is True and len(last["whole"]) == 3
    assert len(made) == 1
