"""`hires-gan bench scaling`: what it measures, what it is given, and what it makes of both."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hires_gan import cli
from hires_gan.bench import scaling, scaling_measure, scaling_together
from hires_gan.bench.scaling import GPUS, Request, as_given, bench_scaling, slowest
from hires_gan.bench.scaling_measure import buckets_of, gradients_of, local_batch, measure_step
from hires_gan.bench.scaling_model import IN_WORDS, Conditions, Network, PhaseCost, StepCost, strong, weak
from hires_gan.bench.scaling_options import parse_first, parse_network, parse_seconds
from hires_gan.bench.train_images import Images
from hires_gan.bench.train_steps import Stand
from hires_gan.config import load_configuration
from hires_gan.errors import Failure, UsageError
from hires_gan.recipes.protocol import Batch, Phase
from hires_gan.training.backends import Backend
from hires_gan.training.graphs import Recorder
from hires_gan.training.levers import Pulled
from hires_gan.training.world import World

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs" / "stylegan2_demo.yaml"
CPU = torch.device("cpu")
SMALL = [
    "recipe.resolution=8",
    "recipe.generator.latent_size=8",
    "recipe.generator.fmap_base=64",
    "recipe.generator.fmap_max=8",
    "recipe.discriminator.fmap_base=64",
    "recipe.discriminator.fmap_max=8",
    "recipe.loss.path_length=2",
    "evaluation.metrics=[]",
    "evaluation.best=null",
]
INTERVALS = {"generator": 1, "path_length": 4, "discriminator": 1, "r1": 16}
ALL_SECONDS = "generator=0.0264,path_length=0.0242,discriminator=0.0276,r1=0.0247"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["hires-gan", "bench", "scaling", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def plan():
    return load_configuration(CONFIG, SMALL)


@pytest.fixture
def stand(plan) -> Stand:
    return Stand(plan, Images("synthetic"), CPU, None, 8)


# The command


def test_the_command(monkeypatch, tmp_path, capfd):
    out = tmp_path / "scaling.json"
    assert run(monkeypatch, "--config", CONFIG, *SMALL, "--calls", 1, "--first", "6/10", "--out", out) == 0
    record = json.loads(out.read_text())
    assert record["bench"] == "scaling" and {"date", "git.commit", "cpu.model", "version.torch"} <= record.keys()
    settings, step = record["settings"], record["step"]
    assert (settings["batch"], settings["group"], settings["micro"], settings["device"]) == (8, 4, 8, "cpu")
    assert {name: phase["interval"] for name, phase in step["phases"].items()} == INTERVALS
    together = sum(phase["ms_per_call"] / phase["interval"] for phase in step["phases"].values())
    assert step["average_ms"] == pytest.approx(together + step["rest_ms"])
    assert "on a CPU" in step["from"] and "not" in record["published"]["whose"]
    assert record["network"]["is"] == "an assumption" and record["as_trained"] == "during"
    for way in ("behind", "during"):
        for row in (*record["weak"][way], *record["strong"][way]):
            check_row(row, step)
    assert [row["gpus"] for row in record["weak"]["behind"]] == list(GPUS)
    assert [row["idle_gpus"] for row in record["strong"]["behind"]][:4] == [0, 0, 2, 6]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("stylegan2_demo.yaml recipe.resolution=8")
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("assumed: 8 GPUs in a node; 300 GB/s") for line in lines)


def check_row(row: dict[str, Any], step: dict[str, Any]) -> None:
    parts = ("compute", "gradients", "means", "control", "stragglers", "first")
    assert row["step_ms"] == pytest.approx(sum(row[f"{part}_ms"] for part in parts))
    assert row["first_ms"] == pytest.approx(0.6 * row["batch"])  # 6 s in 10 kimg are 0.6 ms for each image
    assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["step_ms"])
    alone = step["average_ms"] + 0.6 * 8
    assert row["efficiency"] == pytest.approx(alone / 8 * row["batch"] / row["step_ms"] / row["gpus"])


def test_a_step_that_is_given_is_not_measured(monkeypatch, tmp_path, capfd):
    """The bytes are those of the networks; the prediction is said to be a model."""
    monkeypatch.setattr(scaling, "measure_step", None)
    out = tmp_path / "scaling.json"
    assert (
        run(monkeypatch, "--config", CONFIG, *SMALL, "--no-measure", "--step-seconds", ALL_SECONDS, "--out", out) == 0
    )
    record = json.loads(out.read_text())
    step = record["step"]
    assert step["average_ms"] == pytest.approx(26.4 + 24.2 / 4 + 27.6 + 24.7 / 16)
    assert step["from"] == "given by hand: what follows is a model on it, not a measurement"
    row = record["weak"]["behind"][-1]
    assert row["control_message_ms"] == pytest.approx(2 * 1023 * 0.03) and row["control_ms"] == 0
    assert record["as_trained"] == "behind" and set(record["weak"]) == {"behind"}, "recorded phases do not overlap"
    assert step["phases"]["r1"]["ready_ms"] is None
    shown = capfd.readouterr().out
    assert "not measured" in shown
    assert "a control message takes 0.42 ms among 8, 3.78 ms among 64, 61.38 ms among 1,024" in shown


def test_a_message_that_takes_longer_than_the_step_is_waited_for(monkeypatch, tmp_path):
    out = tmp_path / "scaling.json"
    arguments = ("--no-measure", "--step-seconds", ALL_SECONDS, "--latency", "0,0,60", "--jitter", 0, "--out", out)
    assert run(monkeypatch, "--config", CONFIG, *SMALL, *arguments) == 0
    row = json.loads(out.read_text())["weak"]["behind"][-1]
    assert row["step_ms"] == pytest.approx(2 * 1023 * 0.06)
    work = sum(row[f"{part}_ms"] for part in ("compute", "gradients", "means"))
    assert row["control_ms"] == pytest.approx(row["step_ms"] - work)
    assert row["control_ms"] > 50


def test_the_network_is_what_the_options_say(monkeypatch, tmp_path):
    out = tmp_path / "scaling.json"
    network = ("--per-node", 4, "--intra", 200, "--inter", 25, "--latency", "1,2,3", "--jitter", 0)
    arguments = ("--no-measure", "--step-seconds", ALL_SECONDS, "--out", out)
    assert run(monkeypatch, "--config", CONFIG, *SMALL, *arguments, *network) == 0
    found = json.loads(out.read_text())
    expected = {"per_node": 4, "intra": 200e9, "inter": 25e9, "hop_intra": 1e-6, "hop_inter": 2e-6, "hop_control": 3e-6}
    assert {name: found["network"][name] for name in expected} == pytest.approx(expected)
    rows = {row["gpus"]: row for row in found["weak"]["behind"]}
    assert rows[1024]["control_message_ms"] == pytest.approx(2 * 1023 * 3e-3) and rows[1024]["stragglers_ms"] == 0
    assert rows[1024]["control_ms"] == 0, "6 ms are beside a step of 62"


# What is measured


def test_all_of_the_gradient_is_in_buckets(stand):
    for phase in stand.phases:
        gradients = gradients_of(stand, phase)
        sizes, members = buckets_of(gradients)
        live = stand.place.stage.optimizers[phase.player].live
        assert sum(sizes) == 4 * gradients.buffer.numel()
        assert sum(len(group) for group in members) == len(live)


def test_buckets_are_ready_in_the_order_of_the_backward_pass(plan, stand, monkeypatch):
    """What lies nearest to the loss is complete first; a bucket that lacks a gradient is so behind the pass."""
    monkeypatch.setattr(scaling_measure, "BYTES", 4000)
    batch = local_batch(plan, stand.place.stage, Images("synthetic"), CPU, 8)
    found = {}
    for phase in stand.phases:
        gradients = gradients_of(stand, phase)
        _, members = buckets_of(gradients)
        found[phase.name] = scaling_measure._ready_shares(stand, phase, batch, gradients, members, 2)
        assert len(found[phase.name]) == len(members) > 1
        assert min(found[phase.name]) >= 0 and max(found[phase.name]) < 1
    assert found["discriminator"][0] == max(found["discriminator"]) > found["discriminator"][-1]
    assert found["r1"][0] == 0, "the last bias has no gradient in it"


def test_ready_is_a_part_of_the_passes(plan, stand):
    cost = measure_step(stand, local_batch(plan, stand.place.stage, Images("synthetic"), CPU, 8), 1)
    assert cost.micro == 8 and cost.rest > 0
    for phase in cost.phases.values():
        assert phase.ready is not None and len(phase.ready) == len(phase.buckets)
        assert max(phase.ready) <= phase.micro_seconds < phase.seconds(1)


class Recording(Recorder):
    """Records on a CPU, too: a recording is the function."""

    def __init__(self, device: torch.device, enabled: bool, awaited: Iterable[str] = ()) -> None:
        super().__init__(device, False, awaited)
        self.enabled = enabled

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        return cast(torch.cuda.CUDAGraph, SimpleNamespace(replay=function))


def recorded(backend: Backend) -> set[str]:
    """The phases whose forward and backward pass, and whose optimizer's step, are replayed."""
    functions = {key[0]: (runner._accumulate, runner._complete) for key, runner in backend._runners.items()}
    return {name for name, both in functions.items() if all(getattr(one, "_graph", None) for one in both)}


