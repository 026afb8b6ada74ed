"""Whole runs in one process: what they leave behind, and resuming from what is there."""

from __future__ import annotations

import copy
import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from whole_runs import changed, run

from hires_gan import checkpoint
from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.errors import Failure, UsageError
from hires_gan.training.trainer import Trainer


def weights(folder: Path) -> dict[str, str]:
    return checkpoint.latest(folder / "checkpoints").state["files"]


def metric_steps(run_dir: Path, key: str) -> list[int]:
    with sqlite3.connect(run_dir / "mlflow.db") as store:
        return [row[0] for row in store.execute("select step from metrics where key = ? order by step", (key,))]


def test_a_run_leaves_everything_that_it_promises(settings, tmp_path, capfd):
    assert run(settings)
    folder = tmp_path / "runs" / "small"
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "checkpoints" / "latest").read_text() == "000000000480\n"
    assert len(list((folder / "samples").glob("*.png"))) == 4  # at 0, 208, 400 and the end
    state = checkpoint.latest(folder / "checkpoints").state
    assert state["nimg"] == 480
    assert state["configuration"]["recipe"]["resolution"] == 16
    assert set(state["files"]) == {
        f"{part}.safetensors"
        for part in (
            "generator",
            "generator.average",
            "generator.optimizer",
            "discriminator",
            "discriminator.optimizer",
        )
    }
    assert metric_steps(tmp_path / "runs", "loss/generator") == list(range(32, 481, 32))
    assert metric_steps(tmp_path / "runs", "evaluation/swd") == [0, 160, 320, 480]
    said = capfd.readouterr().err
    assert "finished at 0.5 kimg" in said
    assert "mlflow ui" in said


def test_the_best_checkpoint_is_kept_beside_the_last_ones(settings, tmp_path):
    run(settings)
    root = tmp_path / "runs" / "small" / "checkpoints"
    best = checkpoint.read(root / (root / "best").read_text().strip())
    value, nimg = (best.state["progress"]["best"][key] for key in ("value", "nimg"))
    assert best.nimg == nimg
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        values = dict(store.execute("select step, value from metrics where key = 'evaluation/swd' and step > 0"))
    assert value == pytest.approx(min(values.values()))
    assert values[nimg] == value


def test_n_and_on_to_2n_is_2n(settings, tmp_path):
    """Promise 1 in one process; also across the border of two stages (192 images) and in the middle of a fade."""
    run(settings)
    whole = weights(tmp_path / "runs" / "small")
    for first in (0.192, 0.24):
        halves = changed(settings, run={"name": f"halves{first}", "total_kimg": first})
        assert run(halves)
        assert weights(tmp_path / "runs" / f"halves{first}") != whole
        assert run(changed(halves, run={"total_kimg": 0.48}))
        assert weights(tmp_path / "runs" / f"halves{first}") == whole


def test_micro_batches_workers_and_watching_change_no_weight_of_the_data_order(settings, tmp_path):
    """Another number of workers, cadences and prefetch: bit for bit the same weights."""
    run(settings)
    other = changed(
        settings,
        run={"name": "other"},
        data={"workers": 2, "prefetch": 1},
        samples={"every_kimg": None},
        evaluation={"every_kimg": None},
        checkpoint={"every_kimg": None},
    )
    run(other)
    assert weights(tmp_path / "runs" / "other") == weights(tmp_path / "runs" / "small")


def test_a_signal_ends_with_a_checkpoint_and_the_same_command_goes_on(settings, tmp_path, monkeypatch):
    run(settings)
    whole = weights(tmp_path / "runs" / "small")
    stopped = changed(settings, run={"name": "stopped"})
    step = Trainer._step

    def step_and_signal(self, planned, feed):
        if planned.nimg == 224:  # it reads in this process: its batch is given up, and the step not begun
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        step(self, planned, feed)

    monkeypatch.setattr(Trainer, "_step", step_and_signal)
    assert not run(stopped)
    folder = tmp_path / "runs" / "stopped"
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    assert checkpoint.latest(folder / "checkpoints").nimg == 224
    monkeypatch.undo()
    assert run(stopped)
    assert weights(folder) == whole
    assert metric_steps(tmp_path / "runs", "evaluation/swd").count(480) == 2  # once for each of the two runs


def test_labels_train_a_conditional_model(settings, tmp_path):
    labelled = copy.deepcopy(settings)
    labelled["recipe"]["labels"] = True
    run(labelled)
    state = checkpoint.latest(tmp_path / "runs" / "small" / "checkpoints").state
    assert state["inference"]["classes"] == 2
    assert metric_steps(tmp_path / "runs", "loss/labels_fake") == list(range(32, 481, 32))


