"""Two machines train as one: each is a network namespace with a name and an address of its own, and gloo between."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from launching import LAUNCH, ROOT, SHORT, SUMMED, Launched, accelerated, commands, latest, launch, nimg_of, status_of
from machines import Machine, machines, missing
from training.rank_steps import FAMILIES, compare

pytestmark = pytest.mark.multinode
TORCHRUN = "torchrun.sh"


@contextmanager
def joined(named: bool = True) -> Iterator[list[Machine]]:
    """Two machines; skips where there can be none."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"this machine allows no network namespaces: {reason}")
    with machines(2, known=named) as made:
        yield made


@pytest.fixture
def two() -> Iterator[list[Machine]]:
    """That know each other's names."""
    with joined() as made:
        yield made


@pytest.fixture
def unnamed() -> Iterator[list[Machine]]:
    """That know no name but localhost, not even their own."""
    with joined(named=False) as made:
        yield made


def launched(two: list[Machine], command: list[list[str]], tmp_path: Path, **environment: str) -> list[Launched]:
    """Start each machine's command on it."""
    return [
        launch(line, tmp_path / f"{machine.name}.log", machine.start, **environment)
        for machine, line in zip(two, command, strict=True)
    ]


def torchrun(
    two: list[Machine], tmp_path: Path, *arguments: str, nodes: str = "2", only: int | None = None
) -> list[Launched]:
    """Train by `torchrun.sh`, one process on each machine, or on one only; machines meet at the first one."""
    tmp_path.mkdir(exist_ok=True)
    environment = {"HOST": two[0].address, "NODES": nodes, "GPUS": "1", "LAST_CALL": "3"}
    command = [str(LAUNCH / TORCHRUN), *arguments]
    started = two if only is None else [two[only]]
    return launched(started, [command] * len(started), tmp_path, **environment)


def undisturbed(settings: dict[str, Any], config: Path, tmp_path: Path) -> dict[str, Any]:
    """The checksums of what two processes of one machine leave behind the same run."""
    (command,) = commands("cpu.yaml", config)
    launch([*command, "run.name=whole"], tmp_path / "whole.log").succeeded()
    files: dict[str, Any] = latest(settings, "whole").state["files"]
    return files


# --- every file that is for several machines --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMMED)
def test_two_machines_train_together(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine], name: str
) -> None:
    settings["evaluation"]["every_kimg"] = None
    lines = commands(name, write_config(settings), two[0].address)
    runs = launched(two, [[*accelerated(line, "--num_processes", "2"), SHORT] for line in lines], tmp_path)
    first, second = (run.succeeded() for run in runs)
    assert "as the first of 2 processes, 1 of them here" in first
    assert f"gradients are summed by {SUMMED[name]}\n" in first
    assert "training on" not in second
    assert latest(settings, "small").state["world_size"] == 2


def test_torchrun_on_two_machines(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine]
) -> None:
    settings["evaluation"]["every_kimg"] = None
    said = [run.succeeded() for run in torchrun(two, tmp_path, str(write_config(settings)), SHORT)]
    assert sum("as the first of 2 processes, 1 of them here" in log for log in said) == 1
    assert latest(settings, "small").state["world_size"] == 2


def test_machines_without_names_train_by_address_and_interface(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, unnamed: list[Machine]
) -> None:
    settings["evaluation"]["every_kimg"] = None
    command = [str(LAUNCH / TORCHRUN), str(write_config(settings)), SHORT]
    where = {"HOST": unnamed[0].address, "NODES": "2", "GPUS": "1", "LAST_CALL": "3", "GLOO_SOCKET_IFNAME": "eth0"}
    for run in [
        launch(command, tmp_path / machine.name, machine.start, ADDRESS=machine.address, **where) for machine in unnamed
    ]:
        run.succeeded()
    assert latest(settings, "small").state["world_size"] == 2


# --- the same step ----------------------------------------------------------------------------------------------------


CELLS = {
    "data_parallel": [f"{name}:{kind}:{micro}" for name in FAMILIES for kind in ("adam", "sgd") for micro in (4, 2)],
    "zero1": [f"{name}:sgd:{micro}:1" for name in FAMILIES for micro in (4, 2)],
    "zero2": [f"{name}:sgd:{micro}:2" for name in FAMILIES for micro in (4, 2)],
}
"""Family, optimizer, micro-batch, stage of ZeRO: Adam in float64, plain descent in float32."""


