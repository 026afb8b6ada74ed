"""`hires-gan prepare` by several processes: what holds for the whole set, what is refused, what the disk may lack."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ranked_sets import at_commit, contents, finish, leave_claim, made_by_one, make_source, options, ranked, run, start

from hires_gan.data import prepare as module
from hires_gan.data.prepare import prepare
from hires_gan.data.ranks import Rank
from hires_gan.data.writer import create_whole
from hires_gan.errors import Failure, UsageError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return make_source(tmp_path_factory.mktemp("source") / "i")


@pytest.fixture(scope="module")
def wanted(source, tmp_path_factory) -> dict[str, bytes]:
    return made_by_one(source, tmp_path_factory.mktemp("one") / "out")


# --- limits, and what is refused --------------------------------------------------------------------------------------


def test_the_share_of_rejected_images_is_that_of_the_whole_set(tmp_path, source, wanted):
    leave_claim(tmp_path / "out", 1, 2, [0])
    run(source, tmp_path / "out", 0, 2, max_rejected=0.19)  # six of thirty are rejected
    with pytest.raises(Failure, match=r"6 of 30 images were rejected, more than the share of 0\.19"):
        run(source, tmp_path / "out", 1, 2, max_rejected=0.19)
    assert run(source, tmp_path / "out", 0, 2, max_rejected=0.2).made == 0
    assert contents(tmp_path / "out") == wanted


def test_no_good_image_at_all_leaves_only_the_reasons_behind_ranks(tmp_path):
    for number in range(6):
        (tmp_path / "i").mkdir(exist_ok=True)
        (tmp_path / f"i/{number}.png").write_bytes(b"")
    for rank in range(2):
        with pytest.raises(Failure, match="none of the 6 images could be used"):
            run(str(tmp_path / "i"), tmp_path / "out", rank, 2, labels="none", max_rejected=1)
        assert list(contents(tmp_path / "out")) == ["rejected.csv"]


def test_a_rank_at_work_learns_that_the_set_was_given_up(tmp_path, monkeypatch):
    (tmp_path / "i").mkdir()
    (tmp_path / "i/x.png").write_bytes(b"")
    given = {"labels": "none", "max_rejected": 1}

    def give_up() -> None:
        with pytest.raises(Failure, match="none of the 1 images could be used"):
            run(str(tmp_path / "i"), tmp_path / "out", 0, 3, **given)

    at_commit(monkeypatch, give_up)
    with pytest.raises(Failure, match="was given up by another process of this command: see what that one said"):
        run(str(tmp_path / "i"), tmp_path / "out", 0, 2, **given)
    assert list(contents(tmp_path / "out")) == ["rejected.csv"]


def test_a_rank_that_sees_other_images_is_refused(tmp_path, source):
    leave_claim(tmp_path / "out", 0, 2, [0])
    mounted = tmp_path / "mounted"
    shutil.copytree(source, mounted)
    run(str(mounted), tmp_path / "out", 1, 2)
    (mounted / "a/0000.png").unlink()
    with pytest.raises(UsageError, match=r"the images were 30 of .*, now 29 of .*if the images are still being copied"):
        run(str(mounted), tmp_path / "out", 0, 2)


def test_other_commands_are_refused(tmp_path, source):
    leave_claim(tmp_path / "out", 0, 2, [0])
    run(source, tmp_path / "out", 1, 2)
    for rank in (Rank(0, 2), Rank()):
        with pytest.raises(UsageError, match=r"begun by another command \(--crop was center, now tiles\): repeat that"):
            prepare([source], tmp_path / "out", options(crop="tiles"), rank)
    command = tmp_path / "out/.prepare/command.json"
    command.write_text(json.dumps(json.loads(command.read_text()) | {"numbering": 1}))
    with pytest.raises(UsageError, match="its keys were numbered by an earlier version of this program"):
        run(source, tmp_path / "out", 0, 2)


def test_bad_sources_leave_nothing_behind_ranks(tmp_path):
    with pytest.raises(UsageError, match="there is no folder or archive"):
        run(str(tmp_path / "nowhere"), tmp_path / "out/deep", 0, 2)
    assert not (tmp_path / "out/deep").exists()


def test_ranks_need_no_locks(tmp_path, source, wanted, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", lambda *_: pytest.fail("a lock was asked for"))
    run(source, tmp_path / "out", 0, 2)
    assert contents(tmp_path / "out") == wanted


# --- compressed archives ----------------------------------------------------------------------------------------------


def test_ranks_share_the_copy_of_a_compressed_tar(tmp_path, source, wanted):
    subprocess.run(["tar", "-C", source, "-czf", tmp_path / "i.tgz", "."], check=True)
    processes = [start(str(tmp_path / "i.tgz"), tmp_path / "out", *ranked(number, 2)) for number in range(2)]
    for process in processes:
        finish(process)
    found, same = contents(tmp_path / "out"), {"prepare.json", "rejected.csv"}
    assert {name: data for name, data in found.items() if name not in same} == {
        name: data for name, data in wanted.items() if name not in same
    }


def test_a_copy_that_is_gone_rejects_nothing(tmp_path, source, monkeypatch):
    subprocess.run(["tar", "-C", source, "-czf", tmp_path / "i.tgz", "."], check=True)
    claim = module._claim

    def lose(work: Path, *rest: object) -> None:
        claim(work, *rest)
        shutil.rmtree(work / "scratch")

    monkeypatch.setattr(module, "_claim", lose)
    with pytest.raises(Failure, match="the copy of a compressed tar, is gone: run the same command again to continue"):
        run(str(tmp_path / "i.tgz"), tmp_path / "out", 0, 2)


# --- creating a file exclusively --------------------------------------------------------------------------------------


def test_one_of_two_creates_a_file(tmp_path):
    assert create_whole(tmp_path / "x", b"one")
    assert not create_whole(tmp_path / "x", b"two")
    assert contents(tmp_path) == {"x": b"one"}


def test_a_lost_answer_is_no_failure(tmp_path, monkeypatch):
    link = os.link

    def answer_lost(old: Path, new: Path) -> None:
        link(old, new)
        raise FileExistsError

    monkeypatch.setattr(os, "link", answer_lost)
    assert create_whole(tmp_path / "x", b"one")


def test_without_hard_links_it_goes_as_well(tmp_path, source, wanted, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    leave_claim(tmp_path / "out", 1, 2, [0])
    run(source, tmp_path / "out", 0, 2)
    run(source, tmp_path / "out", 1, 2)
    assert contents(tmp_path / "out") == wanted
    assert not create_whole(tmp_path / "out/manifest.json", b"")
