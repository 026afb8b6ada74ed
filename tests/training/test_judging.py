"""Which evaluation is the best, when a run has diverged, what a checkpoint keeps of it; and metrics in whole runs."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from whole_runs import changed, run, saved

from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import comparing
from hires_gan.evaluation.alike import protocol_of
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.evaluator import Evaluator
from hires_gan.evaluation.protocol import CheckpointRecord, Record, make_record
from hires_gan.evaluation.results import Measured, Result
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.tracking.comparison.command import compare
from hires_gan.tracking.protocols import histories_of
from hires_gan.tracking.tracker import Tracker
from hires_gan.training import registering
from hires_gan.training.judging import Best, Progress, judge, known_best, much_worse, progress_state, restored

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
    assert much_worse("kid", 0.5, -1e-4, 3, noise=0.01), "of the noise it is"
    assert not much_worse("kid", 0.02, -0.001, 3, noise=0.01)
    assert much_worse("kid", 0.5, 0.0, 3, noise=0.01) and not much_worse("fid", 5, 0.0, 3)
    assert not much_worse("recall", 0.0, 0.0, 3), "nothing is worse"
    assert much_worse("recall", 0.1, 0.6, 3, noise=0.3)
    assert not much_worse("kid", 0.00031, 0.0001, 3, noise=0.001), "no more than one measurement from the next"
    assert much_worse("kid", 0.0031, 0.0001, 3, noise=0.001)


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


def test_a_best_of_zero_or_below_is_no_end_of_watching(capfd: pytest.CaptureFixture[str]) -> None:
    """The deviation of a measurement takes its place; where that is not known, it is said, once."""
    settings, progress = settings_of("kid", stop_diverged=2), Progress()
    for value in (0.1, -0.0001, 0.5):
        progress.nimg += 100
        judge(progress, settings, result("kid", value, deviation=0.01), 10, WHERE)
    said = " ".join(capfd.readouterr().err.split())
    assert progress.diverged == 1 and "see nothing" not in said
    assert (
        "kid is 0.5, more than 3 times worse than the deviation of one measurement, 0.01, and the best, -0.0001 at"
        in said
    )
    progress.nimg += 100
    with pytest.raises(Failure, match=r"2 times in a row: the run has diverged"):
        judge(progress, settings, result("kid", 0.5, deviation=0.01), 10, WHERE)
    unknown = Progress()
    assert verdicts(unknown, settings, [0.1, -0.001, -0.002, 0.5, 0.6])[1:3] == ["best", "best"]
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("warning: the best kid is -0.001, and no value is so many times that") == 1
    assert said.count("see nothing") == 1 and "kid of more than 1,000 fakes or reals has a deviation" in said
    assert unknown.diverged == 0
    verdicts(Progress(), settings_of("precision"), [0.0, 0.0])
    assert "see nothing" not in capfd.readouterr().err


def test_a_best_that_was_taken_otherwise_is_looked_for_anew(capfd: pytest.CaptureFixture[str]) -> None:
    progress, settings = Progress(nimg=100), settings_of("swd")
    judge(progress, settings, result("swd", 1.0), 10, WHERE)
    assert judge(progress, settings, result("swd", 9.0, reals=20), 10, WHERE) == "best"
    assert "the best swd was measured with reals 10, which is now 20: it is looked for anew" in capfd.readouterr().err


def not_a_number(name: MetricName) -> Result:
    return Result({}, (), {name: "its values are not finite"})


def test_what_is_no_number_is_never_the_best_and_counts_as_diverged(capfd: pytest.CaptureFixture[str]) -> None:
    progress, settings = Progress(), settings_of("swd", stop_diverged=3)
    verdicts(progress, settings, [5])
    before = progress.best
    progress.nimg += 100
    assert judge(progress, settings, not_a_number("swd"), 10, WHERE) == "measured"
    assert progress.best is before and progress.diverged == 1
    assert "warning: swd is no finite number: the run may have diverged" in capfd.readouterr().err
    verdicts(progress, settings, [6])
    assert progress.diverged == 0, "the last one was well"
    verdicts(progress, settings, [50])
    judge(progress, settings, not_a_number("swd"), 10, WHERE)
    with pytest.raises(Failure, match=rf"finite number, 3 times in a row: the run has .* is {WHERE}/000000000100: s"):
        judge(progress, settings, not_a_number("swd"), 10, WHERE)
    never = Progress(nimg=100)
    for _ in range(4):
        judge(never, settings_of("swd"), not_a_number("swd"), 10, WHERE)
    assert never.diverged == 4
    judge(never, EvaluationSettings(best=None), not_a_number("swd"), 10, WHERE)
    assert never.diverged == 4, "no metric decides"


def test_a_run_that_never_had_a_number_ends_too() -> None:
    progress, settings = Progress(), settings_of("swd", stop_diverged=2)
    judge(progress, settings, not_a_number("swd"), 10, WHERE)
    assert progress.diverged == 0, "an untrained network has not diverged"
    progress.nimg = 100
    judge(progress, settings, not_a_number("swd"), 10, WHERE)
    state = json.loads(json.dumps(progress_state(progress)))
    again = restored(200, state, known_best(state["best"], settings, 10))
    assert again.diverged == 1, "a kill does not start the count anew"
    with pytest.raises(Failure, match=r"2 times in a row: .* no best checkpoint: start a new run"):
        judge(again, settings, not_a_number("swd"), 10, WHERE)
    verdicts(progress, settings, [5])
    assert progress.diverged == 0


def test_what_may_be_compared_has_an_equal_measure() -> None:
    bests = []
    for changes in ({}, {"checkpoint": CheckpointRecord(nimg=7)}, {"fakes": 20}):
        progress = Progress(nimg=100)
        judge(progress, settings_of("swd"), result("swd", 1.0, **changes), 10, WHERE)
        assert progress.best is not None
        bests.append(progress.best.measure)
    assert bests[0] == bests[1] != bests[2] and len(bests[0]) == 12
    assert Best("swd", 16, 3.5, 160).measure == "", "of a version that kept no records"


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
    assert known_best(None, EvaluationSettings(), 32) is None


def test_why_a_best_is_looked_for_anew_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    old: dict[str, Any] = {"metric": "swd", "count": 16, "value": 3.5, "nimg": 160}
    assert known_best(old, EvaluationSettings(), 32) is None
    assert "the best swd was measured on 16 images, and is now on 32: the best is looked" in capfd.readouterr().err
    assert known_best(old, settings_of("fid"), 16) is None
    assert "evaluation.best was swd, and is now fid: the best is looked for anew" in capfd.readouterr().err
    later = old | {"records": [{"metric": "swd", "a key of a later version": 1}]}
    assert known_best(later, EvaluationSettings(), 16) is None
    assert "another version has written it: the best is looked for anew" in capfd.readouterr().err


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


def tracked(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The store, and the run in it."""
    folder = Path(settings["run"]["dir"])
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run_id = json.loads((folder / settings["run"]["name"] / "tracking" / "run.json").read_text())["run_id"]
    return client, client.get_run(run_id)


