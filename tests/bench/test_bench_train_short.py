"""`hires-gan bench train` behind too short a warm-up, and on what it could count less of: both are told.

A GPU's recordings are only thought of: a phase records in its second call, once all phases have run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_plans import SMALL, quick_rates, run

from hires_gan.bench.train import Request, bench_train
from hires_gan.bench.train_images import Images
from hires_gan.bench.train_measure import made_late
from hires_gan.bench.train_profile import Activity, kernels
from hires_gan.bench.train_steps import Stand
from hires_gan.bench.train_table import table
from hires_gan.config import load_configuration
from hires_gan.training.compiling import Compiler
from hires_gan.training.levers import Compile, Pulled

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
CPU = torch.device("cpu")
NAMES = ["generator", "path_length", "discriminator", "r1"]
"""Due in every step, in every 4th, in every step and in every 16th."""


def plan_of(*overrides: str) -> Any:
    return load_configuration(CONFIGS / "stylegan2_demo.yaml", [*SMALL, "recipe.loss.path_length=2", *overrides])


@pytest.fixture(scope="module")
def stand() -> Stand:
    return Stand(plan_of(), Images("synthetic"), CPU, None, 4)


def late(stand: Stand, made: int, graphs: bool = False, compiled: Compile = "none", steps: int = 16) -> list[list[str]]:
    """The phases that are compiled or recorded in the steps behind `made`, by sentence."""
    stand.steps, stand.backend.pulled = made, Pulled(graphs, graphs, compiled)
    found = made_late(stand, steps)
    assert all(one.startswith("too short a warm-up: ") and one.endswith("take --warmup 16 or more") for one in found)
    return [one.partition("(")[2].partition(")")[0].split(", ") for one in found]


@pytest.mark.parametrize(
    ("made", "expected"),
    [(1, [NAMES]), (2, [["path_length", "r1"]]), (5, [["r1"]]), (16, [["r1"]]), (17, []), (33, [])],
)
def test_what_is_recorded_in_timed_steps(made: int, expected: list[list[str]], stand: Stand) -> None:
    """By its second call: behind a warm-up of one step less, since another one follows it on a GPU."""
    assert late(stand, made, graphs=True) == expected


def test_what_was_refused_is_not_told_twice(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand.backend._recorder, "remarks", ["no CUDA graphs: the r1 phase cannot be recorded"])
    assert late(stand, 1, graphs=True) == []


def test_what_is_not_due_is_not_recorded_there(stand: Stand) -> None:
    assert late(stand, 1, graphs=True, steps=4) == [NAMES[:3]]
    assert late(stand, 1, graphs=True, steps=2) == [["generator", "discriminator"]]


def test_what_is_compiled_in_timed_steps(stand: Stand) -> None:
    """By its first call; and then recorded by its second one."""
    assert late(stand, 0, compiled="all") == [NAMES]
    assert late(stand, 0, compiled="main") == [["generator", "discriminator"]]
    assert late(stand, 1, compiled="all") == late(stand, 0) == []
    assert late(stand, 0, graphs=True, compiled="main", steps=2) == [["generator", "discriminator"]] * 2


def test_the_record_and_the_table_say_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    """Of phases that are compiled, which a CPU can do, too."""
    quick_rates(monkeypatch)
    monkeypatch.setattr(Compiler, "compile", lambda compiler, function, inputs: function)
    told = {}
    for warmup in (0, 1):
        out = tmp_path / f"{warmup}.json"
        own = [*SMALL, "levers.compile=main", "--steps", 1, "--warmup", warmup, "--out", out]
        assert run(monkeypatch, "train", "--config", CONFIGS / "demo.yaml", *own) == 0
        (result,) = json.loads(out.read_text())["results"]
        told[warmup] = (result["remarks"], "too short a warm-up" in capfd.readouterr().out)
    (remark,), shown = told[0]
    assert (
        "phases are compiled (discriminator, generator)" in remark and remark.endswith("--warmup 1 or more") and shown
    )
    assert told[1] == ([], False)


def test_counting_goes_on_with_less_where_the_memory_is_short_and_the_table_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick_rates(monkeypatch)
    record = Stand.record

    def short(stand: Stand, phase: Any, batch: Any) -> Any:
        if stand.micro > 4:
            raise torch.OutOfMemoryError
        return record(stand, phase, batch)

    monkeypatch.setattr(Stand, "record", short)
    plan = load_configuration(CONFIGS / "demo.yaml", [*SMALL, "batch.size=8"])
    lines = {}
    for micro in (8, 4):
        found = bench_train(plan, "small", Request(steps=1, warmup=0, micro=(micro,)))
        (result,) = found["results"]
        assert (result["micro"], result["counted_micro"]) == (micro, 4)
        lines[micro] = [line.split(maxsplit=1)[1] for line in table(found) if line.startswith("  counted ")]
    (line,) = lines[8]
    assert line.startswith("with a micro-batch of 4, not of 8: ") and "operations and floor are of 4" in line
    assert lines[4] == []


def test_kernels_that_the_clock_did_not_see_run_have_no_share() -> None:
    found = kernels({"generator": (1, [Activity("fill", 1.0, 1.0)]), "r1": (16, [])})
    assert [(one.name, one.calls_per_step, one.ms_per_step, one.share) for one in found] == [("fill", 1.0, 0.0, 0.0)]
    assert kernels({"generator": (1, [])}) == []
