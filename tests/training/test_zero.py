"""DeepSpeed's ZeRO-1 and ZeRO-2: they step as one process does, and their checkpoints are everybody's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_steps import compare
from test_data_parallel import HERE, compare_gradients, finished, launched, train
from whole_runs import saved

FAMILIES = ("progressive", "stylegan", "stylegan2", "munit")
STAGES = (1, 2)


def cells(families: tuple[str, ...], stage: int, micros: tuple[int, ...]) -> list[str]:
    return [f"{name}:{kind}:{micro}:{stage}" for name in families for kind in ("sgd", "still") for micro in micros]


def check(folder: Path, cell: str) -> None:
    if ":still:" in cell:
        compare_gradients(folder, cell)
    else:
        compare(folder, cell)


def steps(folder: Path, names: list[str], processes: int = 2) -> None:
    finished(launched(processes, str(HERE / "rank_steps.py"), str(folder), *names))
    for cell in names:
        check(folder, cell)


@pytest.mark.slow
def test_two_processes_step_as_one_under_zero_2(tmp_path: Path) -> None:
    """Gradient penalty and path length; in one micro-batch each, and in two."""
    steps(tmp_path, ["stylegan2:sgd:4:2", "stylegan2:still:2:2"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_family_steps_as_one_process(tmp_path: Path, stage: int) -> None:
    steps(tmp_path, cells(FAMILIES, stage, (4, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "stage", "cell"), [(5, 2, "stylegan2:sgd:2"), (3, 1, "progressive:sgd:8")])
def test_processes_with_other_shares_or_none_take_part(tmp_path: Path, processes: int, stage: int, cell: str) -> None:
    """Five are more than there are groups of two samples; three have different shares."""
    steps(tmp_path, [f"{cell}:{stage}"], processes)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "stage"), [(2, 1), (2, 2), (3, 2)])
def test_a_state_moves_to_data_parallel_and_back(processes: int, stage: int) -> None:
    finished(launched(processes, str(HERE / "rank_moves.py"), str(stage)))


def zero(processes: int, config: Path, *overrides: str, stage: int = 2) -> str:
    return finished(train(processes, config, "backend.name=deepspeed", f"backend.zero_stage={stage}", *overrides))


@pytest.mark.slow
def test_a_run_under_zero_2_resumes_exactly(settings: dict[str, Any], write_config: Any) -> None:
    """Through a fade and its end, where engines are made anew, bit for bit."""
    settings["evaluation"]["every_kimg"] = None
    config = write_config(settings)
    said = zero(2, config, "run.name=whole", "run.total_kimg=0.24")
    assert "DeepSpeed ZeRO-2" in said
    zero(2, config, "run.name=halves", "run.total_kimg=0.128")
    zero(2, config, "run.name=halves", "run.total_kimg=0.24")
    whole, halves = saved(settings, "whole"), saved(settings, "halves")
    assert whole.nimg == halves.nimg == 240
    assert halves.state["files"] == whole.state["files"]


@pytest.mark.slow
def test_a_run_changes_backend_and_number_of_processes(settings: dict[str, Any], write_config: Any) -> None:
    """ZeRO-2 on two processes, data parallel on three, one alone, ZeRO-1 on two: each goes on from what it finds."""
    settings["evaluation"]["every_kimg"] = None
    config = write_config(settings)
    zero(2, config, "run.total_kimg=0.112")
    finished(train(3, config, "run.total_kimg=0.16"))
    alone = [sys.executable, "-m", "hires_gan", "train", str(config), "run.total_kimg=0.208"]
    subprocess.run(alone, check=True, capture_output=True)
    said = zero(2, config, "run.total_kimg=0.256", stage=1)
    assert "going on from" in said
    found = saved(settings)
    assert found.nimg == 256
    subprocess.run([*alone[:-1], "run.total_kimg=0.256", "run.name=one"], check=True, capture_output=True)
    one = saved(settings, "one")
    for name, value in one.tensors("generator").items():
        # The same samples in the same order; what float32 and Adam make of rounding grows from step to step.
        torch.testing.assert_close(found.tensors("generator")[name], value, rtol=0.05, atol=0.02, msg=name)
