"""What was to be recorded or compiled, and was not, stands in the results of measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_plans import SMALL, quick_rates, run

from hires_gan.bench import train_rates
from hires_gan.bench.train import Request, bench_train
from hires_gan.config import load_configuration
from hires_gan.training.compiling import Compiler
from hires_gan.training.graphs import Recorder

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "demo.yaml"
REASON = "phase goes on op by op (RuntimeError: it reads a value)"
REMARKS = [f"not compiled: the {name} {REASON}" for name in ("discriminator", "generator")]


@pytest.fixture
def refused(monkeypatch) -> list[str]:
    """Settings with which nothing is compiled that was to be."""

    def fails(*_: object) -> None:
        raise RuntimeError("it reads a value")

    quick_rates(monkeypatch)
    monkeypatch.setattr(Compiler, "compile", fails)
    return [*SMALL, "levers.compile=main"]


def told(monkeypatch: Any, bench: str, out: Path, *arguments: object) -> dict[str, Any]:
    assert run(monkeypatch, bench, "--config", CONFIG, *arguments, "--out", out) == 0
    return dict(json.loads(out.read_text()))


def test_in_a_training_step(refused, monkeypatch, tmp_path, capfd):
    record = told(monkeypatch, "train", tmp_path / "train.json", *refused, "--steps", 1)
    assert sorted(record["results"][0]["remarks"]) == REMARKS
    lines = capfd.readouterr().out.splitlines()
    assert sorted(line.split(maxsplit=1)[1] for line in lines if line.startswith("  remark")) == REMARKS


def test_where_there_is_nothing_to_say(monkeypatch, tmp_path, capfd):
    quick_rates(monkeypatch)
    record = told(monkeypatch, "train", tmp_path / "train.json", *SMALL, "--steps", 1)
    assert record["results"][0]["remarks"] == []
    assert "remark" not in capfd.readouterr().out


def test_in_the_step_that_scales(refused, monkeypatch, tmp_path, capfd):
    record = told(monkeypatch, "scaling", tmp_path / "scaling.json", *refused, "--calls", 1)
    assert sorted(record["remarks"]) == REMARKS
    said = " ".join(capfd.readouterr().out.split())
    assert all(f"remark: {remark}" in said for remark in REMARKS)


@pytest.mark.gpu
def test_what_is_not_recorded(monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorder, "record", fails)
    monkeypatch.setitem(train_rates._SIDES, "cuda", 1024)
    monkeypatch.setitem(train_rates._BUFFER, "cuda", 2**26)
    plan = load_configuration(CONFIG, [*SMALL, "levers.graphs=true"])
    (result,) = bench_train(plan, "small", Request(steps=1))["results"]
    (remark,) = result["remarks"]
    assert remark.startswith("no CUDA graphs: the ") and "not permitted when stream is capturing" in remark
