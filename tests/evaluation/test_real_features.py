"""The reals' features are kept by content: found again, told apart, and damage is never taken for them."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from hires_gan.data.cache_locks import locked
from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure
from hires_gan.evaluation import beside, real_features
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.real_features import FeatureCache, RealFeatures, RealsKey

COUNT = 7
KEY = RealsKey(
    data="d" * 64,
    domain="image",
    column="image",
    resolution=64,
    count=COUNT,
    order_seed=0,
    decoder="torchvision 0.26.0",
    extractor="inception",
    extractor_version="torch-fidelity 0.4.0",
    checksum="c" * 64,
    resize="none",
    device="cpu",
)


def made(count: int = COUNT, seed: int = 0) -> RealFeatures:
    features = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return RealFeatures(features, moments(features))


def equal(a: RealFeatures | None, b: RealFeatures) -> bool:
    assert a is not None
    same_moments = a.moments.count == b.moments.count and np.array_equal(a.moments.mean, b.moments.mean)
    return a.features.equal(b.features) and same_moments and np.array_equal(a.moments.scatter, b.moments.scatter)


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    assert cache.read(KEY) is None
    reals = made()
    cache.write(KEY, reals)
    assert equal(cache.read(KEY), reals)
    assert equal(FeatureCache(tmp_path / "features").read(KEY), reals)


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, made())
    for field in dataclasses.fields(RealsKey):
        value = getattr(KEY, field.name)
        other = dataclasses.replace(KEY, **{field.name: value + 1 if isinstance(value, int) else value + "x"})
        assert other.digest() != KEY.digest()
        assert cache.read(other) is None
    assert cache.read(dataclasses.replace(KEY)) is not None


def test_the_users_cache_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FeatureCache().folder == tmp_path / "hires_gan" / "features"


def test_nothing_but_two_files_and_a_lock_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    leftover = tmp_path / f".{KEY.digest()}.safetensors.1-abc.partial"
    leftover.write_bytes(b"cut short")
    FeatureCache(tmp_path).write(KEY, made())
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{KEY.digest()}.safetensors",
        f"{KEY.digest()}.json",
        f".{KEY.digest()}.lock",
    }
    about = json.loads((tmp_path / f"{KEY.digest()}.json").read_text())
    assert about["key"] == dataclasses.asdict(KEY)
    assert f"features of 7 reals are kept in {tmp_path}" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "missing", "other", "no json", "not json", "a list"])
def test_what_is_damaged_is_said_and_not_taken(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, made())
    tensors, about = tmp_path / f"{KEY.digest()}.safetensors", tmp_path / f"{KEY.digest()}.json"
    data = tensors.read_bytes()
    if damage == "flipped":
        tensors.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif damage == "short":
        tensors.write_bytes(data[:-8])
    elif damage == "empty":
        tensors.write_bytes(b"")
    elif damage == "missing":
        tensors.unlink()
    elif damage == "other":
        about.write_text(about.read_text().replace('"resolution": 64', '"resolution": 32'))
    elif damage == "no json":
        about.unlink()
    elif damage == "not json":
        about.write_text("{")
    else:
        about.write_text("[]")
    capfd.readouterr()
    assert cache.read(KEY) is None
    said = " ".join(capfd.readouterr().err.split())
    assert ("made anew" in said) == (damage not in ("missing", "no json"))  # these are just not there
    again = made(seed=1)
    cache.write(KEY, again)
    assert equal(FeatureCache(tmp_path).read(KEY), again)


def test_a_folder_that_cannot_be_written_is_said_and_done_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    FeatureCache(blocked / "features").write(KEY, made())
    said = " ".join(capfd.readouterr().err.split())
    assert f"features of reals cannot be kept in {blocked}/features (Not a directory)" in said
    assert said.count("warning") == 1


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_system_that_is_read_only_is_said_once_with_its_reason(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    folder = tmp_path / "features"
    if is_there:
        folder.mkdir()
        monkeypatch.setattr(real_features, "write_atomically", read_only)
        monkeypatch.setattr(os, "open", read_only)  # of the lock
    else:
        monkeypatch.setattr(Path, "mkdir", read_only)
    FeatureCache(folder).write(KEY, made())
    monkeypatch.undo()
    said = " ".join(capfd.readouterr().err.split())
    assert said == f"warning: features of reals cannot be kept in {folder} (Read-only file system)"


def test_a_file_system_without_locks_keeps_features_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    FeatureCache(tmp_path).write(KEY, made())
    said = " ".join(capfd.readouterr().err.split())
    assert f"warning: {tmp_path} could not be locked (No locks available): others may write the same" in said
    assert equal(FeatureCache(tmp_path).read(KEY), made())


def test_other_counts_than_the_keys_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    with pytest.raises(Failure, match="features of 7 reals were to be kept, but there are 6; take as many"):
        cache.write(KEY, made(6))
    assert cache.read(KEY) is None


def test_one_that_writes_waits_for_another_and_can_be_stopped(tmp_path: Path) -> None:
    asked = []

    def third_time() -> bool:
        asked.append(1)
        return len(asked) == 3

    with locked(tmp_path / f".{KEY.digest()}.lock", lambda: None):  # as while another thread or process writes
        with pytest.raises(Stopped):
            FeatureCache(tmp_path).write(KEY, made(), stopped=third_time)
        assert len(asked) == 3
        assert FeatureCache(tmp_path).read(KEY) is None
    FeatureCache(tmp_path).write(KEY, made())
    assert equal(FeatureCache(tmp_path).read(KEY), made())


def test_reading_and_writing_can_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that takes its time: here until it is told to go on."""
    go_on, took = threading.Event(), real_features.write_atomically

    def slowly(path: Path, data: bytes) -> None:
        assert go_on.wait(60)
        took(path, data)

    monkeypatch.setattr(beside, "SLICE", 0.01)
    monkeypatch.setattr(real_features, "write_atomically", slowly)
    cache = FeatureCache(tmp_path)
    with pytest.raises(Stopped):
        cache.write(KEY, made(), stopped=lambda: True)
    with pytest.raises(Stopped):  # it is still being written, and locked
        cache.write(KEY, made(seed=1), stopped=lambda: True)
    assert not list(tmp_path.glob("*.json"))
    go_on.set()
    with locked(tmp_path / f".{KEY.digest()}.lock", lambda: None):  # once it is done
        assert equal(cache.read(KEY), made())
    held = threading.Event()
    monkeypatch.setattr(real_features, "load", lambda data: held.wait(60))
    with pytest.raises(Stopped):
        cache.read(KEY, stopped=lambda: True)
    held.set()


