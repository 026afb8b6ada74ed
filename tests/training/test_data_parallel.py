"""Several processes are one: a step, a run, a resume, a signal; and what each of them refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rank_steps import BATCH, FAMILIES, compare, stepped
from safetensors.torch import load_file
from whole_runs import saved

from hires_gan.training.buckets import cut
from hires_gan.training.flat import FlatGradients
from hires_gan.training.shares import in_words, share
from hires_gan.training.world import World

CPU = torch.device("cpu")
HERE = Path(__file__).resolve().parent


# --- shares and buckets -----------------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 12))
def test_shares_are_consecutive_whole_groups_of_all_samples(batch: int, group: int, size: int) -> None:
    shares = [share(batch, group, rank, size) for rank in range(size)]
    assert [sample for own in shares for sample in own] == list(range(batch))
    counts = [len(own) for own in shares]
    whole = max(1, batch // group)
    left = batch - whole * group if batch >= group else 0
    assert max(counts) - min(counts) <= group + left
    for own in shares[:-1]:
        assert own.start % group == 0 or not own
    assert sum(1 for own in shares if own) == min(size, whole)


def test_how_a_step_is_divided_is_said_in_words() -> None:
    assert in_words(32, 4, 3, 4) == "32 images a step: 12 for each of 2 processes, 8 for 1; 4 at once"
    assert in_words(32, 4, 2, 16) == "32 images a step: 16 for each of 2 processes; 16 at once"
    assert in_words(32, 4, 10, 8) == "32 images a step: 4 for each of 8 processes, none for 2; 4 at once"
    assert in_words(12, 4, 2, 4) == "12 images a step: 8 for 1 process, 4 for 1; 4 at once"


def test_buckets_are_cut_from_the_end_and_hold_all() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (5, 3, 10, 1, 1)]
    gradients = FlatGradients(parameters)
    parts, members = cut(gradients, 4 * 6)
    assert [len(part) for part in parts] == [12, 8]
    assert [[p.numel() for p in group] for group in members] == [[1, 1, 10], [3, 5]]
    assert parts[0].data_ptr() == gradients.buffer[8:].data_ptr()


def test_a_process_alone_asks_nobody() -> None:
    world = World(CPU)
    assert (world.any(True), world.any(False), world.gathered([1]), world.from_first("x")) == (True, False, [[1]], "x")
    world.agree("nothing", "value")
    values = [torch.ones(2)]
    assert world.sum(values)[0] is values[0]
    with pytest.raises(ZeroDivisionError), world.together():
        raise ZeroDivisionError


# --- steps ------------------------------------------------------------------------------------------------------------


def launched(processes: int, *arguments: str, module: str | None = None, **more: Any) -> subprocess.Popen[str]:
    """Start so many processes of a script, or of a module, that find each other on this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = ["-m", module] if module else []
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"} | more
    command = [*torchrun, *program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What it said on standard error."""
    _, said = process.communicate(timeout=550)
    assert process.returncode == 0, said
    return said


CELLS = [
    "progressive:adam:8",
    "stylegan:adam:8",
    "stylegan2:adam:8",
    "munit:adam:8",
    "stylegan2:adam:2",
    "progressive:sgd:2",
]
"""Family, optimizer and micro-batch: fp64 with Adam, fp32 with plain descent."""


def compare_gradients(folder: Path, cell: str) -> None:
    """The moments of a step that moves nothing, in float32, against those in float64.

    Where a gradient is a small difference of large terms, float32 does not know it to 1e-6 of itself; several processes
    know the gradients of a player about as well as one does, in whatever memory format the weights are.
    """
    exact = stepped(World(CPU), cell.replace(":still:", ":exact:"))
    alone = stepped(World(CPU), cell)
    found = load_file(folder / f"{cell}.safetensors")
    assert found.keys() == exact.keys()
    for kind in (f"{player}.optimizer." for player in ("generator", "discriminator")):
        for moment in (".exp_avg", ".exp_avg_sq"):
            names = [name for name in exact if name.startswith(kind) and name.endswith(moment)]
            largest = max(float(exact[name].abs().max()) for name in names)
            own = max(float((alone[name] - exact[name]).abs().max()) for name in names)
            for name in names:
                assert float((found[name] - exact[name]).abs().max()) <= 4 * max(own, 2e-6 * largest), (cell, name)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    finished(launched(2, str(HERE / "rank_steps.py"), str(folder), *CELLS))
    return folder


@pytest.mark.parametrize("cell", CELLS)
def test_two_processes_step_as_one(by_two: Path, cell: str) -> None:
    """All phases, gradient penalty and path length included."""
    compare(by_two, cell)


@pytest.mark.slow
def test_two_processes_step_as_one_in_every_family(tmp_path: Path) -> None:
    """One micro-batch for each process, and two."""
    cells = [f"{name}:{kind}:{micro}" for name in FAMILIES for kind in ("adam", "sgd") for micro in (4, 2)]
    finished(launched(2, str(HERE / "rank_steps.py"), str(tmp_path), *cells))
    for cell in cells:
        compare(tmp_path, cell)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 5])
def test_any_number_of_processes_steps_as_one(tmp_path: Path, processes: int) -> None:
    """Five are more than there are groups of two samples: the last one has none."""
    assert not share(BATCH, 2, 4, 5)
    cells = [f"{family}:{kind}" for family in ("progressive", "stylegan", "stylegan2") for kind in ("adam:2", "sgd:8")]
    finished(launched(processes, str(HERE / "rank_steps.py"), str(tmp_path), *cells))
    for cell in cells:
        compare(tmp_path, cell)


# --- runs -------------------------------------------------------------------------------------------------------------


def train(processes: int, config: Path, *overrides: str) -> subprocess.Popen[str]:
    return launched(processes, "train", str(config), *overrides, module="hires_gan")


@pytest.mark.slow
def test_two_processes_resume_exactly(settings: dict[str, Any], write_config: Any) -> None:
    """From the middle of a fade, bit for bit."""
    settings["data"]["workers"] = 1
    settings["evaluation"]["every_kimg"] = None
    config = write_config(settings)
    short, long = "run.total_kimg=0.112", "run.total_kimg=0.16"
    said = finished(train(2, config, "run.name=whole", long))
    assert "as the first of 2 processes, 2 of them here" in said
    finished(train(2, config, "run.name=halves", short))
    finished(train(2, config, "run.name=halves", long))
    whole, halves = saved(settings, "whole"), saved(settings, "halves")
    assert whole.nimg == halves.nimg == 160
    assert halves.state["files"] == whole.state["files"], "bit for bit"
    assert whole.state["world_size"] == 2


@pytest.mark.slow
def test_a_run_of_two_is_that_of_one_which_takes_it_over(settings: dict[str, Any], write_config: Any) -> None:
    settings["evaluation"]["every_kimg"] = None
    settings["precision"] = "fp64"
    config = write_config(settings)
    long = "run.total_kimg=0.224"
    finished(train(2, config, "run.name=two", long))
    alone = [sys.executable, "-m", "hires_gan", "train", str(config), "run.name=alone"]
    subprocess.run([*alone, long], check=True, capture_output=True)
    one, two = (saved(settings, name).tensors("generator") for name in ("alone", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-8, atol=1e-9, msg=name)
    subprocess.run([*alone, "run.name=two", "run.total_kimg=0.24"], check=True, capture_output=True)
    assert saved(settings, "two").nimg == 240


def children(process: subprocess.Popen[str]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def test_a_signal_to_one_process_ends_all_behind_one_checkpoint(settings: dict[str, Any], write_config: Any) -> None:
    settings["run"]["total_kimg"] = 50
    settings["evaluation"]["every_kimg"] = None
    config = write_config(settings)
    folder = Path(settings["run"]["dir"]) / "small"
    process = train(2, config)
    while not _running(folder / "status.json", 60):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    leader = json.loads((folder / "status.json").read_text())["process"]
    (other,) = [pid for pid in children(process) if pid != leader]
    os.kill(other, signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "preempted", said
    assert saved(settings, "small").nimg == status["nimg"] > 0
    assert "stopped at" in said


def _running(status: Path, nimg: int) -> bool:
    try:
        found = json.loads(status.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(found["state"] == "running" and found["nimg"] >= nimg)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    return said


def test_another_number_of_processes_than_is_allowed_is_refused(settings: dict[str, Any], write_config: Any) -> None:
    said = refused(train(2, write_config(settings), "backend.processes=3..4"))
    assert said.count("error: the launcher started 2 processes, and backend.processes is 3..4") == 1
    said = refused(train(2, write_config(settings), "backend.name=single"))
    assert "error: the launcher started 2 processes, and backend.name is single" in said


def test_processes_that_were_told_different_things_end_by_one_sentence(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Each machine has a copy of the configuration, and one of them is older."""
    for rank in (0, 1):
        (tmp_path / f"{rank}.yaml").write_text(yaml.safe_dump(settings | {"ema": {"half_life_batches": 5 + rank}}))
    program = "import os, sys; sys.argv = ['hires-gan', 'train', f\"{sys.argv[1]}/{os.environ['RANK']}.yaml\"]; "
    (tmp_path / "start.py").write_text(program + "from hires_gan.cli import main; main()")
    said = refused(launched(2, str(tmp_path / "start.py"), str(tmp_path)))
    assert said.count("error: the configuration of rank 1 is not that of rank 0") == 1


def test_what_one_process_cannot_do_is_told_with_its_rank(settings: dict[str, Any], tmp_path: Path) -> None:
    """The second machine does not see the shards."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings | {"data": {"shards": "set", "workers": 0}}))
    for rank in (0, 1):
        (tmp_path / f"at{rank}").mkdir()
    (tmp_path / "at0" / "set").symlink_to(settings["data"]["shards"])
    program = (
        "import os, sys; from pathlib import Path; os.chdir(Path(sys.argv[1]) / f\"at{os.environ['RANK']}\"); "
        "sys.argv = ['hires-gan', 'train', '../c.yaml']; from hires_gan.cli import main; main()"
    )
    (tmp_path / "start.py").write_text(program)
    said = refused(launched(2, str(tmp_path / "start.py"), str(tmp_path)))
    assert said.count("error: rank 1: ") == 1
    assert "set" in said