@pytest.mark.slow
def test_runs_that_measure_otherwise_are_not_set_against_each_other(judged: dict[str, Any], tmp_path: Path) -> None:
    """One of them began as the other, and went on with more images."""
    few = changed(judged, evaluation={"metrics": ["swd"], "best": "swd", "every_kimg": 0.08})
    assert run(few)
    other = changed(few, run={"name": "other"})
    assert run(other)
    assert run(changed(other, run={"total_kimg": 0.32}, evaluation={"count": 24}))
    (_, one), (_, two) = tracked(few), tracked(other)
    assert [(entry.nimg, entry.protocol["fakes"]) for entry in histories_of(two.data.tags)["evaluation/swd"]] == [
        (0, "16"),
        (240, "24"),
    ]
    records = json.loads((Path(few["run"]["dir"]) / "small/evaluations/000000000160.json").read_text())["records"]
    (entry,) = histories_of(one.data.tags)["evaluation/swd"]
    assert entry.protocol == protocol_of([Record.model_validate(record) for record in records])
    folders = [str(Path(few["run"]["dir"]) / name) for name in ("small", "other")]
    lines = list(compare(folders, tmp_path / "compared", None, None, set()))
    assert "swd was not measured alike (reals 16 and 24, fakes 16 and 24): no best is marked" in lines
    assert any(line.startswith("other: swd was not always measured alike (reals 16 and 24, fakes") for line in lines)
    best = saved(other).state["progress"]["best"]
    assert f"{best['value']:.4g} ({best['nimg'] / 1000:g})" in lines[2], "as the run itself has it"


