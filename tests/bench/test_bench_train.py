"""`hires-gan bench train`: counts are compared with those by hand, sums add up, and what cannot be is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_shards import pngs, write_shards
from small_plans import SMALL, quick_rates, run

from hires_gan.bench import train, train_measure, train_rates
from hires_gan.bench.train import Request, bench_train, read_reference
from hires_gan.bench.train_images import Images, Synthetic, supply
from hires_gan.bench.train_measure import next_smaller, summarise
from hires_gan.bench.train_profile import activities
from hires_gan.bench.train_steps import Stand, find_place
from hires_gan.bench.train_table import table
from hires_gan.config import load_configuration
from hires_gan.errors import Failure, UsageError
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Stage

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")
PHASES = {
    "stylegan2_demo": {"generator": 1, "path_length": 4, "discriminator": 1, "r1": 16},
    "stylegan_demo": {"discriminator": 1, "generator": 1},
    "demo": {"discriminator": 1, "generator": 1},
}
TOTAL_KIMG = {"stylegan2_demo": 24, "stylegan_demo": 28, "demo": 48}
ALL_PHASES = {"stylegan2_demo": ("recipe.loss.path_length=2",)}
"""What gives a demo the phases that it does without."""


def small(demo: str = "stylegan2_demo") -> list[str]:
    return [*SMALL, *ALL_PHASES.get(demo, ())]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    quick_rates(monkeypatch)


def small_plan(demo: str = "stylegan2_demo", *overrides: str):
    return load_configuration(ROOT / "configs" / f"{demo}.yaml", [*small(demo), *overrides])


# The command


@pytest.mark.parametrize("demo", PHASES)
def test_the_command(demo, monkeypatch, tmp_path, capfd):
    out, config = tmp_path / "train.json", ROOT / "configs" / f"{demo}.yaml"
    assert run(monkeypatch, "train", "--config", config, *small(demo), "--steps", 2, "--warmup", 1, "--out", out) == 0
    record = json.loads(out.read_text())
    settings, result = record["settings"], record["results"][0]
    assert record["complete"] is True and record["bench"] == "train"
    assert {"date", "git.commit", "gpu.name", "cpu.model", "version.torch"} <= record.keys()
    assert (settings["resolution"], settings["batch"], settings["data"], settings["fade"]) == (8, 4, "synthetic", False)
    assert (settings["precision"], settings["device"], settings["total_kimg"]) == ("fp32", "cpu", TOTAL_KIMG[demo])
    assert settings["config"].startswith(f"{demo}.yaml recipe.resolution=8") and settings["recipe"]["resolution"] == 8
    assert (result["steps"], result["micro"], result["counted_micro"]) == (2, 4, 4)
    # Of whole cycles; else the phases tell how long an average step takes.
    assert result["images_per_s"] == pytest.approx(4e3 / result["average_ms_per_step"]) == record["images_per_s"]
    assert result["s_per_kimg"] * result["images_per_s"] == pytest.approx(1000)
    assert result["gpu_days"] == pytest.approx(settings["total_kimg"] * result["s_per_kimg"] / 86_400)
    assert 0 < result["host_ms_per_step"] <= result["ms_per_step"] and result["device_ms_per_step"] is None
    assert result["data_wait_share"] == 0
    assert result["memory"]["resident"] > 2**20 and result["memory"]["allocated"] is None
    assert {name: phase["interval"] for name, phase in result["phases"].items()} == PHASES[demo]
    assert settings["cycle"] == (16 if demo == "stylegan2_demo" else 1)
    for phase in result["phases"].values():
        assert (
            phase["ms_per_call"] == pytest.approx(phase["ms_per_step"] * phase["interval"]) and phase["ms_per_call"] > 0
        )
    together = sum(phase["ms_per_step"] for phase in result["phases"].values())
    whole_cycles = settings["cycle"] == 1  # else the phases tell what an average step takes
    assert result["average_ms_per_step"] == pytest.approx(result["ms_per_step"] if whole_cycles else together)
    check_sums(result)
    augments = demo == "stylegan2_demo"  # by convolutions that are in no network
    outside = result["floor"]["by_layer"][""]["gflop"]
    assert (outside > 0) == augments, "what else convolves lies in a layer, in passes backward of any order too"
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"{demo}.yaml recipe.resolution=8")
    assert any(line.startswith("micro-batch 4: ") for line in lines)


def check_sums(result) -> None:
    phases, floor, operations = result["phases"].values(), result["floor"], result["operations"]
    sides = floor["by_resolution"].values()
    assert floor["ms_per_step"] == pytest.approx(sum(one["ms"] for one in sides))
    assert floor["ms_per_step"] == pytest.approx(sum(one["ms"] for one in floor["by_layer"].values()))
    by_phase = sum(phase["floor_ms_per_call"] / phase["interval"] for phase in phases)
    assert floor["ms_per_step"] == pytest.approx(by_phase + floor["updates_ms"])
    assert 0 < floor["updates_ms"] < floor["ms_per_step"] and 0 < floor["ms_of_matrices"] < floor["ms_per_step"]
    flops = operations["flop_per_image"] * result["batch"]
    assert flops == pytest.approx(1e9 * sum(one["gflop"] for one in sides))
    assert flops == pytest.approx(1e9 * sum(phase["gflop"] / phase["interval"] for phase in phases))
    assert operations["tflops"] == pytest.approx(flops / result["average_ms_per_step"] / 1e9)
    assert operations["share_of_peak"] == pytest.approx(operations["tflops"] / operations["peak_tflops"])
    assert set(floor["by_resolution"]) >= {"8", "4", "0"}
    players = {layer["name"].partition(".")[0] for layer in floor["layers"]}
    assert players == {"generator", "discriminator"}
    for one in [*sides, *floor["layers"]]:
        assert max(one["ms_by_operations"], one["ms_by_bytes"]) <= one["ms"] * (1 + 1e-9)
        assert one["ms"] <= (one["ms_by_operations"] + one["ms_by_bytes"]) * (1 + 1e-9)


def test_what_is_computed_again_counts_as_none(capfd):
    """MUNIT's two generators, each of which runs several times in a phase."""
    found = {}
    for again in ("false", "true"):
        own = ["recipe.resolution=32", "batch.size=1", "evaluation.metrics=[]", "evaluation.best=null"]
        plan = load_configuration(ROOT / "configs" / "munit_demo.yaml", [*own, f"recipe.generator.recompute={again}"])
        found[again] = bench_train(plan, "munit", Request(steps=1, warmup=0))
    kept, computed = (found[again]["results"][0] for again in ("false", "true"))
    assert kept["operations"]["flop_again_per_image"] == 0 < computed["operations"]["flop_again_per_image"]
    assert computed["operations"]["flop_per_image"] == pytest.approx(kept["operations"]["flop_per_image"])
    megabytes = [sum(one["mb"] for one in found["floor"]["by_layer"].values()) for found in (kept, computed)]
    assert megabytes[1] == pytest.approx(megabytes[0], rel=0.01)
    calls = {layer["name"]: layer["calls"] for layer in kept["floor"]["layers"]}
    assert {name.partition(".")[0] for name in calls} == {"generator", "discriminator"}
    encoded = [count for name, count in calls.items() if ".content_encoder.stems." in name]
    decoded = [count for name, count in calls.items() if ".decoder.outputs." in name]
    assert set(encoded) == {2} and set(decoded) == {3}, "each encodes an image and a translation; itself, across, back"
    lines = table(found["true"])
    assert any("more compute again what was not kept, and count as none" in line for line in lines)
    assert not any("compute again" in line for line in table(found["false"]))


