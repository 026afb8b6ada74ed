"""`hires-gan prepare` by several processes: whatever their order, number, speed and fate, the set is that of one."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from ranked_sets import (
    ARGUMENTS,
    PER_SHARD,
    SHARDS,
    at_commit,
    contents,
    finish,
    leave_claim,
    made_by_one,
    make_source,
    ranked,
    run,
    start,
)

from hires_gan.cli import app
from hires_gan.data import conversion
from hires_gan.data import prepare as module
from hires_gan.data.claims import Claims
from hires_gan.data.ranks import Rank, find_rank
from hires_gan.errors import Failure

BIN = Path(sys.executable).parent
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return make_source(tmp_path_factory.mktemp("source") / "i")


@pytest.fixture(scope="module")
def wanted(source, tmp_path_factory) -> dict[str, bytes]:
    return made_by_one(source, tmp_path_factory.mktemp("one") / "out")


# --- several at once --------------------------------------------------------------------------------------------------


def test_three_at_once_make_the_set_of_one(tmp_path, source, wanted):
    processes = [start(source, tmp_path / "out", *ranked(number, 3)) for number in range(3)]
    said = [finish(process) for process in processes]
    assert contents(tmp_path / "out") == wanted
    for number in range(3):
        assert said[number].startswith(f"rank {number} of 3 (--rank and --world-size)\n")
    assert sum("and finished the set" in one for one in said) >= 1


def kill_at_work(out: Path, process: subprocess.Popen[str]) -> Path:
    """Kill a process in the middle of a shard, and return its claim."""
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        for claim in out.glob(".prepare/shard-*.claim-of-3"):
            shard = claim.name.split(".")[0]
            try:
                own = json.loads(claim.read_text())["process"] == process.pid
            except FileNotFoundError:
                continue
            if own and not (out / f".prepare/{shard}.tar.json").exists():
                process.kill()
                process.communicate()
                return claim
        process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError(process.communicate())


def test_one_is_killed_and_restarted(tmp_path):
    source = make_source(tmp_path / "i", 60, 400)
    run(source, tmp_path / "one", 0, 1)
    out = tmp_path / "out"
    claim = kill_at_work(out, start(source, out, *ranked(1, 3)))  # before the others could take its shards over
    others = [finish(process) for process in [start(source, out, *ranked(number, 3)) for number in (0, 2)]]
    assert not (out / "manifest.json").exists()
    assert claim.exists()
    assert any("are still being made, by rank 1 (process" in one for one in others)
    said = finish(start(source, out, *ranked(1, 3)))
    assert "continuing in" in said
    assert "and finished the set" in said
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.slow
def test_kills_at_any_moment(tmp_path):
    source = make_source(tmp_path / "i", 200, 600)
    run(source, tmp_path / "one", 0, 1)
    out, chance, kills = tmp_path / "out", random.Random(0), 0
    while kills < 12 and not (out / "manifest.json").exists():
        kills += 1
        world = chance.choice((2, 3))
        processes = [start(source, out, *ranked(number, world)) for number in range(world)]
        time.sleep(1 + 2 * chance.random())
        for process in processes:
            process.kill()
            process.communicate()
    assert kills >= 2
    for process in [start(source, out, *ranked(number, 2)) for number in range(2)]:
        finish(process)
    finish(start(source, out))
    assert contents(out) == contents(tmp_path / "one")


def test_two_with_one_number_do_no_harm(tmp_path, source, wanted):
    twins = [start(source, tmp_path / "out", *ranked(1, 3)) for _ in range(2)]
    for twin in twins:
        finish(twin)
    assert contents(tmp_path / "out") == wanted


def test_a_twin_is_named(tmp_path, capsys):
    one, two = Claims(tmp_path, Rank(0, 2)), Claims(tmp_path, Rank(0, 2))
    assert [one.take(0), two.take(0), one.take(2), two.take(2)] == [True, False, True, False]
    told = "is rank 0 of 2 as well: the two share the work, and nothing gets lost"
    assert capsys.readouterr().err.count(told) == 1
    assert not Claims(tmp_path, Rank(1, 2)).take(0)
    assert capsys.readouterr().err == ""


def test_torchrun_starts_the_ranks(tmp_path, source, wanted):
    launcher = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python", str(BIN / "hires-gan")]
    command = ["prepare", source, "--out", str(tmp_path / "out"), *ARGUMENTS]
    command += ["--labels", "folders", "--max-rejected", "0.5"]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "rank 1 of 2 (RANK and WORLD_SIZE of torchrun)" in done.stderr
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        {"JOB_COMPLETION_INDEX": "1", "HIRES_GAN_WORLD_SIZE": "2"},
    ],
)
def test_launchers_name_the_rank(tmp_path, source, wanted, environment):
    said = finish(start(source, tmp_path / "out", environment=environment))
    assert said.startswith("rank 1 of 2 (")
    assert contents(tmp_path / "out") == wanted


def test_the_launchers_of_the_guide_start_what_there_is():
    text = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ")
    launched = re.findall(r"^(?:torchrun|srun) .*?(hires-gan prepare .*)$", text, re.MULTILINE)
    (job,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(apiVersion.*?)```", text, re.DOTALL))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    commands = [*map(shlex.split, launched), container["command"]]
    assert len(commands) == 3
    for _, name, *arguments in commands:
        command = typer.main.get_command(app).get_command(None, name)
        assert command.make_context(name, arguments).params["resolution"] == 512
    environment = {one["name"]: one["value"] for one in container["env"]} | {"JOB_COMPLETION_INDEX": "7"}
    assert job["spec"]["completionMode"] == "Indexed"
    assert find_rank(None, None, environment).world == job["spec"]["completions"]


def test_contradictory_numbers_end_the_command(tmp_path, source):
    environment = {"RANK": "0", "WORLD_SIZE": "2"}
    said = finish(start(source, tmp_path / "out", *ranked(1, 2), environment=environment), 2)
    assert "error: --rank is 1, but RANK is 0" in said
    assert not (tmp_path / "out").exists()


# --- one after another ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "world"), [((2, 0, 1), 3), ((11, 3), 12), ((0,), 1)])
def test_one_after_another(tmp_path, source, wanted, order, world):
    reports = [run(source, tmp_path / "out", number, world) for number in order]
    assert contents(tmp_path / "out") == wanted
    assert [report.was_complete for report in reports] == [False, *[True] * (len(order) - 1)]
    assert [report.made for report in reports] == [SHARDS, *[0] * (len(order) - 1)]


def test_what_others_are_making_is_left_to_them(tmp_path, source, wanted):
    leave_claim(tmp_path / "out", 1, 2, [0, 7])
    report = run(source, tmp_path / "out", 0, 2)
    assert (report.missing, report.made, report.samples) == (2, SHARDS - 2, 19)
    assert f"2 are still being made, by rank 1 (process {os.getpid()} on" in report.lines()[0]
    assert "whoever is last finishes the set" in report.lines()[0]
    assert not (tmp_path / "out/manifest.json").exists()
    again = run(source, tmp_path / "out", 0, 2)
    assert (again.missing, again.made) == (2, 0)
    last = run(source, tmp_path / "out", 1, 2)
    assert (last.missing, last.made, last.samples) == (0, 2, 24)
    assert "  rank 1 of 2 made 2 shards, and finished the set" in last.lines()
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_takes_over(tmp_path, source, wanted, world, capsys):
    leave_claim(tmp_path / "out", 1, 2, [0, 7])
    run(source, tmp_path / "out", 0, 2)
    report = run(source, tmp_path / "out", 0, world)
    assert (report.missing, report.made) == (0, 2)
    assert "an earlier start with --world-size 2 left half-done is made again" in capsys.readouterr().err
    assert contents(tmp_path / "out") == wanted


def test_a_claim_that_a_kill_cut_short_is_taken_over(tmp_path, source, wanted):
    leave_claim(tmp_path / "out", 1, 2, [3])
    next((tmp_path / "out/.prepare").glob("shard-*.claim-of-2")).write_bytes(b"")
    assert run(source, tmp_path / "out", 0, 2).missing == 0
    assert contents(tmp_path / "out") == wanted


def test_a_rank_that_fails_frees_its_shards(tmp_path, source, wanted, monkeypatch):
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at_commit(patch, full)
        with pytest.raises(Failure, match="cannot take more data"):
            run(source, tmp_path / "out", 1, 2)
    assert not list((tmp_path / "out/.prepare").glob("shard-*.claim-of-*"))
    assert not list((tmp_path / "out").glob(".*.partial"))
    assert run(source, tmp_path / "out", 0, 2).missing == 0
    assert contents(tmp_path / "out") == wanted


def test_ranks_go_through_the_shards_apart(tmp_path):
    orders = [Claims(tmp_path, Rank(number, 3)).order(range(8)) for number in range(3)]
    assert orders == [[0, 3, 6, 7, 5, 4, 2, 1], [1, 4, 7, 6, 5, 3, 2, 0], [2, 5, 7, 6, 4, 3, 1, 0]]


# --- two make one shard, or finish at one time ------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_overtaken_by_a_rank_that_finishes_the_set(tmp_path, source, wanted, monkeypatch, after):
    at_commit(monkeypatch, lambda: run(source, tmp_path / "out", 0, 3), after)
    report = run(source, tmp_path / "out", 1, 2)
    assert report.was_complete
    assert contents(tmp_path / "out") == wanted


def test_what_was_settled_stays_even_if_somebody_sees_other_bytes(tmp_path, source, wanted, monkeypatch):
    """A machine that cannot read its files for a moment rejects them: the shards that were there first count."""
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "read_bytes", lambda _: b"")
        at_commit(patch, lambda: (patch.undo(), run(source, tmp_path / "out", 0, 3)))
        report = run(source, tmp_path / "out", 1, 2)
    assert (report.was_complete, report.made) == (True, 0)
    assert contents(tmp_path / "out") == wanted


def test_two_finish_at_one_time(tmp_path, source, wanted, monkeypatch):
    write_manifest = module.write_manifest

    def second_first(out: Path, manifest: object) -> None:
        monkeypatch.setattr(module, "write_manifest", write_manifest)
        assert not run(source, tmp_path / "out", 1, 2).was_complete
        write_manifest(out, manifest)

    monkeypatch.setattr(module, "write_manifest", second_first)
    run(source, tmp_path / "out", 0, 2)
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize("function", ["publish_shard", "write_manifest", "clear", "_check_copies", "write_atomically"])
def test_killed_at_a_bad_moment(tmp_path, source, wanted, function):
    code = f"""
import os, signal, sys
from pathlib import Path
from hires_gan.data import conversion
from hires_gan.data import prepare as module
from hires_gan.data.ranks import Rank
module.{function} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
given = dict(resolution=16, processes=1, shard_images={PER_SHARD}, levels=(8,), labels="folders", max_rejected=0.5)
module.prepare([sys.argv[1]], Path(sys.argv[2]), module.PrepareOptions(**given), Rank(1, 2))
"""
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run(source, tmp_path / "out", 0, 2)
    run(source, tmp_path / "out", 1, 2)
    assert contents(tmp_path / "out") == wanted


def test_a_damaged_finished_shard_is_made_again_by_a_rank(tmp_path, source, wanted):
    leave_claim(tmp_path / "out", 1, 2, [7])
    run(source, tmp_path / "out", 0, 2)
    os.truncate(tmp_path / "out/shard-000003.tar", 100)
    (tmp_path / "out/.prepare/shard-000004.tar.json").write_bytes(b"{")
    assert run(source, tmp_path / "out", 1, 2).made == 3
    assert contents(tmp_path / "out") == wanted