def test_labels_that_the_data_do_not_have_are_refused(settings, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    prepare([str(tmp_path / "images")], tmp_path / "unlabelled", PrepareOptions(resolution=16, processes=1))
    asked = changed(settings, data={"shards": str(tmp_path / "unlabelled")}, recipe={"labels": True})
    sentence = "recipe.labels is true, but .*unlabelled has no labels; prepare it with --labels, or set it to false"
    with pytest.raises(UsageError, match=sentence):
        run(asked)
    assert not (tmp_path / "runs" / "small").exists()


def test_a_finished_run_stays_finished(settings, tmp_path):
    run(settings)
    before = weights(tmp_path / "runs" / "small")
    assert run(settings)
    assert weights(tmp_path / "runs" / "small") == before
    assert metric_steps(tmp_path / "runs", "loss/generator") == list(range(32, 481, 32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": {"size": 8}}, "batch.size was 16"),
        ({"run": {"seed": 1}}, "run.seed was 0"),
        ({"ema": {"half_life_batches": 6}}, "ema.half_life_batches was 5"),
    ],
)
def test_a_changed_key_that_may_not_change_is_named(settings, change, sentence):
    run(changed(settings, run={"total_kimg": 0.1}))
    with pytest.raises(UsageError, match=sentence):
        run(changed(settings, **change))


def test_resume_rules_of_the_run(settings):
    with pytest.raises(UsageError, match="run.resume is 'required', but"):
        run(changed(settings, run={"resume": "required"}))
    run(changed(settings, run={"total_kimg": 0.1}))
    with pytest.raises(UsageError, match="run.resume is 'never', but"):
        run(changed(settings, run={"resume": "never"}))


def test_other_data_is_refused_on_resume(settings, shards, tmp_path):
    run(changed(settings, run={"total_kimg": 0.1}))
    manifest = json.loads((shards / "manifest.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in shards.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    manifest["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="the manifests differ"):
        run(changed(settings, data={"shards": str(other)}))


def test_what_cannot_begin_leaves_no_folder(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="NVIDIA DALI, which is not installed"):
        patch.setitem(sys.modules, "nvidia.dali", None)
        run(changed(settings, data={"decoder": "dali-cpu"}))
    with pytest.raises(UsageError, match="there is no shard folder"):
        run(changed(settings, data={"shards": str(tmp_path / "nothing")}))
    with pytest.raises(UsageError, match=r"recipe\.resolution is 32, but the images in .* have 16"):
        run(changed(settings, recipe={"resolution": 32}))
    with pytest.raises(Failure, match="http://127.0.0.1:9"):
        run(changed(settings, tracking={"uri": "http://127.0.0.1:9"}))
    assert not (tmp_path / "runs" / "small").exists()


def test_nonfinite_steps_in_a_row_stop_the_run(settings, tmp_path):
    broken = copy.deepcopy(settings)
    broken["run"]["stop_after_nonfinite"] = 3
    broken["recipe"]["discriminator_optimizer"] = {"learning_rate": 1e30}
    with pytest.raises(Failure, match="steps in a row had gradients that are not finite"):
        run(broken)
    folder = tmp_path / "runs" / "small"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


def test_a_batch_larger_than_the_data_set_is_allowed_and_said(settings, capfd):
    run(changed(settings, batch={"size": 48, "per_device": 48}, run={"total_kimg": 0.1}))
    assert "a batch of 48 is larger than the data set of 40 images" in capfd.readouterr().err


def test_another_configuration_without_a_checkpoint_is_a_run_of_its_own(settings, tmp_path, capfd):
    """What was recorded of an attempt that wrote no checkpoint does not hide what the next one does."""
    broken = copy.deepcopy(settings)
    broken["run"]["stop_after_nonfinite"] = 3
    broken["recipe"]["discriminator_optimizer"] = {"learning_rate": 1e30}
    broken["checkpoint"]["every_kimg"] = None
    broken["evaluation"]["every_kimg"] = None
    with pytest.raises(Failure, match="the run has diverged. there is no checkpoint yet"):
        run(broken)
    assert run(settings)
    assert "the run begins anew, under a new MLflow run" in capfd.readouterr().err
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (2,)
    assert set(range(32, 481, 32)) <= set(metric_steps(tmp_path / "runs", "loss/generator"))


def test_a_signal_behind_the_last_step_leaves_the_last_grid_to_the_next_start(settings, tmp_path, monkeypatch):
    step = Trainer._step

    def step_and_signal(self, planned, feed):
        step(self, planned, feed)
        if planned.end == 480:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_step", step_and_signal)
    assert not run(settings)
    folder = tmp_path / "runs" / "small"
    assert not (folder / "samples" / "000000000480.png").exists()
    monkeypatch.undo()
    assert run(settings)
    assert (folder / "samples" / "000000000480.png").exists()
    assert metric_steps(tmp_path / "runs", "evaluation/swd") == [0, 160, 320, 480]
    best = checkpoint.latest(folder / "checkpoints").state["progress"]["best"]
    assert checkpoint.pointed(folder / "checkpoints", "best") == f"{best['nimg']:012d}"


def test_a_best_value_of_another_count_is_not_compared(settings, tmp_path, capfd):
    run(changed(settings, run={"total_kimg": 0.2}))
    run(changed(settings, evaluation={"count": 32}))
    assert re.search(
        r"was measured on 16 images, and is now on \d+: the best is looked for anew", capfd.readouterr().err
    )
    assert checkpoint.latest(tmp_path / "runs" / "small" / "checkpoints").state["progress"]["best"]["count"] == 32


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_a_run(settings, write_config, tmp_path):
    """A real full disk: the run ends by one sentence, and goes on once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=2600k tmpfs {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    settings["run"]["dir"] = str(disk / "runs")
    settings["tracking"]["uri"] = f"sqlite:///{tmp_path}/mlflow.db"
    settings["recipe"]["generator"]["fmap_max"] = settings["recipe"]["discriminator"]["fmap_max"] = 16
    settings["recipe"]["generator"]["fmap_base"] = settings["recipe"]["discriminator"]["fmap_base"] = 128
    config = write_config(settings)
    train_command = f"{sys.executable} -m hires_gan train {config}"
    script = f"""
        {mount}
        {train_command} run.total_kimg=0.1 || exit 9
        fallocate -l $(($(df --output=avail -B1 {disk} | tail -1) - 100000)) {disk}/filler
        {train_command}; echo code $?
        rm {disk}/filler
        {train_command}; echo code $?
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=240)
    assert done.stdout.split("\n")[:2] == ["code 1", "code 0"], done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
