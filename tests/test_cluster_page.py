"""docs/cluster.md's table of time and cost is what the recorded model says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 25_000_000
PAGE = (ROOT / "docs/cluster.md").read_text()


def rows() -> dict[int, list[float]]:
    """Batch, days, GPU hours, days and GPU hours with evaluations, by the number of GPUs."""
    found = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    return {int(row[0]): [float(value) for value in row[1:]] for row in found}


@pytest.mark.parametrize("gpus", [8, 16, 64])
def test_days_and_gpu_hours_are_those_of_the_model(gpus: int) -> None:
    record = json.loads((ROOT / "benchmarks/scaling.json").read_text())
    batch, *figures = rows()[gpus]
    for model, (days, hours) in zip(("model_50", "model_first"), (figures[:2], figures[2:]), strict=True):
        (row,) = [row for row in record[model]["weak"]["behind"] if row["gpus"] == gpus]
        seconds = IMAGES / row["batch"] * row["step_ms"] / 1000
        assert row["batch"] == batch
        assert days == round(seconds / 86400, 2)
        assert hours == round(gpus * seconds / 3600)


def test_the_price_is_that_of_the_hours() -> None:
    record = json.loads((ROOT / "benchmarks/scaling.json").read_text())
    (row,) = [row for row in record["model_50"]["weak"]["behind"] if row["gpus"] == 8]
    hours = 8 * IMAGES / row["batch"] * row["step_ms"] / 3.6e6
    price, whole = re.findall(r"at (\d+) for each, eight GPUs cost (\d+)", PAGE)[0]
    assert int(whole) == round(hours * int(price))


def test_one_gpu_is_what_was_measured() -> None:
    (rate,) = re.findall(r"^\| 4 \| ([\d.]+) \| 15\.2", (ROOT / "benchmarks/train.md").read_text(), re.MULTILINE)
    days, hours = re.findall(r"^\| 1, measured \| 4 \| ([\d.]+) \| (\d+) \|", PAGE, re.MULTILINE)[0]
    assert float(days) == round(IMAGES / float(rate) / 86400, 2)
    assert int(hours) == round(IMAGES / float(rate) / 3600)
