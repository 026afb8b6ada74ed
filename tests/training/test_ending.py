"""What processes leave for the script that started their launcher."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch.launching import launch, status_of

from hires_gan.errors import Elsewhere, Failure, UsageError
from hires_gan.training.ending import ENDINGS, tell_end
from hires_gan.training.world import World


def test_lines_are_added_one_for_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "endings"
    monkeypatch.setenv(ENDINGS, str(file))
    tell_end(2, "a key\nis wrong")
    tell_end(1, "x" * 2000)
    first, second = file.read_text().splitlines()
    assert first == "exit code 2: a key is wrong"
    assert second == f"exit code 1: {'x' * 1000}"


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDINGS, raising=False)
    monkeypatch.chdir(tmp_path)
    tell_end(2, "a key is wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_refused_tells_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDINGS, str(tmp_path / "endings"))
    done = subprocess.run([sys.executable, "-m", "hires_gan", "train", str(tmp_path / "absent.yaml")], timeout=120)
    assert done.returncode == 2
    assert (tmp_path / "endings").read_text().startswith("exit code 2: ")


@pytest.mark.slow
def test_every_process_that_a_signal_stops_tells_it(settings: Any, write_config: Any, tmp_path: Path) -> None:
    settings["run"]["total_kimg"] = 100
    command = ["--standalone", "--nproc-per-node", "2", "-m", "hires_gan", "train", str(write_config(settings))]
    file, run = tmp_path / "endings", tmp_path / "runs" / "small"
    process = launch(["torchrun", *command], tmp_path / "log", **{ENDINGS: str(file)})
    process.wait_for(lambda: status_of(run).get("nimg", 0) > 0)
    process.process.send_signal(signal.SIGTERM)
    assert process.ended() == 1
    assert [line[:13] for line in file.read_text().splitlines()] == ["exit code 75:"] * 2


class Told(World):
    """A world in which another process has told of an error of its own."""

    def gathered(self, value: Any) -> list[Any]:
        return [self.other, value] if self.rank else [value, self.other]

    other: Any = None


@pytest.mark.parametrize(("error", "usage"), [(UsageError("x"), True), (Failure("x"), False)])
def test_all_processes_end_with_the_exit_code_of_the_one_that_failed(error: Failure, usage: bool) -> None:
    import torch

    world = Told(torch.device("cpu"), rank=1, size=2)
    object.__setattr__(world, "other", [isinstance(error, UsageError), str(error)])
    with pytest.raises(Elsewhere) as told, world.together():
        pass
    assert told.value.usage is usage