def test_several_micro_batches(tmp_path, monkeypatch):
    seen = []

    out = tmp_path / "train.json"

    def counted(job, micro, rates, keep):
        seen.append((micro, json.loads(out.read_text())["complete"] if out.exists() else None))
        return {"micro": micro, "images_per_s": 10.0 - (micro - 4) ** 2}

    monkeypatch.setattr(train, "measure", counted)
    request = Request(micro=(8, 4, 2), out=out)
    plan = small_plan("stylegan2_demo", "batch.size=8", "recipe.discriminator.group_size=2")
    record = bench_train(plan, "small", request)
    assert seen == [(8, None), (4, False), (2, False)]  # written after each, so that what ends early has what there is
    assert [one["micro"] for one in record["results"]] == [8, 4, 2]
    assert (record["micro"], record["images_per_s"], record["complete"]) == (4, 10.0, True)
    assert json.loads(out.read_text()) == record


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_repeat_that_fails_leaves_the_record_of_before(tmp_path, monkeypatch):
    out = tmp_path / "train.json"
    out.write_text("the good record")
    monkeypatch.setattr(train, "measure", full)
    with pytest.raises(Failure, match="out of memory"):
        bench_train(small_plan(), "small", Request(out=out))
    assert out.read_text() == "the good record"


def test_what_was_finished_is_kept_and_shown_where_a_later_micro_batch_fails(tmp_path, monkeypatch, capfd):
    measure = train.measure
    monkeypatch.setattr(train, "measure", lambda job, micro, *rest: full() if micro > 4 else measure(job, micro, *rest))
    own = ["--config", ROOT / "configs" / "demo.yaml", *small("demo"), "batch.size=8", "--steps", 1, "--warmup", 0]
    assert run(monkeypatch, "train", *own, "--micro", 4, "--micro", 8, "--out", tmp_path / "train.json") == 1
    record = json.loads((tmp_path / "train.json").read_text())
    assert [one["micro"] for one in record["results"]] == [4] and record["complete"] is False
    assert record["failed"].startswith("out of memory at 8x8 with a micro-batch of 8: ")
    said = capfd.readouterr().err
    assert f"micro-batch 4: {record['images_per_s']:.2f} images/s" in said and record["failed"] in said


