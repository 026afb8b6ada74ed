"""Pipes as stores: what is run, tried again and given up, and what of a command is ever shown."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from running import wait_until_gone
from streamed_sets import UNEVEN, when

from hires_gan.data import retries, waiting
from hires_gan.data.opening import open_shards
from hires_gan.data.store import open_store
from hires_gan.errors import Failure, UsageError

FILES, is_whole = UNEVEN.files, UNEVEN.is_whole
SECRET = "hunter2-and-more"
pytestmark = pytest.mark.usefixtures("everything_is_said")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return UNEVEN.write(tmp_path_factory.mktemp("served") / "set")


def test_a_pipe_needs_an_opt_in_and_a_place_for_the_name(folder, settings):
    with pytest.raises(UsageError, match=r"is a pipe, which runs a shell command .* data\.stream\.allow_pipe to true"):
        open_shards(f"pipe:cat {folder}/{{}}", settings())
    with pytest.raises(UsageError, match=r"is a pipe without \{\}"):
        open_shards("pipe:cat x", settings(allow_pipe=True))


def test_a_pipe_is_the_set(folder, settings):
    shards = open_shards(f"pipe:cat {folder}/{{}} | cat", settings(allow_pipe=True))
    assert str(shards.folder) == "pipe:cat ..."
    assert is_whole(shards)
    assert is_whole(pickle.loads(pickle.dumps(shards)))


def test_a_name_that_is_no_plain_one_never_reaches_the_shell(tmp_path):
    opened = open_store("pipe:cat {}", True)
    for name in ("x; touch y", "../x", "-rf x", "$(id)", "", ".hidden"):
        with pytest.raises(Failure, match=r"cannot be called"):
            list(opened.pieces(name, lambda: None))


def test_a_pipe_that_fails_is_tried_again_and_then_given_up(folder, settings, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIPE_TOKEN", SECRET)
    command = f"pipe:test -e {tmp_path}/up || {{ echo no $PIPE_TOKEN >&2; exit 3; }}; cat {folder}/{{}}"
    with monkeypatch.context() as patch:
        say = retries.say
        patch.setattr(retries, "say", lambda message: (say(message), (tmp_path / "up").touch()))
        assert is_whole(open_shards(command, settings(allow_pipe=True)))
    (tmp_path / "up").unlink()
    shutil.rmtree(settings().cache)
    with pytest.raises(
        Failure, match=r"could not be read for \d+ s; the last error: .* ended with exit code 3: no \*\*\*"
    ):
        open_shards(command, settings(allow_pipe=True, patience=1))
    said = capfd.readouterr().err
    assert "manifest.json ended with exit code 3: no ***); trying again in 0." in said
    assert SECRET not in said


def test_a_pipe_that_cannot_be_run_is_not_tried_again(settings):
    with pytest.raises(UsageError, match=r"cannot be run \(exit code 127\).*no-such-program"):
        open_shards("pipe:no-such-program {}", settings(allow_pipe=True))


def test_a_pipe_that_hangs_is_ended_with_all_that_it_started(folder, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "STALL", 2.0)
    pids = tmp_path / "pids"
    pids.touch()
    command = (
        f"pipe:test -e {tmp_path}/up || {{ sleep 1000 & echo $! >> {pids}; echo $$ >> {pids}; wait; }}; "
        f"cat {folder}/{{}}"
    )
    when(lambda: pids.read_text().count("\n") >= 2, (tmp_path / "up").touch)
    assert is_whole(open_shards(command, settings(allow_pipe=True)))
    assert wait_until_gone([int(pid) for pid in pids.read_text().split()]) == []


def test_a_file_that_comes_short_is_tried_again_as_long_as_the_patience_lasts(folder, settings, tmp_path, monkeypatch):
    """Also more often than a file that disagrees with the manifest."""
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 0.02)
    (tmp_path / "tries").touch()
    shorten = f"echo >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -gt 5 || {{ head -c 5000; exit 0; }}; cat"
    command = f"pipe:cat {folder}/{{}} | case {{}} in *0.tar) {shorten};; *) cat;; esac"
    assert is_whole(open_shards(command, settings(allow_pipe=True)))


def test_the_output_of_a_pipe_that_stays_short_is_no_file(folder, settings):
    shards = open_shards(f"pipe:case {{}} in *.tar) head -c 5000 {folder}/{{}};; *) cat {folder}/{{}};; esac",
                         settings(allow_pipe=True, patience=1))  # fmt: skip
    with pytest.raises(Failure, match=r"could not be read for \d+ s; the last error: 5,000 of its [\d,]+ bytes came"):
        shards.read(0)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("TOKEN=hunter2 curl -H x {}", "pipe:curl ..."),
        ("TOKEN='abc hunter2 def' /opt/hunter2/bin/curl {}", "pipe:curl ..."),
        ('A=1 TOKEN="abc hunter2" curl {}', "pipe:curl ..."),
        ("TOKEN=abc\\ hunter2 curl {}", "pipe:curl ..."),
        ("TOKEN=$(echo hunter2 abc) curl {}", "pipe:..."),
        ("TOKEN=`cat hunter2` curl {}", "pipe:..."),
        ("TOKEN='hunter2 curl {}", "pipe:..."),
        ("'hunter2 curl' {}", "pipe:..."),
        ("<<<hunter2 cat {}", "pipe:..."),
        ("{}", "pipe:..."),
    ],
)
def test_of_a_command_only_the_programs_name_is_shown(command, shown):
    assert open_store(f"pipe:{command}", True).address == shown
