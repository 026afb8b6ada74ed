"""What goes wrong in a run of two processes, on purpose: what is said of it, and that the weights are the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.input_definition import row_of
from faults import FILLER, KINDS, Fault, fail_at, from_json, network, to_json
from faulty_runs import FaultyRun, attempts, faulty_command, history, start, status_of, whole_checkpoints
from launch.launching import launch as launch_on
from launch.machines import machines, missing
from PIL import Image
from tracking.test_tracking_server import Server
from whole_runs import saved

from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare

IMAGES = 40
"""Of the set on which these runs train."""
Start = Callable[..., FaultyRun]


# --- the tool ---------------------------------------------------------------------------------------------------------


def test_a_fault_is_the_same_as_text() -> None:
    faults = [fail_at(1, 96, "hang", "evaluation"), fail_at(0, 0, "corrupt_shard", shards="set", rows=[3, 7])]
    assert from_json(to_json(faults)) == faults


def test_a_fault_happens_once_in_a_folder(tmp_path: Path) -> None:
    fault = fail_at(0, 16, "exception")
    with pytest.raises(RuntimeError, match="asked for"):
        fault.happen(tmp_path)
    fault.happen(tmp_path)
    with pytest.raises(RuntimeError, match="asked for"):
        fail_at(1, 16, "exception").happen(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_comes_to_the_process_itself_and_not_to_the_next_one(tmp_path: Path, number: signal.Signals) -> None:
    program = "import sys, pathlib, faults; faults.fail_at(0, 0, sys.argv[2]).happen(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(tmp_path), number.name.lower()]
    codes = [subprocess.run(command, cwd=Path(__file__).parent, timeout=120).returncode for _ in range(2)]
    assert codes == [-number, 0]


def test_what_is_no_fault_is_refused() -> None:
    with pytest.raises(KeyError):
        fail_at(0, 0, "earthquake")
    with pytest.raises(TypeError):
        fail_at(0, 0, "tracking_gone")
    with pytest.raises(TypeError):
        fail_at(0, 0, "hang", seconds=1)


def test_no_large_disk_is_filled_and_no_real_link_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faults._LARGEST_DISK", 0)
    with pytest.raises(AssertionError, match="mount a small file system"):
        KINDS["full_disk"](tmp_path)
    with pytest.raises(AssertionError, match="real network"):
        KINDS["link_down"](tmp_path, device="no-such-device", seconds=1, real=network())
    assert list(tmp_path.iterdir()) == []


def write_records(folder: Path, began: float, rank: int, *steps: tuple[int, list[int]], torn: str = "") -> None:
    lines = [{"pid": 1, "time": began}, *({"nimg": nimg, "samples": own, "pixels": own} for nimg, own in steps)]
    (folder / f"{began}-0.{rank}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + torn)


def test_the_history_that_survives_is_what_no_later_attempt_has_done_again(tmp_path: Path) -> None:
    """The second attempt goes on from 4, and comes to no step; the third goes on from there, in one process."""
    write_records(tmp_path, 1.0, 0, (0, [0, 1]), (4, [4, 5]), (8, [8, 9]))
    write_records(tmp_path, 1.0, 1, (0, [2, 3]), (4, [6, 7]), torn='{"nimg": 8, "sam')
    write_records(tmp_path, 2.0, 0)
    write_records(tmp_path, 3.0, 0, (4, [4, 5, 6, 7]))
    assert history(tmp_path) == {sample: sample for sample in range(8)}


@pytest.mark.parametrize("second", [[1, 2, 3], [3]])
def test_a_history_with_a_sample_twice_or_not_at_all_is_refused(tmp_path: Path, second: list[int]) -> None:
    write_records(tmp_path, 1.0, 0, (0, [0, 1]))
    write_records(tmp_path, 1.0, 1, (0, second))
    with pytest.raises(AssertionError):
        history(tmp_path)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(settings: dict[str, Any], write_config: Any) -> Path:
    """Thirty steps, of a model whose checkpoint has a size that is worth a word."""
    for player in ("generator", "discriminator"):
        settings["recipe"][player] |= {"fmap_base": 512, "fmap_max": 48}
    settings["samples"]["every_kimg"] = settings["evaluation"]["every_kimg"] = None
    settings["tracking"]["every_kimg"] = 0.016
    return write_config(settings)  # type: ignore[no-any-return]


@pytest.fixture
def folder(settings: dict[str, Any]) -> Path:
    """The run's."""
    return Path(settings["run"]["dir"]) / "small"


