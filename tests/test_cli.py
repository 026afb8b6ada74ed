"""The command line in real processes: exit codes, and one sentence for what cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "configs" / "demo.yaml")


def hires_gan(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hires_gan", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_version_and_help(tmp_path):
    assert hires_gan("--version", cwd=tmp_path).stdout.strip() == "0.1.0"
    said = hires_gan("--help", cwd=tmp_path).stdout
    for command in ("prepare", "train", "generate", "config", "bench", "doctor"):
        assert command in said


def test_a_wrong_configuration_is_exit_2_and_makes_nothing(tmp_path):
    done = hires_gan("train", DEMO, "recipe.lr=1", "batch.sise=4", cwd=tmp_path)
    assert done.returncode == 2
    assert "recipe.lr" in done.stderr
    assert "batch.size" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "nothing.yaml"], 2, "nothing.yaml"),
        (["train", DEMO, "data.shards=nowhere"], 2, "there is no shard folder"),
        (["train", DEMO, "data.shards=demo:cows"], 2, "photographs"),
        (["generate", "nowhere", "--out", "x"], 2, "there is no folder nowhere"),
        (["generate", "nowhere", "--out", "x", "--seeds", "a"], 2, "--seeds is 'a'"),
        (["prepare", "nowhere", "--out", "x", "--resolution", "64"], 2, "nowhere"),
        (["prepare", ".", "--out", "x", "--resolution", "64"], 2, "image"),
        (["prepare", ".", "--out", "x", "--resolution", "100"], 2, "power of two"),
        (["prepare", ".", "--out", "x", "--resolution", "64", "--levels", "x"], 2, "--levels is 'x'"),
        (["prepare", ".", "--out", "x", "--resolution", "64", "--crop", "middle"], 2, "middle"),
        (["config", "check", DEMO, "precision=fp8"], 2, "precision"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, arguments, code, sentence):
    done = hires_gan(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == []


def test_config_commands(tmp_path):
    shown = hires_gan("config", "show", DEMO, "batch.size=8", cwd=tmp_path)
    assert shown.returncode == 0
    assert "size: 8" in shown.stdout
    assert hires_gan("config", "check", DEMO, cwd=tmp_path).stdout.strip().endswith("valid")
    schema = json.loads(hires_gan("config", "schema", cwd=tmp_path).stdout)
    assert "run" in schema["properties"]


def test_prepare_counts_what_it_rejects(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "empty.jpg").touch()
    arguments = ["prepare", "images", "--out", "shards", "--resolution", "32", "--processes", "1"]
    done = hires_gan(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "rejected.csv" in done.stderr
    again = hires_gan(*arguments, "--max-rejected", "0.5", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "1 rejected" in again.stderr
    assert "empty.jpg" in (tmp_path / "shards" / "rejected.csv").read_text()


def test_sigterm_ends_the_first_process_of_a_container(tmp_path):
    """The kernel delivers no signal to process 1 that has not asked for it."""
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine allows no process namespaces")
    (tmp_path / "images").mkdir()
    image = Image.effect_noise((300, 300), 100).convert("RGB")
    for number in range(400):
        image.save(tmp_path / "images" / f"{number:03d}.png", compress_level=1)
    words = ["prepare", "images", "--out", "shards", "--resolution", "256", "--processes", "2"]
    command = [*inside, sys.executable, "-m", "hires_gan", *words]
    outer = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while not any((tmp_path / "shards").glob("*.tar*")):
            assert outer.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        (first,) = psutil.Process(outer.pid).children()
        first.terminate()
        assert outer.wait(60) == 128 + 15
    finally:
        outer.kill()
        outer.wait(30)
    assert hires_gan(*words, cwd=tmp_path).returncode == 0