def test_what_is_recorded_is_so_before_any_of_it_is_measured(plan, monkeypatch):
    """Nothing is recorded before every phase has run once: one measured before the others would go op by op."""
    monkeypatch.setattr("hires_gan.training.backends.Recorder", Recording)
    monkeypatch.setattr("hires_gan.training.backends.pulled", lambda *_: Pulled(True, False, "none"))
    stand = Stand(plan, Images("synthetic"), CPU, None, 8)
    seen = []

    def timed(stand: Stand, phase: Phase, batch: Batch, calls: int) -> float:
        seen.append(recorded(stand.backend))
        return 1.0

    monkeypatch.setattr(scaling_measure, "time_phase", timed)
    batch = local_batch(plan, stand.place.stage, Images("synthetic"), CPU, 8)
    measure_step(stand, batch, 1)
    assert seen == [set(INTERVALS)] * 4
    together = scaling_together._entered(plan, Images("synthetic"), World(CPU), stand, batch)
    assert recorded(together) == set(INTERVALS)


@pytest.mark.gpu
def test_on_a_gpu_events_tell_when_buckets_are_ready(plan):
    """Phases are recorded as CUDA graphs there; when buckets are ready is measured beside the recordings."""
    device = torch.device("cuda")
    stand = Stand(plan, Images("synthetic"), device, None, 8)
    assert stand.backend.pulled.graphs
    cost = measure_step(stand, local_batch(plan, stand.place.stage, Images("synthetic"), device, 8), 3)
    assert recorded(stand.backend) == set(INTERVALS)
    for phase in cost.phases.values():
        assert phase.ready is not None
        assert 0 <= phase.ready[0] < phase.micro_seconds < phase.seconds(1)


