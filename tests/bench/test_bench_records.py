"""The files of measurements: what cannot be written is told first, and a repeat that fails leaves what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_plans import SMALL

from hires_gan.bench import evaluation, memory, ops, scaling, tracking
from hires_gan.bench import input as inputs
from hires_gan.bench.record_file import held, require_writable, write_record
from hires_gan.config import load_configuration
from hires_gan.errors import Failure

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "demo.yaml"


def small_plan() -> Any:
    return load_configuration(CONFIG, list(SMALL))


# The file


def test_what_is_there_stays_as_it_is(tmp_path):
    out = tmp_path / "record.json"
    out.write_text("what is there")
    os.utime(out, (1, 1))
    require_writable(out)
    assert out.read_text() == "what is there" and out.stat().st_mtime == 1


def test_what_is_not_there_is_not_made(tmp_path):
    (tmp_path / "link").symlink_to("target")
    require_writable(tmp_path / "record.json")
    require_writable(tmp_path / "link")
    assert [one.name for one in tmp_path.iterdir()] == ["link"]
    require_writable(Path("/dev/null"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/record.json", "No such file or directory"),
        ("folder", "Is a directory"),
        ("file/record.json", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("/proc/record.json", "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(name, reason, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Failure, match=rf"{name} cannot be written: {reason}; name a file in a folder that is there"):
        require_writable(tmp_path / name)


def test_a_record_that_cannot_be_written_leaves_the_one_before(tmp_path):
    """As on a disk that is full."""
    out = tmp_path / "record.json"
    write_record(out, {"a": 1})
    code = (
        "import pathlib, resource, sys\n"
        "from hires_gan.bench.record_file import write_record\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_record(pathlib.Path(sys.argv[1]), {'a': 'b' * 2000})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, check=False)
    assert "Failure: cannot write" in ended.stderr and "File too large" in ended.stderr
    assert json.loads(out.read_text()) == {"a": 1} and [one.name for one in tmp_path.iterdir()] == ["record.json"]


def test_a_link_and_a_device_stay_what_they_are(tmp_path):
    (tmp_path / "link.json").symlink_to("target.json")
    write_record(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "target.json").read_text()) == {"a": 1}
    write_record(Path("/dev/null"), {"a": 1})
    assert not Path("/dev/null").is_file()
    with pytest.raises(Failure, match="/dev/full: No space left on device"):
        write_record(Path("/dev/full"), {"a": 1})


def test_a_record_goes_into_a_pipe():
    """As `--out /dev/stdout` and what shells write as >(...)."""
    code = (
        "import pathlib\n"
        "from hires_gan.bench.record_file import held, require_writable, write_record\n"
        "out = pathlib.Path('/dev/stdout')\n"
        "require_writable(out)\n"
        "with held(out):\n"
        "    write_record(out, {'a': 1})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == {"a": 1}


def test_a_folder_that_is_not_there_is_a_sentence_for_the_lock_too(tmp_path):
    with (
        pytest.raises(Failure, match=r"record\.json cannot be written: No such file"),
        held(tmp_path / "a/record.json"),
    ):
        pass


# Those who write


def fails(*_: object) -> None:
    raise Failure("it failed")


@pytest.fixture(
    params=[
        (memory.DryRun, "measure", lambda out: memory.bench_memory(small_plan(), "small", memory.Request(out=out))),
        (scaling, "_measured", lambda out: scaling.bench_scaling(small_plan(), "small", scaling.Request(out=out))),
        (ops, "_measured", lambda out: ops.bench_ops(ops.Request(device="cpu", out=out))),
        (inputs, "_at", lambda out: inputs.bench_input(inputs.Request(None, (8,), 1, out=out))),
        (tracking, "_measure", lambda out: tracking.bench_tracking(tracking.Request(stores=("sqlite",), out=out))),
        (evaluation, "measure", lambda out: evaluation.bench_evaluation(evaluation.Request(out=out))),
    ],
    ids=["memory", "scaling", "ops", "input", "tracking", "evaluate"],
)
def failing(request, monkeypatch) -> Callable[[Path], object]:
    """A measurement that fails as soon as it measures."""
    place, name, call = request.param
    monkeypatch.setattr(place, name, fails)
    monkeypatch.setattr(ops.native, "available", lambda device: True)
    return call


def test_a_repeat_that_fails_leaves_the_record_of_before(failing, tmp_path):
    out = tmp_path / "record.json"
    out.write_text("the good record")
    with pytest.raises(Failure, match="it failed"):
        failing(out)
    assert out.read_text() == "the good record"


def test_a_place_that_is_not_there_is_told_before_anything_is_measured(failing, tmp_path):
    with pytest.raises(Failure, match=r"nowhere/record\.json cannot be written"):
        failing(tmp_path / "nowhere" / "record.json")


def second_fails(monkeypatch: Any, place: Any, name: str) -> None:
    """Let a measurement work once."""
    works, calls = getattr(place, name), []

    def measured(*arguments: object) -> object:
        calls.append(arguments)
        return works(*arguments) if len(calls) == 1 else fails()

    monkeypatch.setattr(place, name, measured)


def test_stages_that_were_finished_are_kept(tmp_path, monkeypatch):
    second_fails(monkeypatch, memory.DryRun, "measure")
    plan = load_configuration(CONFIG, [*SMALL, "recipe.schedule.start_resolution=4"])
    with pytest.raises(Failure, match="it failed"):
        memory.bench_memory(plan, "small", memory.Request((4,), all_stages=True, out=tmp_path / "memory.json"))
    record = json.loads((tmp_path / "memory.json").read_text())
    assert [one["resolution"] for one in record["stages"]] == [4] and record["complete"] is False


def test_stores_that_were_finished_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_measure", lambda *_: {"blocked": 0.5})
    second_fails(monkeypatch, tracking, "_measure")
    monkeypatch.setattr(tracking, "STORES", ("sqlite", "other"))
    monkeypatch.setattr(tracking, "_opened", lambda store, folder, delay: tracking.contextlib.nullcontext(""))
    with pytest.raises(Failure, match="it failed"):
        tracking.bench_tracking(tracking.Request(stores=("sqlite", "other"), out=tmp_path / "tracking.json"))
    record = json.loads((tmp_path / "tracking.json").read_text())
    assert record["stores"] == {"sqlite": {"blocked": 0.5}} and record["complete"] is False


def test_resolutions_that_were_finished_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_at", lambda resolution, *_: inputs.Result(resolution, f"{resolution} pixels", []))
    monkeypatch.setattr(inputs, "figures", lambda result: {})
    second_fails(monkeypatch, inputs, "_at")
    out = tmp_path / "input.json"
    with pytest.raises(Failure, match="it failed"):
        inputs.bench_input(inputs.Request(None, (8, 16), 1, out=out))
    record = json.loads(out.read_text())
    assert [one["resolution"] for one in record["results"]] == [8] and record["complete"] is False
