"""What checkpoints cost, as `hires-gan bench train --checkpoint` has it; and where they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_plans import SMALL, quick_rates, run

from hires_gan.bench import train, train_checkpoint
from hires_gan.bench.train_checkpoint import ROUNDS, in_a_run, measure_checkpoint
from hires_gan.bench.train_images import open_images
from hires_gan.bench.train_queue import Queue, queued
from hires_gan.bench.train_steps import Stand
from hires_gan.bench.train_table import checkpoint_lines
from hires_gan.config import load_configuration

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "demo.yaml"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    quick_rates(monkeypatch)


def test_what_a_checkpoint_costs_is_measured_beside_it(monkeypatch, tmp_path, capfd):
    out, folder = tmp_path / "train.json", tmp_path / "disk"
    arguments = ["--config", CONFIG, *SMALL, "--steps", 3, "--warmup", 1, "--checkpoint", folder, "--out", out]
    assert run(monkeypatch, "train", *arguments) == 0
    saved = json.loads(out.read_text())["results"][0]["checkpoint"]
    assert saved["steps"] == 3
    assert saved["lost_share_of_step"] == pytest.approx(saved["lost"] / saved["step"])
    assert min(saved["step"], saved["copy"], saved["background"]) > 0
    cost = saved["copy"] + saved["lost"]  # a checkpoint every 10 kimg, in steps of 4 images
    assert saved["every_kimg"] == 10
    assert saved["share_of_wall_time"] == pytest.approx(cost / (10_000 / 4 * saved["step"] + cost))
    assert list(folder.iterdir()) == []
    plan = load_configuration(CONFIG, list(SMALL))
    stand = Stand(plan, open_images(plan, "synthetic", CPU), CPU, None, 4)
    weights = {part: sum(v.numel() for v in tensors.values()) for part, tensors in stand.backend.tensors().items()}
    whole = 2 * weights["generator"] + weights["discriminator"]  # with the average
    assert 2 * whole < saved["bytes"] / 4 < 3 * whole, "moments too, of what lives in the last stage"
    lines = capfd.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.strip().startswith("checkpoint")]
    assert "3 steps beside it lose" in line
    (line,) = [line for line in lines if line.startswith("  of a run's time")]
    assert line.endswith(f"{saved['share_of_wall_time']:.3%}, with a checkpoint every 10 kimg")


class Watched(Stand):
    """Notes the phases of each step, and how many batches were dropped before it."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.seen: list[tuple[list[str], int]] = []
        self.dropped = 0

    def step(self, feed: object) -> None:
        due = [phase.name for phase in self.recipe.phases(self.place.at(self.steps))]
        self.seen.append((due, self.dropped))
        self.dropped = 0
        super().step(feed)


@pytest.mark.parametrize("ahead", [0, 2])
def test_steps_alone_and_beside_a_checkpoint_are_the_same(ahead, monkeypatch, tmp_path):
    """No whole cycles: path lengths are due in one of three, and in both halves of each round. What was decoded ahead
    is dropped before each half, with a step that is not timed; and the first one does not wait for a loader to start.
    """

    def drop(feed: Queue) -> int:
        assert feed._taken > 0
        stand.dropped = ahead
        return ahead

    monkeypatch.setattr(Queue, "drop", drop)
    overrides = [*SMALL, "recipe.loss.path_length=2"]
    plan = load_configuration(CONFIG.with_name("stylegan2_demo.yaml"), overrides)
    stand = Watched(plan, open_images(plan, "synthetic", CPU), CPU, None, 4)
    stand.steps = 18
    with queued(stand) as feed:
        measure_checkpoint(stand, feed, 3, tmp_path)
    plain, lengths = ["generator", "discriminator"], ["generator", "path_length", "discriminator"]
    alone = [due for due, dropped in stand.seen if not dropped]
    assert alone == [plain, plain, lengths] * 2 * ROUNDS
    assert len(stand.seen) - len(alone) == (2 * ROUNDS if ahead else 0)


COSTS = {"step": 0.1, "copy": 0.02, "lost": 0.08, "background": 3.0, "steps": 32}


def test_what_checkpoints_cost_a_run_by_hand():
    """200 kimg in steps of 4 images: 50,000 steps of 0.1 s, beside which 0.1 s are lost."""
    found = in_a_run(COSTS, 200.0, 4)
    assert found == {"every_kimg": 200.0, "share_of_wall_time": pytest.approx(0.1 / 5000.1), "remark": None}
    assert in_a_run(COSTS, 0.001, 4)["share_of_wall_time"] == 0.5  # no more than one at each step


def test_without_regular_checkpoints_they_have_no_share():
    found = in_a_run(COSTS, None, 4)
    assert (found["every_kimg"], found["share_of_wall_time"]) == (None, None)
    shown = list(checkpoint_lines(COSTS | {"bytes": 1, "lost_share_of_step": 0.8} | found))
    assert len(shown) == 2 and "checkpoint.every_kimg is null, so that there are no regular checkpoints" in shown[1]


def test_a_checkpoint_that_outlasts_the_steps_is_told():
    found = in_a_run(COSTS | {"background": 3.3}, 200.0, 4)
    assert found["remark"].startswith("it is still written when the 32 steps end, after 3.20 s: ")
    shown = list(checkpoint_lines(COSTS | {"bytes": 1, "lost_share_of_step": 0.8} | found))
    assert shown[-1].strip() == found["remark"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named_before_anything_is_measured(place, monkeypatch, tmp_path, capfd):
    (tmp_path / "file").touch()
    monkeypatch.setattr(train, "measure", None)
    arguments = ["--config", CONFIG, *SMALL, "--checkpoint", tmp_path / place]
    assert run(monkeypatch, "train", *arguments) == 1
    said = capfd.readouterr().err
    assert f"--checkpoint is {tmp_path / place}, where no folder can be made: " in said


def test_what_a_killed_run_left_is_in_nobodys_way(monkeypatch, tmp_path, capfd):
    """Its folder, with a checkpoint in it, is told; the next run measures all the same."""
    folder = tmp_path / "disk"
    arguments = ["train", "--config", CONFIG, *SMALL, "--steps", 1, "--warmup", 0, "--checkpoint", folder]
    with monkeypatch.context() as killed:
        killed.setattr(train_checkpoint.shutil, "rmtree", lambda folder, ignore_errors: None)
        assert run(monkeypatch, *arguments) == 0
    left = set(folder.iterdir())
    assert any(any(one.iterdir()) for one in left)
    capfd.readouterr()
    assert run(monkeypatch, *arguments) == 0
    assert set(folder.iterdir()) == left
    said = " ".join(capfd.readouterr().err.split())
    assert all(f"{one.name} is of another bench train" in said for one in left)
