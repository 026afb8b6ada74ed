"""A repair that is killed, at whatever moment, or cannot be finished: the old or the new set is there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from damaged_sets import (
    BIN,
    assert_repaired,
    check,
    contents,
    damage,
    files,
    flip_sample,
    make_original,
    mend,
)

from hires_gan.data import repair as repair_module
from hires_gan.data.manifest import read_manifest
from hires_gan.data.repair import check_and_repair, repair_folder
from hires_gan.errors import Failure


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make_original(tmp_path_factory)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def repair_until(folder: Path, step: int) -> bool:
    """Repair in a process that kills itself before its step-th change in the folder; return whether it got there."""
    child = os.fork()
    if child == 0:
        changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
        left = step

        def audit(event: str, arguments: tuple) -> None:
            nonlocal left
            is_write = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if (event in changes or is_write) and str(folder) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            check_and_repair(folder, 1, None, lambda line: None)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_set(folder, original, tmp_path):
    gone = damage(folder)
    rest = set(contents(original)) - gone
    old = read_manifest(folder)
    tars = {name for name in files(folder) if name.endswith(".tar")}
    step, seen = 0, set()
    while True:
        victim = Path(shutil.copytree(folder, tmp_path / f"victim-{step}"))
        if not repair_until(victim, step):
            break
        manifest = read_manifest(victim)
        seen.add(manifest == old)
        if manifest == old:
            there = files_there(victim)
            assert tars <= there  # nothing of the old set was touched
            assert all((victim / name).read_bytes() == (folder / name).read_bytes() for name in tars)
        else:
            assert set(contents(victim)) == rest
        # Another start ends well, even if it is killed as well
        if step % 3 == 0:
            repair_until(victim, step // 2)
        assert check_and_repair(victim, 1, None, lambda line: None)
        assert_repaired(victim, original, gone)
        shutil.rmtree(victim)
        step += 1
    assert seen == {True, False}
    assert step > 15
    assert_repaired(victim, original, gone)


def files_there(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_interrupted_repair_is_mentioned_and_its_files_are_not_strangers(folder, monkeypatch):
    damage(folder)
    monkeypatch.setattr(repair_module, "_remove", lambda *arguments: os._exit(9))
    child = os.fork()
    if child == 0:
        check_and_repair(folder, 1, None, lambda line: None)
        os._exit(0)
    os.waitpid(child, 0)
    report = check(folder)
    assert report.counts == {"interrupted": 1}
    assert "--repair finishes it or begins anew" in "\n".join(report.lines())


def test_a_good_copy_that_comes_after_an_interruption_is_not_lost(folder, original, tmp_path):
    """The user kills a repair and copies the shards again: nothing of the set may be dropped any more."""
    for step in range(60):
        victim = Path(shutil.copytree(folder, tmp_path / f"victim-{step}"))
        damage(victim)
        if not repair_until(victim, step):
            break
        was_done = not (victim / ".repair" / "plan.json").exists() and read_manifest(victim) != read_manifest(original)
        shutil.copytree(original, victim, dirs_exist_ok=True)
        check_and_repair(victim, 1, None, lambda line: None)
        if was_done:  # its files are as strange to the copied set as any other's
            assert contents(victim) == contents(original)
            assert set(check(victim).counts) == {"extra"}
        else:
            assert_repaired(victim, original)
    assert step > 15


def test_a_killed_command_and_its_workers(folder, original):
    """The real command with processes of its own is killed from outside; no worker outlives it."""
    gone = damage(folder)
    command = [BIN / "hires-gan", "shards", "check", folder, "--repair", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    children: list[psutil.Process] = []
    while process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True) or children
        if any((folder / ".repair").glob("*.tar")):
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert children or process.returncode == 0  # it may have ended by itself before anybody looked
    assert psutil.wait_procs(children, timeout=60)[1] == []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_repaired(folder, original, gone)


def test_one_repair_at_a_time(folder):
    flip_sample(folder, 1)
    with repair_folder(folder):
        code = (
            "import sys; from pathlib import Path; from hires_gan.data.repair import *\n"
            "with repair_folder(Path(sys.argv[1])): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        assert "is being repaired by another process: wait for it, or end it" in done.stderr
        assert check(folder).counts["interrupted"] == 1
    assert not (folder / ".repair").exists()


def test_a_failed_repair_changes_nothing(folder, monkeypatch):
    damage(folder)
    before = files(folder)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(repair_module, "_write_tar", full)
    with pytest.raises(Failure, match="cannot be repaired: somewhere: No space left on device; nothing was changed"):
        mend(folder)
    assert files(folder) == before
