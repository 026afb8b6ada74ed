"""`hires-gan prepare` of pairs as a command: its options, and its ends by processes, ranks and interruptions."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from pair_sources import (
    folder_of,
    maps,
    noise,
    options,
    pair,
    photos,
    saved,
    shards_of,
    together,
    without,
    zip_of,
)
from typer.testing import CliRunner

from hires_gan.cli import app
from hires_gan.data.pairs import Inputs, parse_pairs
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.ranks import Rank
from hires_gan.data.shards import ShardSet
from hires_gan.errors import UsageError

# --- names and the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "names only 'a': two pictures or more make a pair"),
        (["a", "image"], "names 'image', which means something else in a shard"),
        (["cls", "b"], "names 'cls', which means something else"),
        (["a", "2b"], "names '2b': letters, digits and underscores are allowed, a letter first"),
        (["a", "_b"], "names '_b': letters"),
        (["a", "b.64"], r"names 'b\.64': letters"),
        (["a", "b c"], "names 'b c': letters"),
        (["a", "bé"], "names 'bé': letters"),
        (["a", ""], "names '': letters"),
        (["a", "A"], "names a, A: all have to differ, by more than capital letters"),
    ],
)
def test_names_that_cannot_be(names, message):
    with pytest.raises(UsageError, match=f"^--columns {message}"):
        Inputs.of(["i"], names)
    with pytest.raises(UsageError, match=f"^--pair {message}"):
        Inputs.of(dict.fromkeys(names, "i"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=x", "b"], "--pair b is not of the form NAME=SRC, such as"),
        (["a=x", "=y"], "--pair =y is not of the form"),
        (["a=x", "b="], "--pair b= is not of the form"),
        (["a=x", "a=y"], "--pair names 'a' twice, x and y: each name has one source"),
    ],
)
def test_pairs_that_cannot_be_read(given, message):
    with pytest.raises(UsageError, match=message):
        parse_pairs(given)


def test_pairs_are_split_at_the_first_equals_sign():
    assert parse_pairs(["a=x=1/{0..3}.tar", "b=/y"]) == {"a": "x=1/{0..3}.tar", "b": "/y"}


def command(*words: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "hires_gan", "prepare", *map(str, words), "--resolution", "16"]
    return subprocess.run(program, capture_output=True, text=True)


def test_the_command(tmp_path):
    a, b = folder_of(tmp_path / "a", photos()), folder_of(tmp_path / "b", without(maps(), "x/00"))
    words = ("--pair", f"a={a}", "--pair", f"b={b}", "--out", tmp_path / "out", "--levels", "8")
    done = command(*words)
    assert (done.returncode, f"error: 1 of 10 pairs are incomplete: {a}/x/00.png (no b)" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
    done = command(*words, "--max-rejected", "0.1")
    assert done.returncode == 0, done.stderr
    assert "10 pairs -> 9 samples in 1 shards" in done.stderr
    assert ShardSet(tmp_path / "out").manifest.columns == ("a", "b", "a.8", "b.8")


def called(*words: object) -> Exception | None:
    arguments = ["prepare", *map(str, words), "--resolution", "16", "--processes", "1"]
    return CliRunner().invoke(app, arguments).exception


def test_the_command_s_other_forms(tmp_path):
    source = zip_of(tmp_path / "c", together({"a": photos(), "b": maps()}))
    assert called(source, "--columns", "a, b", "--out", tmp_path / "out") is None
    assert ShardSet(tmp_path / "out").manifest.columns == ("a", "b")
    pairs = ("--pair", f"a={source}", "--pair", f"b={source}")
    for words, message in (
        ([source, *pairs], "either SRC... or --pair NAME=SRC, twice or more, is needed"),
        ([], "either SRC... or --pair NAME=SRC, twice or more, is needed"),
        (pairs[:2], "--pair names only 'a': two pictures or more make a pair"),
        ([*pairs, "--columns", "a,b"], "--columns a,b is for samples of one source: leave it out with --pair"),
    ):
        error = called(*words, "--out", tmp_path / "bad")
        assert isinstance(error, UsageError)
        assert message in str(error)
        assert not (tmp_path / "bad").exists()


# --- processes, ranks, interruption -----------------------------------------------------------------------------------


def test_processes_and_ranks_change_nothing(tmp_path):
    a, b = photos(), without(maps(), "y/07")
    b["x/04.jpeg"] = b""
    pair(tmp_path, a, b, max_rejected=0.5, levels=(8,))
    sources = {name: str(tmp_path / name) for name in "ab"}
    wanted = options(max_rejected=0.5, levels=(8,))
    prepare(sources, tmp_path / "three", wanted.model_copy(update={"processes": 3}))
    assert shards_of(tmp_path / "three") == shards_of(tmp_path / "out")
    for rank in range(2):
        prepare(sources, tmp_path / "ranks", wanted, Rank(rank, 2))
    assert shards_of(tmp_path / "ranks") == shards_of(tmp_path / "out")


def test_a_finished_set_of_pairs_is_complete_or_refused(tmp_path):
    pair(tmp_path, photos(), maps())
    sources = {name: str(tmp_path / name) for name in "ab"}
    assert prepare(sources, tmp_path / "out", options()).was_complete
    for other, changed in (
        ({"a": sources["b"], "b": sources["a"]}, r"the images were 10 of a=.*/a, b=.*/b \(.*, now a=.*/b, b=.*/a"),
        ({"b": sources["b"], "a": sources["a"]}, "each sample was a and b, now b and a; the images were"),
        ([sources["a"]], "each sample was a and b, now image; the images were 10 of"),
    ):
        with pytest.raises(UsageError, match=rf"of another command \({changed}.*: choose another --out"):
            prepare(other, tmp_path / "out", options())


DRIVER = """
import sys, time
from pathlib import Path
from hires_gan.data import prepare as module
from hires_gan.data.prepare import PrepareOptions, prepare
publish = module.publish_shard

def publish_unless_held(out, name, *rest):
    if name == "shard-000004.tar":
        time.sleep(600)
    publish(out, name, *rest)

if __name__ == "__main__":
    module.publish_shard = publish_unless_held
    wanted = PrepareOptions(resolution=64, shard_images=4, processes=2, levels=(8,))
    prepare({"a": sys.argv[1], "b": sys.argv[2]}, Path(sys.argv[3]), wanted)
"""


def test_killed_and_continued_is_the_same_to_the_byte(tmp_path):
    files = {f"{number:03d}.png": saved(noise(number, 300, 200)) for number in range(40)}
    sources = {name: folder_of(tmp_path / name, files) for name in "ab"}
    same = PrepareOptions(resolution=64, shard_images=4, processes=1, levels=(8,))
    prepare(sources, tmp_path / "whole", same)
    (tmp_path / "driver.py").write_text(DRIVER)
    # It never gets beyond the fifth of ten shards.
    process = subprocess.Popen([sys.executable, tmp_path / "driver.py", *sources.values(), tmp_path / "out"])
    while not (tmp_path / "out/shard-000002.tar").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(UsageError, match="begun by another command .*each sample was a and b, now b and a"):
        prepare({"b": sources["b"], "a": sources["a"]}, tmp_path / "out", same)
    before = (tmp_path / "out/shard-000001.tar").stat().st_ino
    prepare(sources, tmp_path / "out", same)
    assert (tmp_path / "out/shard-000001.tar").stat().st_ino == before
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
