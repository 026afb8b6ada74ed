"""The reals' features are kept by content: found again, told apart, made anew when damaged, and never written twice."""

from __future__ import annotations

import dataclasses
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

from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure
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


def made(count: int = COUNT, seed: int = 0, logits: bool = True) -> RealFeatures:
    features = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return RealFeatures(features, features[:, :2] * 2 if logits else None, moments(features))


def equal(a: RealFeatures | None, b: RealFeatures) -> bool:
    assert a is not None
    same_logits = a.logits is b.logits is None or (
        a.logits is not None and b.logits is not None and a.logits.equal(b.logits)
    )
    same_moments = a.moments.count == b.moments.count and np.array_equal(a.moments.mean, b.moments.mean)
    return (
        a.features.equal(b.features)
        and same_logits
        and same_moments
        and np.array_equal(a.moments.scatter, b.moments.scatter)
    )


def never_made() -> RealFeatures:
    raise AssertionError("it was to be found")


@pytest.mark.parametrize("logits", [True, False])
def test_what_is_kept_is_found_again(tmp_path: Path, logits: bool) -> None:
    cache = FeatureCache(tmp_path / "features")
    assert cache.read(KEY) is None
    reals = made(logits=logits)
    assert cache.obtain(KEY, lambda: reals) is reals
    assert equal(FeatureCache(tmp_path / "features").obtain(KEY, never_made), reals)
    assert equal(cache.read(KEY), reals)


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
def test_what_is_damaged_is_said_and_made_anew(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
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
    again = made(seed=1)
    assert cache.obtain(KEY, lambda: again) is again
    said = " ".join(capfd.readouterr().err.split())
    assert ("made anew" in said) == (damage not in ("missing", "no json"))  # these are just not there
    assert equal(FeatureCache(tmp_path).obtain(KEY, never_made), again)


def test_a_folder_that_cannot_be_written_is_said_and_done_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    reals = made()
    assert FeatureCache(blocked / "features").obtain(KEY, lambda: reals) is reals
    said = " ".join(capfd.readouterr().err.split())
    assert f"features of reals cannot be kept in {blocked}/features (Not a directory)" in said


def test_other_counts_than_the_keys_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    with pytest.raises(Failure, match="features of 7 reals were to be kept, but there are 6; take as many"):
        cache.write(KEY, made(6))
    with pytest.raises(Failure, match="there are 8"):
        cache.obtain(KEY, lambda: made(8))
    assert cache.read(KEY) is None


def test_one_makes_them_and_the_others_wait(tmp_path: Path) -> None:
    """Threads of one process; `test_processes_share` has processes."""
    started, go_on = threading.Event(), threading.Event()
    times = []

    def slowly() -> RealFeatures:
        times.append(1)
        started.set()
        assert go_on.wait(60)
        return made()

    found: list[RealFeatures] = []
    first = threading.Thread(target=lambda: found.append(FeatureCache(tmp_path).obtain(KEY, slowly)))
    first.start()
    assert started.wait(60)
    second = threading.Thread(target=lambda: found.append(FeatureCache(tmp_path).obtain(KEY, slowly)))
    second.start()
    with pytest.raises(Stopped):
        FeatureCache(tmp_path).obtain(KEY, never_made, stopped=lambda: True)
    go_on.set()
    first.join(60)
    second.join(60)
    assert len(times) == 1
    assert equal(found[0], made()) and equal(found[1], made())


def test_the_lock_is_free_when_making_them_fails(tmp_path: Path) -> None:
    def fails() -> RealFeatures:
        raise Failure("an image cannot be read")

    with pytest.raises(Failure, match="an image cannot be read"):
        FeatureCache(tmp_path).obtain(KEY, fails)
    reals = made()
    assert FeatureCache(tmp_path).obtain(KEY, lambda: reals) is reals


PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_real_features import KEY, made
from hires_gan.evaluation.real_features import FeatureCache
def slowly():
    print("made", flush=True)
    time.sleep(0.5)
    return made()
print(float(FeatureCache(Path(sys.argv[1])).obtain(KEY, slowly).features.sum()), flush=True)
"""


@pytest.mark.slow
def test_processes_share(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(Path(__file__).parent)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        lines = [line for process in started for line in process.communicate(timeout=120)[0].splitlines()]
    finally:
        for process in started:
            process.kill()
    total = str(float(made().features.sum()))
    assert sorted(lines) == sorted(["made", total, total])


def test_others_may_read_what_one_user_has_kept(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        FeatureCache(tmp_path).write(KEY, made())
    finally:
        os.umask(before)
    for name in (f"{KEY.digest()}.safetensors", f"{KEY.digest()}.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644