def test_who_has_no_home_is_told_once_and_has_nothing_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    real_features._say_once.cache_clear()
    for _ in range(3):
        FeatureCache().write(KEY, made())
        assert FeatureCache().read(KEY) is None
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("warning: features of reals are made anew each time: user") == 1
    assert said.endswith("has no home folder to keep the cache in: set XDG_CACHE_HOME to a folder that can be written")
    with pytest.raises(Failure, match="features of 7 reals were to be kept, but there are 6; take as many"):
        FeatureCache().write(KEY, made(6))


PROCESS = """
import sys
import threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_real_features import KEY, equal, made
from hires_gan.evaluation.real_features import FeatureCache
cache = FeatureCache(Path(sys.argv[1]))
for _ in range(40):
    cache.write(KEY, made())
    found = cache.read(KEY)
    assert found is None or equal(found, made())
"""


@pytest.mark.slow
def test_processes_that_write_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(Path(__file__).parent)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        said = [process.communicate(timeout=400)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    assert equal(FeatureCache(tmp_path).read(KEY), made())
    assert len(list(tmp_path.iterdir())) == 3


def test_others_may_read_what_one_user_has_kept(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        FeatureCache(tmp_path).write(KEY, made())
    finally:
        os.umask(before)
    for name in (f"{KEY.digest()}.safetensors", f"{KEY.digest()}.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644