def test_measuring_leaves_the_networks_frozen_and_without_hooks(plan, stand):
    batch = local_batch(plan, stand.place.stage, Images("synthetic"), CPU, 8)
    measure_step(stand, batch, 1)
    for player in stand.recipe.players.values():
        for parameter in player.parameters():
            assert not parameter.requires_grad and parameter.grad is None
            assert not parameter._post_accumulate_grad_hooks


# What is given


def test_a_step_of_other_seconds_keeps_its_proportions():
    phases = {"a": PhaseCost(1, 0.3, 0.1, (8,), (0.2,)), "b": PhaseCost(2, 0.1, 0.1, (8,), (0.0,))}
    cost = StepCost(phases, 4, rest=0.1)
    faster = as_given(cost, {"": 0.06})
    assert faster.seconds(4) == pytest.approx(0.06)
    assert faster.phases["a"].ready == pytest.approx((0.02,))
    named = as_given(cost, {"a": 0.2, "b": 0.4})
    assert named.phases["a"].seconds(1) == pytest.approx(0.2) and named.phases["b"].seconds(1) == pytest.approx(0.4)
    assert named.phases["a"].ready == pytest.approx((0.1,))
    assert named.rest == pytest.approx(0.1 * (0.2 + 0.4 / 2) / (0.4 + 0.2 / 2))
    assert as_given(cost, {}) is cost


def test_the_slowest_process_counts():
    one, two = ({"phases": {"a": _phase(seconds)}, "micro": 4, "rest": 0.0} for seconds in (0.1, 0.2))
    assert slowest([two, one]).phases["a"] == PhaseCost(1, 0.2, 0.0, (4,), (0.0,))
    assert slowest([one, two]).phases["a"].micro_seconds == 0.2


def _phase(seconds: float) -> dict[str, Any]:
    return {"interval": 1, "micro_seconds": seconds, "complete_seconds": 0.0, "buckets": [4], "ready": [0.0]}