@pytest.mark.parametrize("what", ["_checkpoint", "_counted", "compare"])
def test_steps_that_were_timed_are_kept_where_what_follows_fails(what, tmp_path, monkeypatch, capfd):
    """The smallest micro-batch trains: it is not what is too large."""
    monkeypatch.setattr(train_measure, what, full)
    own = ["--config", ROOT / "configs" / "demo.yaml", *small("demo"), "--steps", 1, "--warmup", 0]
    own += ["--checkpoint", tmp_path, "--out", tmp_path / "train.json"]
    assert run(monkeypatch, "train", *own) == 1
    record = json.loads((tmp_path / "train.json").read_text())
    (result,) = record["results"]
    assert result["images_per_s"] == record["images_per_s"] > 0 and "floor" not in result
    assert record["complete"] is False
    assert "ran out of memory behind the steps, which were timed and fit" in record["failed"]
    said = capfd.readouterr().err
    assert f"micro-batch 4: {record['images_per_s']:.2f} images/s" in said and record["failed"] in said


def test_operations_do_not_depend_on_the_micro_batch():
    plan = small_plan("stylegan2_demo", "recipe.discriminator.group_size=2")
    found = []
    for micro in (4, 2):
        stand = Stand(plan, Images("synthetic"), CPU, None, micro)
        phase = next(phase for phase in stand.phases if phase.name == "r1")
        parts = stand.record(phase, Synthetic(stand.place.stage, CPU, torch.float32).take())
        assert len(parts) == 4 // micro
        assert not any(
            weight.requires_grad or weight.grad is not None for weight in stand.recipe.discriminator.parameters()
        )
        found.append(sum(op.flops for ops in parts for op in ops))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_real_images_in_the_middle_of_the_schedule(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "shards", pngs(12, 8), 8)
    out = tmp_path / "train.json"
    own = [f"data.shards={shards}", "data.workers=0", "recipe.schedule.start_resolution=4"]
    arguments = ["--data", "real", "--stage-nimg", 6000, "--steps", 3, "--warmup", 1, "--out", out]
    assert run(monkeypatch, "train", "--config", ROOT / "configs" / "demo.yaml", *SMALL, *own, *arguments) == 0
    record = json.loads(out.read_text())
    assert (record["settings"]["data"], record["settings"]["nimg"]) == ("real", 6000)
    assert (record["settings"]["fade"], record["settings"]["resolution"]) == (True, 8)
    assert 0 < record["results"][0]["data_wait_share"] < 1