def test_a_run_that_diverges_registers_its_best(judged: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    strict = {"diverged": 1.0 + 1e-9, "stop_diverged": 1, "metrics": ["swd"], "best": "swd", "every_kimg": 0.016}
    named = changed(judged, evaluation=strict, run={"total_kimg": 0.48}, tracking={"register_as": "tiny"})
    with pytest.raises(Failure, match="the run has diverged"):
        run(named)
    client, run_ = tracked(named)
    best = saved(named).state["progress"]["best"]
    (version,) = client.search_model_versions("name = 'tiny'")
    assert (run_.info.status, version.run_id) == ("FAILED", run_.info.run_id)
    assert (version.tags["nimg"], float(version.tags["evaluation/swd"])) == (str(best["nimg"]), best["value"])
    assert version.tags["compared"] == Best(**best).measure and len(version.tags["compared"]) == 12
    assert client.get_model_version_by_alias("tiny", "best").version == version.version
    assert "is logged before the run ends, to be registered as tiny" in capfd.readouterr().err


def test_a_run_goes_on_where_a_metric_is_no_number(
    judged: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Evaluator.measure

    def spoilt(self: Evaluator, *arguments: Any) -> Result | None:
        found = whole(self, *arguments)
        return found and replace(found, not_finite={"fid": "so it is"}, values=dict(list(found.values.items())[:2]))

    monkeypatch.setattr(Evaluator, "measure", spoilt)
    assert run(changed(judged, evaluation={"metrics": ["swd", "fid"], "best": "fid"}))
    logged = tracked(judged)[1]
    assert math.isnan(logged.data.metrics["evaluation/fid"]) and logged.data.metrics["not_finite"] == 1
    said = capfd.readouterr().err
    assert "0.2 kimg: fid nan" in said and "warning: fid is no finite number: the run may have diverged" in said
    assert saved(judged).state["progress"]["best"] is None


@pytest.mark.slow
def test_what_ends_the_run_is_told_though_its_best_cannot_be_registered(
    judged: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Tracker, "log_model", fail)
    monkeypatch.setattr(registering, "SHORT_WAIT", 60.0)  # for what is asked of the store below
    strict = {"diverged": 1.0 + 1e-9, "stop_diverged": 1, "metrics": ["swd"], "best": "swd", "every_kimg": 0.016}
    with pytest.raises(Failure, match="the run has diverged"):
        run(changed(judged, evaluation=strict, run={"total_kimg": 0.48}, tracking={"register_as": "tiny"}))
    assert "kimg, is not registered as tiny: the disk is gone" in capfd.readouterr().err
    assert tracked(judged)[1].info.status == "FAILED"


@pytest.mark.slow
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
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    one, other = points(alone), points(two)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert other[name] == pytest.approx(values, rel=1e-4), name
        assert other[name][0] == pytest.approx(values[0], rel=1e-6), name


def test_a_number_that_is_not_finite_is_left_out_and_the_run_goes_on(
    judged: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """That of `best`, in the second of three evaluations."""
    compute, called = comparing.density_and_coverage, []

    def now_and_then(*sets: Any, **how: Any) -> tuple[float, float]:
        called.append(1)
        if len(called) == 2:
            raise NotFinite("the features of the fakes of 3 of 16 images are not finite")
        return compute(*sets, **how)

    monkeypatch.setattr(comparing, "density_and_coverage", now_and_then)
    assert run(changed(judged, evaluation={"every_kimg": 0.08}))
    assert saved(judged).state["progress"]["best"]["nimg"] == 160
    assert "left out of this evaluation: coverage: the features of the fakes of 3 of 16" in capfd.readouterr().err
    with sqlite3.connect(Path(judged["run"]["dir"]) / "mlflow.db") as store:
        rows = store.execute("select step, is_nan from metrics where key = 'evaluation/coverage'").fetchall()
        (counted,) = store.execute("select step, value from metrics where key = 'not_finite'").fetchall()
    assert sorted((step, bool(is_nan)) for step, is_nan in rows) == [(0, False), (80, True), (160, False)]
    assert counted == (80, 1.0)
    content = json.loads((Path(judged["run"]["dir"]) / "small/evaluations/000000000080.json").read_text())
    assert list(content["not_finite"]) == ["coverage"] and set(content["values"]) == {"swd", "swd/16", "fid"}
