"""`run.profile`: which steps are traced, and what the trace names."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from hires_gan.config import Configuration, to_yaml
from hires_gan.recipes.protocol import Outcome, Phase
from hires_gan.training.profiling import StepProfiler
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
    ],
)
def test_a_step_with_every_phase_and_the_next_one_two_cycles_in(tmp_path, intervals, first, expected):
    assert traced_steps(tmp_path, intervals, first, 80) == expected


def test_a_run_that_ends_before_says_so(tmp_path, capsys):
    assert traced_steps(tmp_path, {"main": 1, "r1": 16}, 0, 30) == []
    assert "the run ended before the 34 steps that it takes" in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()


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
    assert "phase: generator" in summary
    assert "aten::convolution" in summary or "aten::mkldnn_convolution" in summary


def test_without_it_nothing_is_written(settings, tmp_path):
    settings["run"]["total_kimg"] = 0.1
    configuration = Configuration.model_validate(settings)
    assert train(configuration, to_yaml(configuration))
    assert not (tmp_path / "runs" / "small" / "profile").exists()