def test_real_images_are_those_of_a_run(tmp_path):
    plan = small_plan("demo", f"data.shards={write_shards(tmp_path / 'set', pngs(12, 8), 8)}", "data.workers=0")
    images = train.open_images(plan, "real", CPU)
    stage = Stage(0, None, 8, 4, 4, False, {})
    with supply(plan, images, stage, iter(range(0, 400, 4)), CPU) as feed:
        seen = [feed.take().images for _ in range(3)]
    with supply(plan, images, stage, itertools.count(8, 4), CPU) as feed:
        assert torch.equal(feed.take().images, seen[2])
    assert not torch.equal(seen[0], seen[1])


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 0], "--steps is 0; a whole number of 1 or more is allowed"),
        (["--warmup", -1], "--warmup is -1; a whole number of 0 or more"),
        (["--stage-nimg", -4], "--stage-nimg is -4; a whole number of 0 or more"),
        (["--micro", 3], "--micro is 3; a multiple of 4 is allowed, up to the batch of 4"),
        (["--micro", 8], "--micro is 8; a multiple of 4 is allowed, up to the batch of 4"),
        (["--reference-json", "nowhere.json"], "--reference-json is nowhere.json, which cannot be read as JSON"),
        (["recipe.labels=true"], "recipe.labels is true, and --data synthetic has none; use --data real"),
        (["recipe.nonsense=1"], "recipe.nonsense"),
        (["--data", "imagined"], "Invalid value"),
    ],
)
def test_wrong_arguments(arguments, message, monkeypatch, capfd):
    assert run(monkeypatch, "train", "--config", ROOT / "configs" / "stylegan2_demo.yaml", *small(), *arguments) == 2
    assert message in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_without_a_gpu():
    with pytest.raises(UsageError, match="--profile lists the kernels of a GPU, and torch finds none"):
        bench_train(small_plan(), "small", Request(profile=True))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory(error, monkeypatch, capfd, tmp_path):
    def full(*_):
        raise error

    monkeypatch.setattr(train, "measure", full)
    own = ["batch.size=16", "--config", ROOT / "configs" / "stylegan2_demo.yaml"]
    assert run(monkeypatch, "train", *small(), *own, "--micro", 12) == 1
    said = capfd.readouterr().err
    assert "out of memory at 8x8 with a micro-batch of 12: take --micro 8\n" in said
    assert "Traceback" not in said
    assert run(monkeypatch, "train", *small(), *own, "--micro", 4) == 1
    said = capfd.readouterr().err
    assert "with a micro-batch of 4: take precision=bf16, or recipe.discriminator.group_size below 4" in said
    assert said.endswith("recipe.resolution=4, which trains something else\n")


def test_too_little_memory_where_something_else_takes_less(monkeypatch, capfd):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "measure", full)
    own = ["recipe.resolution=32", "batch.size=1", "recipe.generator.recompute=false"]
    assert run(monkeypatch, "train", "--config", ROOT / "configs" / "munit_demo.yaml", *own) == 1
    assert "with a micro-batch of 1: take recipe.generator.recompute=true\n" in capfd.readouterr().err