@pytest.fixture
def two(config: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts two processes of the run, with overrides and faults; none of them outlives the test."""
    started: list[FaultyRun] = []

    def start_two(*overrides: str, faults: Sequence[Fault] = (), place: str = "two") -> FaultyRun:
        started.append(start(2, tmp_path / place, config, *overrides, faults=faults))
        return started[-1]

    yield start_two
    for run in started:
        run.close()


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the run of `undisturbed` has left, for all tests."""
    return {}


@pytest.fixture
def undisturbed(two: Start, settings: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """The `files` of the last checkpoint without a fault, by name their checksums, and what was `shown`."""
    if not kept:
        run = two("run.name=undisturbed", place="undisturbed")
        run.ended(well=True)
        kept |= {"files": saved(settings, "undisturbed").state["files"], "shown": history(run.records)}
    return kept


def goes_on(run: FaultyRun, settings: dict[str, Any], undisturbed: dict[str, Any]) -> str:
    """What a second start of the same command says, at whose end all is as without the fault."""
    said = run.ended(well=True)
    assert saved(settings).state["files"] == undisturbed["files"], "bit for bit"
    assert history(run.records) == undisturbed["shown"]
    return said


@pytest.mark.slow
def test_an_exception_in_one_process_ends_all_and_changes_no_weight(
    two: Start, settings: dict[str, Any], folder: Path, undisturbed: dict[str, Any]
) -> None:
    faults = [fail_at(1, 240, "exception")]
    run = two(faults=faults)
    said = run.ended(well=False)
    assert "RuntimeError: a fault that a test has asked for" in said
    assert "rank 0 has lost another process" in said
    assert status_of(folder)["state"] == "failed"
    assert whole_checkpoints(folder) == [112, 208]
    assert f"going on from {folder}/checkpoints/000000000208" in goes_on(two(faults=faults), settings, undisturbed)


@pytest.mark.slow
def test_a_process_that_hangs_is_reported_with_its_stack_and_changes_no_weight(
    two: Start, settings: dict[str, Any], folder: Path, undisturbed: dict[str, Any]
) -> None:
    faults = [fail_at(1, 160, "hang")]
    said = two("backend.hang_after=15", faults=faults).ended(well=False)
    assert "error: no process of the run has got on for 15 s (backend.hang_after): rank 1 in " in said
    assert "; rank 0 waiting for the others (" in said
    assert "look first at rank 1 (" in said
    assert status_of(folder)["state"] == "failed"
    of_0, of_1 = (folder / "hang-000000000160.txt").read_text().split("=== rank ")[1:]
    assert of_0.startswith("0 (") and "in hang\n" not in of_0
    assert of_1.startswith("1 (") and "in hang\n    time.sleep(1000)" in of_1
    assert "thread MainThread" in of_0 and "thread MainThread" in of_1
    goes_on(two("backend.hang_after=120", faults=faults), settings, undisturbed)


@pytest.mark.slow
def test_a_signal_to_a_process_that_waits_for_a_long_evaluation_ends_all_behind_one_checkpoint(
    two: Start, settings: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """The first one leaves the evaluation, though the signal came to the other; later ones change nothing."""
    write_images(tmp_path / "images", count=400, side=64)
    prepare([str(tmp_path / "images")], tmp_path / "set", PrepareOptions(resolution=64, processes=1))
    changes = [f"data.shards={tmp_path / 'set'}", "recipe.resolution=64", "evaluation.every_kimg=0.16"]
    two(*changes, "evaluation.count=1", "run.total_kimg=0.16").ended(well=True)
    enough = tmp_path / "enough"
    faults = [fail_at(1, 320, "sigterm", moment="evaluation", until=str(enough))]
    run = two(*changes, "evaluation.count=400", "backend.grace=300", faults=faults)
    run.wait_for(lambda: "SIGTERM received by rank 1" in run.said)
    (last,) = attempts(run.records)[1:]
    for shown in last.values():
        os.kill(shown.pid, signal.SIGTERM)
    enough.touch()
    said = run.ended(well=False)
    status = status_of(folder)
    assert status["state"] == "preempted", said
    # At the boundary behind the evaluation they ask each other, and hear the answer one step later.
    assert 320 <= status["nimg"] <= 352
    assert whole_checkpoints(folder)[-1] == saved(settings).nimg == status["nimg"]
    (last,) = attempts(run.records)[1:]
    # Once one has ended, the launcher signals the other, which may have left off catching that, and not ended yet.
    assert 75 in {shown.code for shown in last.values()} <= {75, None}
    assert logged(settings, "evaluation/swd") == [0, 160], "it was left"
    assert not list(folder.glob("grace-*")), said


@pytest.mark.slow
def test_a_disk_that_is_full_is_told_with_the_room_that_is_needed_and_costs_nothing_but_time(
    two: Start, settings: dict[str, Any], tmp_path: Path, disk: Path, undisturbed: dict[str, Any]
) -> None:
    settings["run"]["dir"] = str(disk / "runs")
    folder, faults = disk / "runs" / "small", [fail_at(0, 256, "full_disk")]
    rare = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "tracking.every_kimg=0.48"]  # a checkpoint has to be first
    run = two(f"run.dir={disk / 'runs'}", *rare, faults=faults)
    said = run.ended(well=False)
    assert re.search(
        r"error: cannot write a checkpoint to .*No space left on device\. It needs [1-9]\d* MB and 0 MB are free", said
    ), said
    assert whole_checkpoints(folder) == [112, 208]
    (folder / FILLER).unlink()
    said = goes_on(two(f"run.dir={disk / 'runs'}", *rare, faults=faults), settings, undisturbed)
    assert f"going on from {folder}/checkpoints/000000000208" in said


@pytest.mark.slow
def test_images_that_become_corrupt_are_counted_once_and_replaced_alike_by_both(
    two: Start, settings: dict[str, Any], folder: Path, shards: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """They have been shown well before; each is replaced by the next one of the set, whoever shows it."""
    shutil.copytree(shards, tmp_path / "set")
    bad, where = [5, 17], ["data.max_corrupt=0.05", f"data.shards={tmp_path / 'set'}"]
    run = two(*where, faults=[fail_at(1, 160, "corrupt_shard", shards=str(tmp_path / "set"), rows=bad)])
    said = run.ended(well=True)
    assert said.count("skipped a corrupt sample: ") == 2
    assert " | 2 corrupt samples skipped" in said
    shown, before, rows = history(run.records), undisturbed["shown"], range(480)
    row = [row_of(0, IMAGES, sample) for sample in rows]
    late = [sample for sample in rows if sample >= 192 and row[sample] in bad]
    for sample in set(rows) - set(range(160, 192)) - set(late):  # meanwhile, the other one may have read already
        assert shown[sample] == before[sample]
    for sample in late:
        assert shown[sample] in {before[other] for other in rows if row[other] == row[sample] + 1}
    (attempt,) = attempts(run.records)
    for one in attempt.values():
        own = {sample for samples in one.steps.values() for sample, _ in samples}
        assert own & set(late), "both had to replace some"


@pytest.mark.slow
def test_a_tracking_server_that_goes_away_gets_what_it_missed_when_it_is_back(
    two: Start, settings: dict[str, Any], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    try:
        faults = [fail_at(0, 96, "tracking_gone", pid=server._process.pid)]
        run = two(f"tracking.uri={server.uri}", faults=faults)
        run.wait_for(lambda: "training goes on" in run.said)
        run.wait_for(lambda: max(attempts(run.records)[0][0].steps) >= 400, pause=0.1)
        server.kill()  # what is left of it, for another one to take its place
        server.start()
        said = goes_on(run, settings, undisturbed)
        server.kill()
    finally:
        server.kill()
    assert f"MLflow at {server.uri} does not answer" in said
    assert re.search(r"answers again: [1-9]\d* points sent", said)
    assert "not sent" not in said
    assert logged(settings, "loss/generator", tmp_path / "server" / "mlflow.db") == list(range(16, 481, 16))


@pytest.mark.multinode
def test_a_link_that_is_down_for_a_while_changes_no_weight(
    config: Path, settings: dict[str, Any], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(f"this machine allows no network namespaces: {reason}")
    place = tmp_path / "two"
    place.mkdir()
    faults = [fail_at(1, 160, "link_down", device="eth0", seconds=4.0, real=network())]
    with machines(2) as pair:
        meeting = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=pair", f"--rdzv-endpoint={pair[0].address}"]
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, *faulty_command(place, faults, config)]
        runs = [launch_on(command, tmp_path / machine.name, machine.start) for machine in pair]
        for run in runs:
            run.succeeded()
    assert (Path(settings["run"]["dir"]) / "small" / ".fault-link_down-1-160").exists()
    assert history(place / "records") == undisturbed["shown"]
    assert saved(settings).state["files"] == undisturbed["files"]


# --- what they need ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB that is mounted for the processes of one namespace; seen through the one that holds it."""
    place = tmp_path / "disk"
    place.mkdir()
    script = f"mount -t tmpfs -o size=32m tmpfs {place} && echo mounted && exec sleep 5000"
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    if holder.stdout.readline() != "mounted\n":
        pytest.skip("this machine lets no process mount a file system of its own")
    yield Path(f"/proc/{holder.pid}/root{place}")
    holder.kill()
    holder.communicate(timeout=60)


def write_images(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(chance.integers(0, 255, (side, side, 3), np.uint8)).save(folder / f"{number:04d}.png")


def logged(settings: dict[str, Any], key: str, store: Path | None = None) -> list[int]:
    """The steps at which MLflow has a metric, by default in the store of the run."""
    with sqlite3.connect(store or Path(settings["run"]["dir"]) / "mlflow.db") as database:
        query = "select step from metrics where key = ? order by step"
        return [row[0] for row in database.execute(query, (key,))]
