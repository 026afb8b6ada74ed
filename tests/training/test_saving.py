"""Checkpoints that are written beside the training."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hires_gan import checkpoint
from hires_gan.errors import Failure
from hires_gan.training.saving import Saver

WRITE = checkpoint.write


def parts(value: float) -> dict[str, dict[str, Tensor]]:
    weight = torch.full((2, 3, 4, 5), value).contiguous(memory_format=torch.channels_last)
    return {"generator": {"weight": weight, "step": torch.tensor(value)}}


class Disk:
    """A disk that writes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> None:
        self.begun, self.may = threading.Event(), threading.Event()
        self.failure = failure
        monkeypatch.setattr(checkpoint, "write", self.write)

    def write(self, *arguments: Any) -> checkpoint.Checkpoint:
        self.begun.set()
        assert self.may.wait(30)
        if self.failure is not None:
            raise self.failure
        return WRITE(*arguments)


def test_training_goes_on_and_changes_nothing_of_what_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    disk, live = Disk(monkeypatch), parts(1.0)
    with Saver(tmp_path, 3) as saver:
        saver.save(16, live, {"progress": 1}, None)
        assert disk.begun.wait(30)
        assert checkpoint.latest(tmp_path) is None
        live["generator"]["weight"].fill_(7.0)  # the next steps
        saver.check()  # waits for nothing
        disk.may.set()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.nimg, saver.last) == (16, found)
    assert found.tensors("generator")["weight"].unique().tolist() == [1.0]
    assert found.tensors("generator")["step"].shape == ()


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    with Saver(tmp_path, 2) as saver:
        for number in range(1, 6):
            saver.save(number, parts(float(number)), {}, None)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == [f"{n:012d}" for n in (4, 5)]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.tensors("generator")["weight"].unique().tolist() == [5.0]
    assert [cost.blocked >= 0 and cost.background > 0 for cost in saver.costs] == [True] * 5


def test_the_best_one_is_pointed_to_when_it_is_whole(tmp_path: Path) -> None:
    with Saver(tmp_path, 1) as saver:
        saver.save(1, parts(1.0), {}, checkpoint.directory_name(1))
        saver.save(2, parts(2.0), {}, checkpoint.directory_name(1))
        saver.save(3, parts(3.0), {}, checkpoint.directory_name(1))
    assert checkpoint.pointed(tmp_path, checkpoint.BEST) == checkpoint.directory_name(1)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == [f"{n:012d}" for n in (1, 3)]


def test_what_fails_in_the_background_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    disk = Disk(monkeypatch, Failure("the disk is full"))
    with pytest.raises(Failure, match="the disk is full"), Saver(tmp_path, 3) as saver:
        saver.save(16, parts(1.0), {}, None)
        disk.may.set()
    with pytest.raises(Failure, match="the disk is full"), Saver(tmp_path, 3) as saver:
        saver.save(16, parts(1.0), {}, None)
        saver.save(32, parts(1.0), {}, None)


def test_what_failed_first_is_what_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    disk = Disk(monkeypatch, Failure("the disk is full"))
    with pytest.raises(ZeroDivisionError), Saver(tmp_path, 3) as saver:
        saver.save(16, parts(1.0), {}, None)
        disk.may.set()
        raise ZeroDivisionError


def test_other_shapes_get_other_copies(tmp_path: Path) -> None:
    """A new stage has more parameters."""
    with Saver(tmp_path, 3) as saver:
        saver.save(1, parts(1.0), {}, None)
        saver.save(2, {"generator": {"weight": torch.ones(2, 2), "more": torch.ones(3, dtype=torch.int64)}}, {}, None)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert {name: list(v.shape) for name, v in found.tensors("generator").items()} == {"weight": [2, 2], "more": [3]}


@pytest.mark.gpu
def test_copies_of_a_gpu_arrive_behind_what_was_launched_before(tmp_path: Path) -> None:
    value = torch.zeros(64 * 2**20, device="cuda")
    with Saver(tmp_path, 3) as saver:
        value.add_(1)
        saver.save(1, {"generator": {"weight": value}}, {}, None)
        value.add_(1)  # launched behind the copy
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.tensors("generator")["weight"].unique().tolist() == [1.0]