def test_what_is_no_lack_of_memory_is_a_bug(monkeypatch):
    monkeypatch.setattr(train, "measure", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        bench_train(small_plan(), "small", Request())


def test_the_next_smaller_micro_batch():
    assert [next_smaller(micro, 4) for micro in (16, 12, 10, 8, 4, 3)] == [12, 8, 8, 4, 0, 0]
    assert [next_smaller(micro, 1) for micro in (3, 1)] == [2, 0]


# The reference


def write_json(path: Path, **values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_the_ratio_to_a_reference(tmp_path, monkeypatch):
    gpu = train.identity("train")["gpu.name"]
    known = {"gpu.name": gpu, "date": "2026-01-01", "settings": {"batch": 4}}
    path = write_json(tmp_path / "theirs.json", images_per_s=4.0, other=1, **known)
    monkeypatch.setattr(train, "measure", lambda job, micro, *_: {"micro": micro, "images_per_s": 5.0})
    record = bench_train(small_plan(), "small", Request(reference=path))
    assert record["ratio_to_reference"] == 1.25
    assert record["reference"] == {"file": "theirs.json", "images_per_s": 4.0, **known}
    monkeypatch.setattr(train, "measure", None)
    with pytest.raises(UsageError, match=r"whose gpu\.name is 'Abacus', and here it is"):
        bench_train(
            small_plan(), "small", Request(reference=write_json(path, images_per_s=4.0, **{"gpu.name": "Abacus"}))
        )


def test_the_ratio_is_that_of_the_same_work(tmp_path, monkeypatch, capfd):
    gpu = train.identity("train")["gpu.name"]
    rates = {4: 5.0, 2: 8.0}
    monkeypatch.setattr(train, "measure", lambda job, micro, *_: {"micro": micro, "images_per_s": rates[micro]})
    plan = small_plan("stylegan2_demo", "recipe.discriminator.group_size=2")

    def compared(**settings: int | None) -> float:
        told = {"images_per_s": 4.0, "settings": settings, "date": "2020-01-01", "gpu.name": gpu}
        path = write_json(tmp_path / "a.json", **told)
        return bench_train(plan, "small", Request(micro=(4, 2), reference=path))["ratio_to_reference"]

    assert compared() == compared(micro=None) == 2.0, "the fastest, where nothing is said"
    assert (compared(micro=4, batch=4, resolution=8), compared(micro=2)) == (1.25, 2.0)
    assert "a.json is of 2020-01-01: clocks and neighbours change" in capfd.readouterr().err
    for name, value in (("micro", 8), ("batch", 32), ("resolution", 1024)):
        with pytest.raises(UsageError, match=rf"settings\.{name} is {value}, and here it is "):
            compared(**{name: value})


@pytest.mark.parametrize(
    "values", [{}, {"images_per_s": "many"}, {"images_per_s": 0}, {"images_per_s": True}, {"images_per_s": 1.0}]
)
def test_what_is_no_reference(values, tmp_path):
    with pytest.raises(UsageError, match=r"whose (images_per_s|gpu\.name) is"):
        read_reference(write_json(tmp_path / "theirs.json", **values), "Abacus")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UsageError, match="whose images_per_s is None"):
        read_reference(tmp_path / "list.json", "Abacus")


# The steps


def test_the_place_of_the_steps():
    plan = small_plan("demo", "recipe.schedule.start_resolution=4")
    recipe = build_recipe(plan.recipe, plan.batch.size, torch.float32, 0, None)
    last = find_place(recipe, None)
    assert (last.nimg, last.stage, last.room, last.cycle) == (recipe.stages[-1].start, recipe.stages[-1], None, 1)
    fade = find_place(recipe, 9_990)
    assert fade.stage.fade and fade.nimg == 9_988 and fade.room == 3
    assert [fade.at(step) for step in range(5)] == [9_988, 9_992, 9_996, 9_988, 9_992]
    plan = small_plan()
    recipe = build_recipe(plan.recipe, plan.batch.size, torch.float32, 0, None)
    assert find_place(recipe, 1_000).nimg == 960  # steps of 4 in cycles of 16
    assert find_place(recipe, None).nimg == 0


def test_what_the_warm_up_took_is_forgotten_before_the_steps_are_timed(monkeypatch):
    """On a GPU: and a step behind it takes anew what steps need, before the first timed one."""
    seen: list[object] = []
    monkeypatch.setattr(train_measure, "_free", lambda device: seen.append(device.type))
    for kind in ("cpu", "cuda"):
        stand = SimpleNamespace(device=torch.device(kind), step=lambda feed: seen.append("a step"))
        train_measure._settle(stand, SimpleNamespace(drop=lambda: 0))
    assert seen == ["cuda", "a step"]


@pytest.mark.gpu
def test_the_peak_is_that_of_the_steps():
    """A gigabyte that only the warm-up took is neither allocated nor reserved."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()  # or the gigabyte may come of what other tests have left
    before = torch.cuda.memory_reserved(device)
    torch.ones(2**28, device=device)
    assert torch.cuda.max_memory_reserved(device) >= before + 2**30
    stand = SimpleNamespace(device=device, step=lambda feed: torch.ones(2**18, device=device))
    train_measure._settle(stand, SimpleNamespace(drop=lambda: 0))
    peak = train_measure.peak_memory(device)
    assert 2**20 <= peak["allocated"] <= peak["reserved"] < 2**30


def test_synthetic_batches():
    feed = Synthetic(Stage(0, None, 8, 6, 6, False, {}), CPU, torch.float32)
    batches = [feed.take().images for _ in range(5)]
    assert all(one.shape == (6, 3, 8, 8) and one.is_contiguous(memory_format=torch.channels_last) for one in batches)
    assert torch.equal(batches[0], batches[4]) and not torch.equal(batches[0], batches[1])
    assert batches[0].dtype == torch.float32 and -1 <= batches[0].min() < -0.9 and 0.9 < batches[0].max() <= 1
    assert feed.waited == feed.lost() == 0


def test_the_steps_are_those_of_the_schedule():
    stand = Stand(small_plan(), Images("synthetic"), CPU, None, 4)
    seen = []
    stand.backend.step = lambda phases, batch, first, micro: seen.append(([p.name for p in phases], first, micro)) or {}
    stand.backend.update_average = lambda decay: None
    stand.recipe.advance = lambda nimg, means: seen.append(nimg)
    with supply(stand.plan, Images("synthetic"), stand.place.stage, iter(()), CPU) as feed:
        for _ in range(5):
            stand.step(feed)
    due = [["generator", "path_length", "discriminator", "r1"], *[["generator", "discriminator"]] * 3]
    due.append(["generator", "path_length", "discriminator"])
    assert seen[0::2] == [(names, 4 * step, 4) for step, names in enumerate(due)]
    assert seen[1::2] == [4, 8, 12, 16, 20]


# The kernels


def event(name: str, start: float, end: float, device: str = "CUDA", annotation: bool = False):
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, time_range=span, device_type=SimpleNamespace(name=device), is_user_annotation=annotation
    )


def test_the_kernels_of_a_step():
    events = [
        event("conv", 0, 1000),
        event("add", 500, 1500),  # at the same time, in another stream
        event("add", 2000, 2500),
        event("Optimizer.step", 0, 9000, annotation=True),
        event("aten::add", 0, 9000, device="CPU"),
    ]
    found = summarise({"generator": (1, activities(events)), "r1": (4, activities(events[:1]))})
    assert found["phases"] == {"generator": {"kernels": 3, "busy_ms": 2.0}, "r1": {"kernels": 1, "busy_ms": 1.0}}
    assert (found["kernels_per_step"], found["busy_ms_per_step"]) == (3.25, 2.25)
    assert found["kernels"] == [
        {"name": "add", "calls_per_step": 2.0, "ms_per_step": 1.5, "share": pytest.approx(1.5 / 2.75)},
        {"name": "conv", "calls_per_step": 1.25, "ms_per_step": 1.25, "share": pytest.approx(1.25 / 2.75)},
    ]


def test_the_table_shows_kernels_and_the_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(train_measure, "profiled", lambda work, device: activities([event("conv", 0, 1000)] * 40))
    monkeypatch.setattr(train, "_prepared", lambda plan, request: CPU)
    gpu = train.identity("train")["gpu.name"]
    path = write_json(tmp_path / "theirs.json", images_per_s=1e-3, date="2026-01-01", **{"gpu.name": gpu})
    record = bench_train(small_plan("demo"), "small", Request(steps=1, warmup=0, profile=True, reference=path))
    lines = table(record)
    assert any("80 kernels in an average step" in line for line in lines)
    assert any(line.endswith("100.0%     80.0  conv") for line in lines)
    assert lines[-1].endswith(f"times the 0.00 images/s of theirs.json ({gpu}, 2026-01-01)")


def test_a_place_for_the_result_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "measure", None)
    with pytest.raises(Failure, match=r"nowhere/train\.json cannot be written: No such file"):
        bench_train(small_plan(), "small", Request(out=tmp_path / "nowhere" / "train.json"))


@pytest.mark.gpu
@pytest.mark.parametrize("performance", ["fast", "reference"])
def test_the_command_on_a_gpu(performance, monkeypatch, tmp_path):
    out, config = tmp_path / "train.json", ROOT / "configs" / "stylegan2_demo.yaml"
    own = [
        *ALL_PHASES["stylegan2_demo"],
        "precision=bf16",
        f"performance={performance}",
        "--profile",
        "--steps",
        5,
        "--out",
        out,
    ]
    monkeypatch.setitem(train_rates._SIDES, "cuda", 1024)
    monkeypatch.setitem(train_rates._BUFFER, "cuda", 2**26)
    assert run(monkeypatch, "train", "--config", config, *own) == 0
    record = json.loads(out.read_text())
    result, profile = record["results"][0], record["results"][0]["profile"]
    assert result["steps"] == 16 and result["average_ms_per_step"] == result["ms_per_step"]
    assert min(result["device_ms_per_step"], result["host_ms_per_step"]) > 0
    assert 0 < result["memory"]["allocated"] <= result["memory"]["reserved"]
    assert profile["phases"].keys() == result["phases"].keys() == PHASES["stylegan2_demo"].keys()
    assert all(one["kernels"] > 100 and one["busy_ms"] > 0 for one in profile["phases"].values())
    assert profile["kernels"][0]["ms_per_step"] > 0 and profile["busy_ms_per_step"] > 0
    assert set(result["floor"]["matrix_tflops"]) == {"bfloat16", "float32"}
    sides = result["floor"]["by_resolution"].values()
    assert result["floor"]["ms_per_step"] == pytest.approx(sum(one["ms"] for one in sides))
