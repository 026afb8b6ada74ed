"""`hires-gan bench memory`: figures grow as they must, predictions come true, and what does not fit is a row."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_shards import pngs, write_shards
from small_plans import NARROW, run

from hires_gan.bench.memory import Request, bench_memory, lines
from hires_gan.config import load_configuration
from hires_gan.errors import Failure
from hires_gan.training.backends import Backend
from hires_gan.training.memory import NOT_TRIED, Measured, StageMemory, enough_for
from hires_gan.training.memory_advice import needed
from hires_gan.training.memory_meter import ResidentMeter

ROOT = Path(__file__).resolve().parent.parent.parent
GROWING = ("recipe.resolution=8", "batch.size=8", *NARROW)
WIDE = ("recipe.resolution=64", "batch.size=16", "recipe.loss.path_length=2", "evaluation.metrics=[]")
SEEN = (
    "recipe.resolution=32",
    "batch.size=4",
    "recipe.generator.fmap_base=512",
    "recipe.generator.fmap_max=64",
    "recipe.discriminator.fmap_base=512",
    "recipe.discriminator.fmap_max=64",
    "evaluation.metrics=[]",
    "evaluation.best=null",
)
"""Networks that take megabytes: kernels count resident pages by the batch, and may not see those of smaller ones."""
FAMILIES = {
    "demo": ["discriminator", "generator"],
    "stylegan_demo": ["discriminator", "generator"],
    "stylegan2_demo": ["generator", "discriminator", "r1"],
    "munit_demo": ["discriminator", "generator"],
}


def config(name: str) -> Path:
    return ROOT / "configs" / f"{name}.yaml"


def plan_of(name: str, *overrides: str) -> Any:
    return load_configuration(config(name), list(overrides))


def stages(record: dict[str, Any]) -> list[StageMemory]:
    return [StageMemory.from_json({k: v for k, v in one.items() if k != "suggestion"}) for one in record["stages"]]


# The command


def test_figures_grow_with_the_micro_batch_and_what_is_predicted_comes_true(tmp_path):
    """The memory of a process of its own: two groups at once take more than one, three what follows from both.

    One that has measured before has memory left from then.
    """
    out = tmp_path / "memory.json"
    own = [*WIDE, "evaluation.best=null", "--micro", 12, "--micro", 4, "--micro", 8, "--out", out]
    command = [sys.executable, "-m", "hires_gan", "bench", "memory", "--config", config("stylegan2_demo"), *own]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    record = json.loads(out.read_text())
    (found,) = stages(record)
    if found.remark:
        pytest.skip(found.remark)
    first, second, third = found.measured
    assert [one.micro for one in found.measured] == [4, 8, 12]
    assert list(first.phases) == ["generator", "path_length", "discriminator", "r1"]
    for name in first.phases:
        assert 0 < first.weights + first.images < first.phases[name] < second.phases[name] < third.phases[name]
    predicted, is_predicted = needed(StageMemory(**{**vars(found), "measured": (first, second)}), 12)
    assert is_predicted and predicted == pytest.approx(third.whole, rel=0.25)
    assert third.whole < found.capacity
    assert record["stages"][0]["suggestion"]["micro"] == 16 and record["stages"][0]["suggestion"]["predicted"]
    assert {"date", "git.commit", "cpu.model", "version.torch"} <= record.keys() and record["bench"] == "memory"
    assert ended.stdout.startswith("stylegan2_demo.yaml recipe.resolution=64")
    assert "batch.per_device=16: " in ended.stdout and " predicted, " in ended.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    own = () if family == "munit_demo" else SEEN
    record = bench_memory(plan_of(family, *own), "small", Request(micro=(4,)))
    (found,) = stages(record)
    assert list(found.measured[0].phases) == FAMILIES[family]
    phases = found.measured[0].phases.values()  # a phase may fit into what the one before it has left
    assert found.own == 4 and min(phases) >= 0 and max(phases) > 0 and not found.measured[0].failed


def test_all_stages_or_one_of_them(tmp_path):
    own = [*GROWING, "recipe.schedule.start_resolution=4"]
    whole = stages(bench_memory(plan_of("demo", *own), "small", Request(all_stages=True, out=tmp_path / "all.json")))
    assert [(one.resolution, one.fade) for one in whole] == [(4, False), (8, True), (8, False)]
    assert json.loads((tmp_path / "all.json").read_text())["stages"][2]["start"] == whole[2].start
    (last,) = stages(bench_memory(plan_of("demo", *own), "small", Request(micro=(4,))))
    assert (last.start, last.fade) == (whole[2].start, False)
    (fade,) = stages(bench_memory(plan_of("demo", *own), "small", Request(micro=(4,), stage_nimg=6000)))
    assert (fade.start, fade.fade) == (whole[1].start, True)


def test_the_share_of_the_process_that_has_most():
    own = [*GROWING, "batch.size=24", "batch.per_device=24"]
    record = bench_memory(plan_of("demo", *own), "small", Request(processes=4))
    (found,) = stages(record)
    assert found.own == 8 and [one.micro for one in found.measured] == [4, 8]  # groups of 4: two, two, one and one
    assert found.measured[0].images == 8 * 3 * 8 * 8 * 5
    assert stages(bench_memory(plan_of("demo", *own), "small", Request((4,), processes=1000)))[0].own == 4


def test_labels_are_counted_in_the_data(tmp_path):
    unlabelled = write_shards(tmp_path / "set", pngs(8, 8), 8)
    with pytest.raises(Failure, match=r"recipe\.labels is true, but .* has no labels"):
        bench_memory(plan_of("demo", *GROWING, "recipe.labels=true", f"data.shards={unlabelled}"), "small", Request())


def test_the_levers_are_recorded_as_they_were_measured():
    """A dry step compiles nothing."""
    plan = plan_of("demo", *GROWING, "levers.compile=all", "levers.fused=false", "levers.graphs=false")
    record = bench_memory(plan, "small", Request(micro=(4,)))
    assert record["settings"]["levers"] == {"graphs": False, "fused": False, "tf32": None, "compile": None}


# What does not fit


def out_of_memory_above(monkeypatch, most: int) -> None:
    step = Backend.step

    def short(backend: Backend, phases: Any, batch: Any, first: int, micro: int) -> Any:
        if min(micro, len(batch)) > most and phases[0].name == "generator":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(backend, phases, batch, first, micro)

    monkeypatch.setattr(Backend, "step", short)


def test_what_does_not_fit_is_a_row_that_says_so(monkeypatch):
    """What was measured of it, and of smaller ones, stands; a larger one is not tried on a machine."""
    out_of_memory_above(monkeypatch, 4)
    plan = plan_of("demo", *GROWING, "batch.size=16")
    record = bench_memory(plan, "small", Request((4, 8, 16)))
    (found,) = stages(record)
    assert [one.failed for one in found.measured] == ["", "generator", NOT_TRIED]
    assert list(found.measured[1].phases) == ["discriminator"] and found.measured[1].whole == 0
    assert record["stages"][0]["suggestion"]["micro"] == 4
    said = lines(record, plan)
    assert [line.count("out of memory") for line in said if "out of memory" in line] == [1, 1]
    assert said[-1].startswith("batch.per_device=4: ") and "in 4 micro-batches one after the other" in said[-1]


def test_where_nothing_fits_it_is_said_what_helps(monkeypatch, capfd):
    out_of_memory_above(monkeypatch, 0)
    assert run(monkeypatch, "memory", "--config", config("demo"), *GROWING) == 0
    said = capfd.readouterr().out
    ways = "set precision=bf16, or recipe.discriminator.group_size below 4, or recipe.resolution=4, which trains"
    assert f"not even 4 images at once fit at all: {ways} something else" in said


@pytest.mark.parametrize("room", [3999, 4000])
def test_a_machine_is_not_driven_out_of_its_memory(room, monkeypatch):
    """What takes more than there is ends programs there: it is not tried, and that is said."""
    plan = plan_of("demo", *GROWING, "batch.size=16")
    made = ResidentMeter.__init__

    def smaller(meter: ResidentMeter) -> None:
        made(meter)
        meter.capacity = room

    monkeypatch.setattr(ResidentMeter, "__init__", smaller)
    monkeypatch.setattr(ResidentMeter, "peak", lambda meter: 1000)  # what is resident depends on what ran before
    record = bench_memory(plan, "small", Request((4, 16)))
    fits = room == 4 * 1000
    assert [one.failed for one in stages(record)[0].measured] == ["", "" if fits else NOT_TRIED]
    assert (lines(record, plan)[-2].split()[-2:] == ["not", "tried"]) != fits


@pytest.mark.parametrize("room", [12_999, 13_000])
def test_what_stays_does_not_grow_with_the_images(room):
    """Of 10,000 bytes at 4 images 9,000 are weights and the images of the whole step: 16 take 13,000, not 40,000."""
    known = Measured(4, weights=7_000, images=2_000, phases={"one": 10_000}, whole=10_000)
    assert (enough_for(known, 16) <= room) == (room == 13_000)
    assert enough_for(replace(known, weights=9_000), 16) == 40_000, "they lie where the process had memory before"


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", 0], "--processes is 0; a whole number of 1 or more is allowed"),
        (["--stage-nimg", -4], "--stage-nimg is -4; a whole number of 0 or more"),
        (["--micro", 3], "--micro is 3; at 8x8 a multiple of 4 is allowed, up to the 8 images of a process"),
        (["--micro", 8, "--processes", 2], "--micro is 8; at 8x8 a multiple of 4 is allowed, up to the 4 images"),
        (["--all-stages", "--stage-nimg", 4], "--all-stages measures every stage, and --stage-nimg chooses one"),
        (["recipe.nonsense=1"], "recipe.nonsense"),
    ],
)
def test_wrong_arguments(arguments, message, monkeypatch, capfd):
    assert run(monkeypatch, "memory", "--config", config("demo"), *GROWING, *arguments) == 2
    assert message in capfd.readouterr().err


def test_a_place_for_the_result_that_is_not_there(tmp_path):
    with pytest.raises(Failure, match=r"nowhere/memory\.json cannot be written: No such file"):
        bench_memory(plan_of("demo", *GROWING), "small", Request(out=tmp_path / "nowhere" / "memory.json"))


@pytest.mark.gpu
@pytest.mark.parametrize("performance", ["fast", "reference"])
def test_the_command_on_a_gpu(performance, monkeypatch, tmp_path):
    out = tmp_path / "memory.json"
    own = [*WIDE, "evaluation.best=null", "precision=bf16", f"performance={performance}", "--out", out]
    assert (
        run(
            monkeypatch, "memory", "--config", config("stylegan2_demo"), *own, "--micro", 4, "--micro", 8, "--micro", 12
        )
        == 0
    )
    (found,) = stages(json.loads(out.read_text()))
    first, second, third = found.measured
    assert first.whole < second.whole < third.whole < found.capacity
    predicted, _ = needed(StageMemory(**{**vars(found), "measured": (first, second)}), 12)
    assert predicted == pytest.approx(third.whole, rel=0.25)
    for one in found.measured:
        assert one.whole >= max(one.phases.values()) + one.outside
        assert all(peak > one.weights + one.images for peak in one.phases.values())
