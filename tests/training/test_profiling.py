"""`run.profile`: which steps are traced, and what the trace names."""

from __future__ import annotations

import gzip
import json
import re
from types import SimpleNamespace

import pytest
import torch

from hires_gan.config import Configuration, to_yaml
from hires_gan.recipes.protocol import Outcome, Phase
from hires_gan.training.graphs import Recorder
from hires_gan.training.profiling import StepProfiler, _spans, span
from hires_gan.training.run import train

CPU = torch.device("cpu")


def phases(number: int, intervals: dict[str, int]) -> list[Phase]:
    return [
        Phase(name, "player", lambda step: Outcome({}), interval=interval)
        for name, interval in intervals.items()
        if number % interval == 0
    ]


def traced_steps(tmp_path, intervals: dict[str, int], first: int, steps: int) -> list[int]:
    """The numbers of the steps during which the profiler is on."""
    profiler = StepProfiler(tmp_path / "profile", CPU)
    on = []
    for number in range(first, first + steps):
        profiler.before(phases(number, intervals), phases(0, intervals))
        if profiler._profile is not None:
            on.append(number)
        torch.ones(2).add(1)
        profiler.behind()
    profiler.close()
    return on


@pytest.mark.parametrize(
    ("intervals", "first", "expected"),
    [
        ({"main": 1}, 0, [2, 3]),
        ({"main": 1, "path": 4, "r1": 16}, 0, [32, 33]),
        ({"main": 1, "path": 4, "r1": 16}, 20, [64, 65]),  # resumed: counted from where this process began
        ({"main": 1, "r1": 3}, 1, [9, 10]),
        ({"main": 1, "r1": 3}, 3, [9, 10]),
        ({"main": 1, "path": 4, "r1": 6}, 0, [24, 25]),  # a cycle is of 12 steps
        ({"main": 1, "path": 4, "r1": 6}, 5, [36, 37]),
    ],
)
def test_a_step_with_every_phase_and_the_next_one_two_cycles_in(tmp_path, intervals, first, expected):
    assert traced_steps(tmp_path, intervals, first, 80) == expected


@pytest.mark.parametrize(
    ("intervals", "first", "wanted"),
    [
        ({"main": 1}, 7, 4),
        ({"main": 1, "r1": 16}, 0, 34),
        ({"main": 1, "r1": 16}, 20, 46),  # 12 steps lead to the next cycle
        ({"main": 1, "path": 4, "r1": 6}, 0, 26),
        ({"main": 1, "path": 4, "r1": 6}, 5, 33),
    ],
)
def test_a_run_that_ends_before_says_how_many_steps_it_takes(tmp_path, capsys, intervals, first, wanted):
    """As soon as every phase was due; with one step fewer nothing is traced, with so many it is."""
    for steps in range(max(intervals.values()), wanted):
        traced_steps(tmp_path, intervals, first, steps)
        said = " ".join(capsys.readouterr().err.split())
        assert said.endswith(f"nothing is traced; the run ended before the {wanted} steps that it takes"), steps
        assert not (tmp_path / "profile").exists()
    assert traced_steps(tmp_path, intervals, first, wanted) == [first + wanted - 2, first + wanted - 1]
    assert (tmp_path / "profile" / "trace.json.gz").exists()


def test_a_run_that_ends_before_a_phase_was_due_says_what_is_enough(tmp_path, capsys):
    """From step 20 on it takes 46; after three steps without R1 the next one may be 13 more away."""
    traced_steps(tmp_path, {"main": 1, "r1": 16}, 20, 3)
    assert "the run ended before the 49 steps that it takes at most" in " ".join(capsys.readouterr().err.split())


def test_a_run_without_a_step_promises_nothing(tmp_path, capsys):
    traced_steps(tmp_path, {"main": 1, "r1": 16}, 20, 0)
    assert "nothing is traced; the run ended before its first step" in capsys.readouterr().err


def test_a_run_with_profile_leaves_a_trace_that_names_its_phases(settings, tmp_path, capfd):
    settings["run"]["profile"] = True
    configuration = Configuration.model_validate(settings)
    assert train(configuration, to_yaml(configuration))
    folder = tmp_path / "runs" / "small" / "profile"
    assert f"2 steps are traced in {folder}" in capfd.readouterr().err
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    spans = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in ("phase: generator", "phase: discriminator", "data", "average"):
        assert spans.count(name) == 2, name
    summary = (folder / "summary.txt").read_text()
    assert re.search(r"^phase: generator +2 calls +\d+\.\d\d ms of the host$", summary, re.MULTILINE)
    assert "aten::convolution" in summary or "aten::mkldnn_convolution" in summary


def test_without_it_nothing_is_written(settings, tmp_path):
    settings["run"]["total_kimg"] = 0.1
    configuration = Configuration.model_validate(settings)
    assert train(configuration, to_yaml(configuration))
    assert not (tmp_path / "runs" / "small" / "profile").exists()


def event(name: str, start: float, end: float, device: str = "CUDA"):
    """A span in microseconds, as the profiler has it."""
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), device_type=SimpleNamespace(name=device)
    )


def average(key: str, count: int, host: float, device: str):
    return SimpleNamespace(key=key, count=count, cpu_time_total=host, device_type=SimpleNamespace(name=device))


def test_on_a_gpu_spans_have_its_time_beside_the_hosts():
    """Both streams of a span count once where they overlap; the GPU's rows do not hide those of the host."""
    events = [
        event("phase: generator", 1e6, 1e6 + 2000, device="CPU"),
        event("phase: generator", 1e6 + 1000, 1e6 + 9000),
        event("phase: generator", 1e6 + 4000, 1e6 + 10_000),
        event("phase: generator", 1e6 + 5000, 1e6 + 6000),
        event("phase: generator", 2e6, 2e6 + 500),
        event("data", 0, 100, device="CPU"),
        event("gemm", 1e6 + 1000, 1e6 + 9000),
    ]
    averages = [
        average("phase: generator", 2, 2000, "CPU"),
        average("phase: generator", 4, 0, "CUDA"),
        average("data", 2, 100, "CPU"),
        average("gemm", 1, 0, "CUDA"),
    ]
    traced = SimpleNamespace(key_averages=lambda: averages, events=lambda: events)
    assert [" ".join(line.split()) for line in _spans(traced).splitlines()] == [
        "data 2 calls 0.10 ms of the host",
        "phase: generator 2 calls 2.00 ms of the host 9.50 ms of the GPU",
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("recorded", [False, True])
def test_a_trace_of_a_gpu_has_the_time_of_its_spans(recorded, tmp_path):
    """Products of that size take the GPU longer than Python takes to launch or to replay them."""
    device = torch.device("cuda")
    profiler, matrix = StepProfiler(tmp_path / "profile", device), torch.ones(4096, 4096, device=device)
    recorder = Recorder(device, recorded)

    def products() -> None:
        for _ in range(10):
            matrix.copy_(matrix @ matrix)

    work = recorder.wrap(products, "main")
    for number in range(4):
        profiler.before(phases(number, {"main": 1}), phases(0, {"main": 1}))
        with span("phase: main"):
            work()
        profiler.behind()
    assert recorder.enabled == recorded
    summary = (tmp_path / "profile" / "summary.txt").read_text()
    found = re.search(r"^phase: main +2 calls +[\d.]+ ms of the host +([\d.]+) ms of the GPU$", summary, re.MULTILINE)
    assert found is not None and float(found[1]) > 1