def test_options_are_read():
    assert parse_seconds("0.061") == {"": 0.061}
    assert parse_seconds("a=1,b=2e-3") == {"a": 1, "b": 0.002}
    assert parse_seconds(None) == {}
    assert parse_first(["60/200", "5/40"]) == pytest.approx(60 / 200_000 + 5 / 40_000)
    assert parse_network(8, 300, 50, "2, 8,30").hop_inter == pytest.approx(8e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step-seconds", "fast"], "--step-seconds is 'fast'; seconds above 0 are allowed"),
        (["--step-seconds", "0"], "--step-seconds is '0'"),
        (["--step-seconds", "r1=1,r1=2"], "--step-seconds is 'r1=1,r1=2'"),
        (["--step-seconds", "r1=1,2"], "--step-seconds is 'r1=1,2'"),
        (["--step-seconds", "r1=nan"], "--step-seconds is 'r1=nan'"),
        (["--step-seconds", "r1=1,r2=1"], "names r1, r2; the phases of this configuration are generator, path_length"),
        (["--no-measure"], "--no-measure needs the seconds of every phase"),
        (["--no-measure", "--step-seconds", "0.06"], "--no-measure needs the seconds of every phase"),
        (["--per-node", "0"], "--per-node is 0"),
        (["--intra", "0"], "--intra is 0; GB/s above 0"),
        (["--inter", "-5"], "--inter is -5"),
        (["--inter", "nan"], "--inter is nan"),
        (["--latency", "2,8"], "--latency is '2,8'; microseconds"),
        (["--latency", "2,8,-1"], "--latency is '2,8,-1'"),
        (["--jitter", "-1"], "--jitter is -1"),
        (["--first", "60"], "--first is '60'; SECONDS/KIMG is allowed"),
        (["--first", "60/0"], "--first is '60/0'"),
        (["--calls", "0"], "--calls is 0"),
        (["--stage-nimg", "-1"], "--stage-nimg is -1"),
        (["backend.name=deepspeed"], "backend.name is deepspeed"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said, monkeypatch, capfd):
    assert run(monkeypatch, "--config", CONFIG, *SMALL, *arguments) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and said in error[0]


def test_a_place_that_cannot_be_written_is_told_first(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "measure_step", None)
    with pytest.raises(Failure, match="cannot be written"):
        bench_scaling(plan, "small", Request(out=tmp_path / "nowhere" / "scaling.json"))


def test_an_exhausted_memory_is_a_sentence(plan, monkeypatch):
    def exhausted(*_: object) -> StepCost:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scaling, "measure_step", exhausted)
    with pytest.raises(Failure, match="out of memory at 8x8 with a micro-batch of 8: set batch.per_device"):
        bench_scaling(plan, "small", Request())


def test_labels_are_refused(monkeypatch):
    plan = load_configuration(CONFIG, [*SMALL, "recipe.labels=true"])
    with pytest.raises(UsageError, match=r"recipe\.labels is true"):
        bench_scaling(plan, "small", Request())


# Processes that are there


def test_a_control_message_is_on_its_way_while_a_phase_is_measured():
    """Asked at the boundary before it, heard at the one behind, as the trainer does."""
    told: list[str] = []

    class World:
        def ask(self, flag: bool) -> Callable[[], bool]:
            told.append("asked")
            return lambda: bool(told.append("heard")) or flag

    class Backend:
        world = World()

        def step(self, *_: object) -> None:
            told.append("stepped")

    scaling_together._stepped(Backend(), None, range(4), 0)()
    assert told == ["asked", "stepped", "heard"]


@pytest.mark.parametrize(("control", "seconds"), [(0.05, 0.4 + 0.25 + 0.01), (0.9, 0.9)])
def test_a_measured_phase_waits_for_its_buckets_or_for_a_longer_message(control, seconds):
    cost = PhaseCost(2, 0.15, 0.05, (8, 4), (0.05, 0.0))
    messages = scaling_together.Messages(control, means=0.01, sums={8: 0.2, 4: 0.15})
    found = scaling_together._compared(cost, alone=0.4, together=0.5, messages=messages, overlap=True)
    assert found["predicted_ms"] == pytest.approx(1e3 * seconds), "two buckets of 0.35 s, 0.1 s of them hidden"
    assert (found["alone_ms"], found["measured_ms"]) == pytest.approx((400, 500))


