"""Which evaluation is the best, when a run has diverged, what a checkpoint keeps of it; and metrics in whole runs."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import changed, run, saved

from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.protocol import CheckpointRecord, Record, make_record
from hires_gan.evaluation.results import Measured, Result
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.training.judging import Progress, judge, known_best, much_worse, progress_state, restored

ROOT = Path(__file__).resolve().parents[2]
WHERE = "runs/small/checkpoints"


def result(name: MetricName, value: float, **changes: Any) -> Result:
    where: dict[str, Any] = {"resolution": 16, "checkpoint": CheckpointRecord(nimg=0), "reals": 10, "fakes": 10}
    return Result.of([Measured(make_record(name, value, **{**where, **changes}))])


def settings_of(name: MetricName, **changes: Any) -> EvaluationSettings:
    return EvaluationSettings(metrics=(name,), best=name, **changes)


def verdicts(progress: Progress, settings: EvaluationSettings, values: list[float]) -> list[str]:
    """Of one evaluation after the other."""
    assert settings.best is not None
    found = []
    for value in values:
        progress.nimg += 100
        found.append(judge(progress, settings, result(settings.best, value), 10, WHERE))
    return found


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("swd", [5, 6, 4, 4], ["best", "measured", "best", "measured"]),
        ("precision", [0.5, 0.4, 0.6, 0.6], ["best", "measured", "best", "measured"]),
        ("kid", [0.1, -0.001, 0.2], ["best", "best", "measured"]),
    ],
)
def test_the_best_is_the_lowest_or_the_highest(name: MetricName, values: list[float], expected: list[str]) -> None:
    progress = Progress()
    assert verdicts(progress, settings_of(name), values) == expected
    assert progress.best is not None
    assert progress.best.value == (max(values) if name == "precision" else min(values))
    assert progress.best.checkpoint == f"{progress.best.nimg:012d}"


def test_nothing_is_best_at_the_start_or_without_a_metric_that_decides() -> None:
    progress = Progress()
    assert judge(progress, settings_of("swd"), result("swd", 1.0), 10, WHERE) == "measured"
    assert progress.best is None
    assert judge(progress, EvaluationSettings(best=None), result("swd", 1.0), 10, WHERE) == "measured"


def test_much_worse_is_by_a_factor_in_the_metrics_own_direction() -> None:
    assert much_worse("fid", 31, 10, 3) and not much_worse("fid", 29, 10, 3)
    assert much_worse("recall", 0.19, 0.6, 3) and not much_worse("recall", 0.21, 0.6, 3)
    assert not much_worse("kid", 5, -0.001, 3), "nothing is so many times that"


def test_divergence_is_said_and_after_so_many_in_a_row_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    progress, settings = Progress(), settings_of("fid", stop_diverged=2)
    verdicts(progress, settings, [10, 31, 12])
    said = capfd.readouterr().err
    assert (
        "warning: fid is 31, more than 3 times worse than the best, 10 at 0.1 kimg: the run may have diverged" in said
    )
    assert progress.diverged == 0, "the last one was well"
    with pytest.raises(Failure, match=rf"2 times in a row: the run has diverged .* is {WHERE}/000000000100: s"):
        verdicts(progress, settings, [40, 50])
    assert verdicts(Progress(), settings_of("fid", diverged=6.0, stop_diverged=1), [10, 50]) == ["best", "measured"]
    never = Progress()
    verdicts(never, settings_of("fid"), [10, 40, 40, 40, 40])
    assert never.diverged == 4


def test_a_best_that_was_taken_otherwise_is_looked_for_anew(capfd: pytest.CaptureFixture[str]) -> None:
    progress, settings = Progress(nimg=100), settings_of("swd")
    judge(progress, settings, result("swd", 1.0), 10, WHERE)
    assert judge(progress, settings, result("swd", 9.0, reals=20), 10, WHERE) == "best"
    assert "the best swd was measured with reals 10, which is now 20: it is looked for anew" in capfd.readouterr().err


def test_a_checkpoint_keeps_what_it_takes_to_go_on() -> None:
    progress, settings = Progress(), settings_of("fid")
    verdicts(progress, settings, [10, 40])
    state = json.loads(json.dumps(progress_state(progress)))
    assert restored(200, state, known_best(state["best"], settings, 10)) == progress
    old = {"metric": "swd", "count": 16, "value": 3.5, "nimg": 160}  # of a version that knew swd alone
    found = known_best(old, EvaluationSettings(), 16)
    assert found is not None
    again = restored(160, {"best": old}, found)
    assert verdicts(again, EvaluationSettings(), [3.6, 3.4]) == ["measured", "best"]
    assert known_best(old, EvaluationSettings(), 32) is None
    assert known_best(None, EvaluationSettings(), 32) is None


# --- whole runs -------------------------------------------------------------------------------------------------------

FEATURES = "torchvision.models:mobilenet_v3_small"
"""A feature network of an installed package: random weights, always the same, and 1,000 numbers for each image."""


@pytest.fixture
def judged(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A short run that is judged by features."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    wanted = {"metrics": ["swd", "coverage", "fid"], "best": "coverage", "features": FEATURES}
    return changed(settings, run={"total_kimg": 0.16}, evaluation=wanted, samples={"every_kimg": None})


def points(settings: dict[str, Any]) -> dict[str, dict[int, float]]:
    with sqlite3.connect(Path(settings["run"]["dir"]) / "mlflow.db") as store:
        rows = store.execute("select key, step, value from metrics where key like 'evaluation/%'").fetchall()
    found: dict[str, dict[int, float]] = {}
    for key, step, value in rows:
        found.setdefault(key.removeprefix("evaluation/"), {})[step] = value
    return found


def test_a_run_keeps_the_best_by_a_metric_of_features_and_the_records(judged: dict[str, Any]) -> None:
    assert run(judged)
    folder = Path(judged["run"]["dir"]) / "small"
    logged = points(judged)
    assert set(logged) == {"swd", "swd/16", "coverage", "fid"}
    best = saved(judged).state["progress"]["best"]
    assert (best["metric"], best["count"], best["nimg"]) == ("coverage", 16, 160)
    assert checkpoint.pointed(folder / "checkpoints", "best") == "000000000160"
    for nimg in (0, 160):
        content = json.loads((folder / "evaluations" / f"{nimg:012d}.json").read_text())
        assert content["values"] == {name: values[nimg] for name, values in logged.items()}
        records = [Record.model_validate(one) for one in content["records"]]
        assert [(one.metric, one.reals, one.fakes) for one in records] == [
            ("swd", 16, 16),
            ("coverage", 40, 16),
            ("fid", 40, 16),
        ]
    artifacts = next((folder.parent / "mlartifacts").rglob("evaluations"))
    assert sorted(path.name for path in artifacts.iterdir()) == ["000000000000.json", "000000000160.json"]


def test_absent_weights_leave_a_metric_out_unless_it_decides(
    judged: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    absent = {"features": "inception", "metrics": ["swd", "fid", "kid"]}
    with pytest.raises(UsageError, match=r"evaluation\.best is fid, which cannot be computed: FID's Inception needs"):
        run(changed(judged, evaluation=absent | {"best": "fid"}))
    assert not (Path(judged["run"]["dir"]) / "small").exists()
    capfd.readouterr()
    assert run(changed(judged, evaluation=absent | {"best": "swd"}))
    said = capfd.readouterr().err
    assert said.count("warning: evaluations leave out fid, kid: FID's Inception needs weights-inception") == 1
    assert set(points(judged)) == {"swd", "swd/16"}


def test_a_metric_that_does_not_fit_is_refused_at_the_start(judged: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.metrics has ppl_w_end, a length in W, which Progressive GAN"):
        run(changed(judged, evaluation={"metrics": ["swd", "ppl_w_end"], "best": "swd"}))
    assert not (Path(judged["run"]["dir"]) / "small").exists()


def test_a_run_that_diverges_ends_and_names_its_best(judged: dict[str, Any]) -> None:
    """Every other evaluation is worse by so little a factor."""
    strict = {"diverged": 1.0 + 1e-9, "stop_diverged": 1, "metrics": ["swd"], "best": "swd", "every_kimg": 0.016}
    with pytest.raises(Failure, match=r"the run has diverged .* the best checkpoint is .*/small/checkpoints/0{9}\d+:"):
        run(changed(judged, evaluation=strict, run={"total_kimg": 0.48}))
    status = json.loads((Path(judged["run"]["dir"]) / "small" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "has diverged" in status["message"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_log_what_one_logs(judged: dict[str, Any], write_config: Any) -> None:
    """Of a network that nobody has trained yet, and of one that has been: that is the same with any number."""
    evaluation = {"count": 80, "metrics": ["swd", "fid", "density"], "best": "swd"}
    alone = changed(judged, evaluation=evaluation, run={"total_kimg": 0.032})
    assert run(alone)
    two = changed(alone, run={"dir": str(Path(alone["run"]["dir"]).with_name("two"))})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "hires_gan", "train", str(write_config(two))],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    one, other = points(alone), points(two)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert other[name] == pytest.approx(values, rel=1e-4), name
        assert other[name][0] == pytest.approx(values[0], rel=1e-6), name