@pytest.mark.parametrize("backend", CELLS)
def test_two_machines_step_as_one_process(tmp_path: Path, two: list[Machine], backend: str) -> None:
    """All phases, gradient penalty and path length included."""
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", two[0].address]
    script = str(ROOT / "tests" / "training" / "rank_steps.py")
    command = ["torchrun", *meeting, "--nproc-per-node", "1", script, str(tmp_path), *CELLS[backend]]
    for run in launched(two, [command] * 2, tmp_path, DS_ACCELERATOR="cpu"):
        run.succeeded()
    for cell in CELLS[backend]:
        compare(tmp_path, cell)


# --- when the network fails -------------------------------------------------------------------------------------------


def pulled(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine], nimg: int, *overrides: str
) -> tuple[dict[str, Any], Path, list[Launched]]:
    """A run whose second machine has lost its cable, its folder, and what it would have become."""
    settings["evaluation"]["every_kimg"] = None
    settings["tracking"]["every_kimg"] = 0.016
    config, folder = write_config(settings), Path(settings["run"]["dir"]) / "small"
    expected = undisturbed(settings, config, tmp_path)
    runs = torchrun(two, tmp_path, str(config), *overrides)
    runs[0].wait_for(lambda: nimg_of(folder) >= nimg)
    two[1].pull_cable()
    return expected, folder, runs


def test_a_link_that_is_down_for_ten_seconds_costs_ten_seconds(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine]
) -> None:
    """The run stands still, and goes on by itself: its weights are those of an undisturbed one."""
    expected, folder, runs = pulled(settings, write_config, tmp_path, two, 100)
    time.sleep(2)
    stands = nimg_of(folder)
    time.sleep(8)
    assert nimg_of(folder) == stands < 480
    two[1].plug_in()
    said, _ = [run.succeeded() for run in runs]
    assert "has not been heard of for" in said
    assert "is heard of again" in said
    assert latest(settings, "small").state["files"] == expected


def test_a_link_that_is_down_for_longer_than_the_timeout_begins_again_from_the_last_checkpoint(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine]
) -> None:
    expected, folder, runs = pulled(settings, write_config, tmp_path, two, 120, "backend.timeout=20")
    for run in runs:
        run.wait_for(lambda run=run: "has lost another process" in run.said)
    two[1].plug_in()
    said = "".join(run.succeeded() for run in runs)
    assert said.count(f"going on from {folder}") == 1
    assert latest(settings, "small").state["files"] == expected


@pytest.mark.parametrize("host", ["the first by name", "the last by name"])
def test_the_machine_that_is_left_goes_on_alone(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine], host: str
) -> None:
    """Elastic: everything on the other machine is killed, and nothing is waited for that cannot come.

    torchrun orders machines by name: the one where they meet need not be the one whose process is the first.
    """
    if host == "the last by name":
        two.reverse()
    settings["evaluation"]["every_kimg"] = None
    settings["tracking"]["every_kimg"] = 0.016
    settings["backend"] = {"processes": "1..2", "timeout": 30}
    folder = Path(settings["run"]["dir"]) / "small"
    runs = torchrun(two, tmp_path, str(write_config(settings)), nodes="1:2")
    runs[0].wait_for(lambda: nimg_of(folder) >= 120)
    start = time.monotonic()
    two[1].kill_all()
    said = runs[0].succeeded()
    assert time.monotonic() - start < 120
    assert runs[1].ended() != 0
    assert "has lost another process" in said
    assert f"going on from {folder}" in said
    saved = latest(settings, "small")
    assert (saved.nimg, saved.state["world_size"]) == (480, 1)
    assert status_of(folder)["state"] == "finished"


def test_a_machine_that_comes_later_takes_part(
    settings: dict[str, Any], write_config: Any, tmp_path: Path, two: list[Machine]
) -> None:
    """Elastic: a run of one machine, whose process has been killed once before, goes on with two."""
    settings["evaluation"]["every_kimg"] = None
    settings["tracking"]["every_kimg"] = 0.016
    settings["run"]["total_kimg"] = 1.6
    settings["backend"] = {"processes": "1..2", "timeout": 30}
    config, folder = str(write_config(settings)), Path(settings["run"]["dir"]) / "small"
    (first,) = torchrun(two[:1], tmp_path / "first", config, nodes="1:2")
    first.wait_for(lambda: nimg_of(folder) >= 120)
    os.kill(status_of(folder)["process"], signal.SIGKILL)
    first.wait_for(lambda: "going on from" in first.said)
    (second,) = torchrun(two, tmp_path / "second", config, nodes="1:2", only=1)
    for run in (first, second):
        run.succeeded()
    assert "they end without training" not in first.said
    saved = latest(settings, "small")
    assert (saved.nimg, saved.state["world_size"]) == (1600, 2)