@pytest.mark.slow
def test_two_processes_are_measured_beside_the_model(tmp_path):
    """What times are measured is not tested; what is said of them is."""
    out = tmp_path / "scaling.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "hires_gan", "bench", "scaling", "--config", str(CONFIG), *SMALL, "--calls", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(out)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    found = record["together"]
    assert (found["processes"], found["neighbours"], found["images_per_process"]) == (2, 2, 8)
    assert found["overlap"] is True and set(found["phases"]) == set(INTERVALS)
    alone = sum(phase["alone_ms"] / phase["interval"] for phase in found["phases"].values())
    assert found["alone_step_ms"] == pytest.approx(alone + record["step"]["rest_ms"])
    for phase in found["phases"].values():
        assert phase["predicted_ms"] >= (phase["alone_ms"] + found["means_ms"]) * (1 - 1e-9) > 0
        assert phase["measured_ms"] > 0
    assert found["control"] == scaling_together.CONTROL
    assert found["measured_efficiency"] == pytest.approx(found["alone_step_ms"] / found["measured_step_ms"])
    assert found["predicted_efficiency"] == pytest.approx(found["alone_step_ms"] / found["predicted_step_ms"])
    assert found["control_us_per_message"] == pytest.approx(1e3 * found["control_ms"] / 2)
    sizes = {str(size) for phase in record["step"]["phases"].values() for size in phase["buckets"]}
    assert set(found["buckets_ms"]) == sizes
    assert done.stdout.count("measured on 2 processes, 2 of them here") == 1


# What is kept


KEPT = json.loads((ROOT / "benchmarks" / "scaling.json").read_text())
PAGE = (ROOT / "benchmarks" / "scaling.md").read_text()


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_prediction_is_what_the_model_makes_of_its_step(name):
    kept = KEPT[name]
    conditions = {
        way: Conditions(
            Network(**{key: value for key, value in kept["network"].items() if key != "is"}),
            way == "during",
            kept["jitter"],
            kept["first_seconds_per_kimg"] / 1000,
        )
        for way in kept["weak"]
    }
    cost, settings = cost_of(kept["step"]), kept["settings"]
    batch, group = settings["batch"], settings["group"]
    for way, one in conditions.items():
        assert [row["gpus"] for row in kept["weak"][way]] == list(GPUS)
        for row in kept["weak"][way]:
            assert row == pytest.approx(weak(cost, row["gpus"], one).row())
        for row in kept["strong"][way]:
            assert row == pytest.approx(strong(cost, batch, group, row["gpus"], one).row())


def cost_of(step: dict[str, Any]) -> StepCost:
    phases = {}
    for name, one in step["phases"].items():
        ready = None if one["ready_ms"] is None else tuple(before / 1e3 for before in one["ready_ms"])
        passes = (one["ms_per_call"] - one["complete_ms"]) / 1e3
        phases[name] = PhaseCost(one["interval"], passes, one["complete_ms"] / 1e3, tuple(one["buckets"]), ready)
    return StepCost(phases, step["images"], step["rest_ms"] / 1e3)


def test_the_page_shows_what_is_kept():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| [\d,]+ \| [\d.]+ \|", line)]
    shown = {int(cells[0].replace(",", "")): [float(cell.split()[0]) for cell in cells[1:]] for cells in rows}
    assert set(shown) == set(GPUS)
    kept = {
        name: {row["gpus"]: row for row in KEPT[name]["weak"]["behind"]}
        for name in ("model_50", "model_400", "model_first")
    }
    strongly = {row["gpus"]: row for row in KEPT["model_50"]["strong"]["behind"]}
    for number, cells in shown.items():
        row = kept["model_50"][number]
        assert row["control_ms"] == 0, "the page says so"
        times = [row[name] for name in ("gradients_ms", "control_message_ms", "stragglers_ms", "step_ms")]
        shares = [100 * kept[name][number]["efficiency"] for name in kept]
        assert cells == pytest.approx([*times, *shares, 100 * strongly[number]["efficiency"]], abs=0.0501)


def test_kept_records_say_what_they_are():
    assert "on a CPU" in KEPT["cpu"]["step"]["from"] and KEPT["cpu"]["together"]["processes"] == 2
    assert KEPT["cpu"]["together"]["control"] == "waited for in every step" != scaling_together.CONTROL
    for name in ("model_50", "model_400", "model_first"):
        assert "not a measurement" in KEPT[name]["step"]["from"]
    for record in KEPT.values():
        assert {"date", "git.commit", "version.torch", "cpu.model"} <= record.keys()
        assert record["model"] == IN_WORDS
        assert {"date", "git.commit", "from"} <= record["predicted"].keys()
