"""The evaluator: it compares with the first reals, can be stopped anywhere, and says what it cannot do beforehand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny_networks import TINY, install, on_path
from torch import Tensor

from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.alike import differences
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.coverage import density_and_coverage
from hires_gan.evaluation.evaluator import Evaluator, counted
from hires_gan.evaluation.features import open_extractor
from hires_gan.evaluation.fidelity import fid
from hires_gan.evaluation.instruments import Instruments
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.protocol import CheckpointRecord
from hires_gan.evaluation.reals import Reals
from hires_gan.evaluation.settings import EvaluationSettings
from hires_gan.evaluation.subjects import Shown
from hires_gan.evaluation.swd import Descriptors, compared

CPU = torch.device("cpu")
HUGE = """

def huge():
    return lambda images: 1e10 * images.mean((2, 3))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """12 images of 32x32."""
    images = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{number:02d}.png")
    out = tmp_path_factory.mktemp("shards") / "set"
    prepare([str(images)], out, PrepareOptions(resolution=32, processes=1))
    return ShardSet(out)


def evaluator(
    shards: ShardSet, resolution: int = 32, metrics: tuple[MetricName, ...] = ("swd",), network: str = "means"
) -> Evaluator:
    reals = Reals(shards, DataSettings(shards=str(shards.folder), workers=0, max_corrupt=0.2), resolution)
    tiny = open_extractor(f"tiny_network:{network}", None, False, CPU) if set(metrics) - {"swd"} else None
    return Evaluator(metrics, counted(8192 if tiny is None else 20, None, 12), reals, Instruments(tiny), CPU)


class Pictures:
    """Stands for a generator."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.finite = images, torch.ones(len(images), dtype=torch.bool)
        self.seeds: dict[str, int] = {}

    def chunks(self, wanted: Sequence[range], stopped: Callable[[], bool]) -> Iterator[Shown]:
        for chunk in wanted:
            own = slice(chunk.start, chunk.stop)
            yield Shown(self.images[own], finite=self.finite[own])


def noise(count: int = 8192, side: int = 32) -> Pictures:
    random = torch.Generator().manual_seed(0)
    return Pictures(torch.randint(0, 256, (min(count, 20), 3, side, side), generator=random, dtype=torch.uint8))


def measured(judge: Evaluator, subject: Pictures, stopped: Callable[[], bool] | None = None) -> dict[str, float] | None:
    found = judge.measure(subject, CheckpointRecord(nimg=0), stopped or never)
    return None if found is None else found.values


def never() -> bool:
    return False


def test_reals_against_themselves_are_at_distance_zero(shards: ShardSet, capfd: pytest.CaptureFixture[str]) -> None:
    judge = evaluator(shards)
    reals = torch.cat([part.clone() for part in judge.reals.first(12, never)])
    assert measured(judge, Pictures(reals)) == {"swd": 0.0, "swd/16": 0.0, "swd/32": 0.0}
    other = measured(judge, noise())
    assert other is not None
    assert other["swd"] == pytest.approx((other["swd/16"] + other["swd/32"]) / 2)
    assert other["swd"] > 0
    assert capfd.readouterr().err == ""  # short: nothing to say


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of features; and a feature network is installed."""
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", "tiny_network", TINY + HUGE)
    on_path(tmp_path / "site", "tiny_network", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hires_gan" / "features"


def test_it_is_given_up_wherever_it_is_stopped(shards: ShardSet, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What another thread does, such as reading the cache, asks as often as it takes slices of time: never here.
    monkeypatch.setattr("hires_gan.evaluation.beside.SLICE", 600.0)
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > allowed

    def fresh() -> Evaluator:
        shutil.rmtree(tiny, ignore_errors=True)
        return evaluator(shards, metrics=("swd", "density"))

    allowed = 1000
    assert measured(fresh(), noise(), stopped) is not None
    often = asked
    assert often > 7  # while the reals are read; before the one part of them, that of fakes, 2 levels, a metric
    for allowed in range(often):
        asked = 0
        assert measured(fresh(), noise(), stopped) is None
        assert asked == allowed + 1
    allowed, asked = often, 0
    assert measured(fresh(), noise(), stopped) is not None


def test_the_features_of_reals_are_read_from_the_cache_and_not_the_reals(
    shards: ShardSet, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(evaluator(shards, metrics=("fid", "kid")), noise())
    assert len(list(tiny.glob("*.json"))) == 1
    again = evaluator(shards, metrics=("fid", "kid"))
    monkeypatch.setattr(again.reals, "chunks", lambda *_: pytest.fail("they were read"))
    assert measured(again, noise()) == first
    assert measured(again, noise()) == first, "and once read, they are kept"


def test_features_of_reals_with_corrupt_ones_among_them_are_not_kept(
    shards: ShardSet, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shards.folder, tmp_path / "set")
    damaged = ShardSet(tmp_path / "set")
    path, offset, size, _ = damaged.locate(7)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)
    judge = evaluator(damaged, metrics=("swd", "fid", "kid"))
    found = measured(judge, noise())
    result = judge.measure(noise(), CheckpointRecord(nimg=0), never)
    assert result is not None
    assert [one.data.replaced for one in result.records if one.data] == [1, 1, 1]
    assert "; 1 of the reals are corrupt, and others stand in their places" in result.records[0].sentence()
    said = capfd.readouterr().err
    assert said.count("skipped a corrupt sample: ") == 1
    assert said.count("features of reals are not kept: 1 of the 12 images are corrupt, and others stand in") == 1
    assert not list(tiny.glob("*.json"))
    assert measured(judge, noise()) == found
    assert capfd.readouterr().err == "", "they are not described anew for each evaluation"
    whole = evaluator(shards, metrics=("swd", "fid", "kid")).measure(noise(), CheckpointRecord(nimg=0), never)
    assert whole is not None and whole.values != found, "of the same digest"
    assert all(set(differences(*pair)) == {"data.replaced"} for pair in zip(result.records, whole.records, strict=True))
    assert len(list(tiny.glob("*.json"))) == 1
    again = evaluator(damaged, metrics=("fid", "kid", "swd")).measure(noise(), CheckpointRecord(nimg=0), never)
    assert (
        again is not None and again.values["fid"] == whole.values["fid"] and again.values["swd"] == result.values["swd"]
    )
    assert [one.data.replaced for one in again.records if one.data] == [0, 0, 1], (
        "features were kept while all was whole"
    )


def test_what_is_not_finite_is_left_out_and_said_and_the_rest_is_there(
    shards: ShardSet, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A network that gives infinities for dark images."""
    judge, fakes = evaluator(shards, metrics=("kid", "swd", "fid"), network="spoiled"), noise()
    assert set(measured(judge, fakes) or ()) == {"kid", "kid/deviation", "swd", "swd/16", "swd/32", "fid"}
    fakes.images[3] //= 2
    capfd.readouterr()
    result = judge.measure(fakes, CheckpointRecord(nimg=0), never)
    assert result is not None
    assert set(result.values) == {"swd", "swd/16", "swd/32"}
    assert [record.metric for record in result.records] == ["swd"]
    assert list(result.not_finite) == ["kid", "fid"]
    reason = "the features from tiny_network:spoiled of 1 of"
    assert all(why.startswith(reason) for why in result.not_finite.values())
    said = capfd.readouterr().err
    assert said.count(f"warning: left out of this evaluation: kid, fid: {reason}") == said.count("warning") == 1


@pytest.mark.parametrize(
    ("number", "left"), [(3, {"swd", "kid", "fid"}), (15, {"kid", "fid"}), (11, {"swd", "kid", "fid"})]
)
def test_images_that_were_not_finite_are_measured_by_no_metric_that_looks_at_them(
    shards: ShardSet, tiny: Path, capfd: pytest.CaptureFixture[str], number: int, left: set[str]
) -> None:
    """Of 20 fakes, of which swd takes 12: as bytes they are black, and nothing else tells."""
    judge, fakes = evaluator(shards, metrics=("kid", "swd", "fid")), noise()
    fakes.images[number], fakes.finite[number] = 0, False
    result = judge.measure(fakes, CheckpointRecord(nimg=0), never)
    assert result is not None
    assert set(result.not_finite) == left
    assert not any(name.partition("/")[0] in left for name in result.values)
    assert {one.metric for one in result.records} == {"kid", "swd", "fid"} - left
    told = "1 of 20 images that the network gives are not finite; evaluate an earlier checkpoint"
    assert result.not_finite["fid"] == told
    assert f"warning: left out of this evaluation: kid, fid: {told}" in capfd.readouterr().err


def test_reals_whose_features_are_not_finite_end_it(shards: ShardSet, tiny: Path, monkeypatch: Any) -> None:
    judge = evaluator(shards, metrics=("swd", "fid"), network="spoiled")
    monkeypatch.setattr(judge.reals, "chunks", lambda *_: iter([torch.zeros(12, 3, 32, 32, dtype=torch.uint8)]))
    with pytest.raises(Failure, match="features from tiny_network:spoiled of 12 of 12 images are not finite"):
        measured(judge, noise())
    assert not list(tiny.glob("*"))


def test_a_number_beyond_float32_is_left_out_alone(shards: ShardSet, tiny: Path) -> None:
    """KID takes third powers of products; FID is computed in float64."""
    judge, fakes = evaluator(shards, metrics=("kid", "fid", "precision"), network="huge"), noise()
    result = judge.measure(fakes, CheckpointRecord(nimg=0), never)
    assert result is not None
    assert set(result.values) == {"fid", "precision"}
    assert "kid is " in result.not_finite["kid"] and "too large for float32" in result.not_finite["kid"]


def test_numbers_are_those_of_the_functions_that_compute_them(shards: ShardSet, tiny: Path) -> None:
    """Of 20 fakes and 12 reals, of which swd takes 12 and 12."""
    judge, fakes = evaluator(shards, metrics=("density", "swd", "fid")), noise()
    reals = torch.cat([part.clone() for part in judge.reals.first(12, never)])
    extractor = judge.instruments.extractor
    assert extractor is not None
    a, b = extractor(reals).features, extractor(fakes.images).features
    result = judge.measure(fakes, CheckpointRecord(nimg=7), never)
    assert result is not None
    assert result.values["fid"] == fid(moments(a), moments(b))
    assert result.values["density"] == density_and_coverage(a, b)[0]
    sets = [Descriptors(32, 12) for _ in range(2)]
    for described, images in zip(sets, (reals, fakes.images), strict=True):
        described.add(images[:12])
    levels = [compared(*(one.gathered(side) for one in sets)) for side in (16, 32)]  # type: ignore[arg-type]
    assert result.values["swd"] == sum(levels) / 2
    assert [(one.metric, one.reals, one.fakes) for one in result.records] == [
        ("density", 12, 20),
        ("swd", 12, 12),
        ("fid", 12, 20),
    ]


def test_too_little_memory_is_said_before_anything_is_described(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * 2**20))
    with pytest.raises(Failure, match=r"evaluation\.count 12 at 32x32 needs 0\.0 GiB of memory, but only 0\.0 GiB are"):
        measured(evaluator(shards), noise())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7 * 2**20))
    assert measured(evaluator(shards), noise()) is not None  # 12 images x (2 sets x 2 levels + 3) x 75 kB: 6.0 MiB


def test_what_cannot_be_taken_is_refused_at_once(shards: ShardSet, tiny: Path) -> None:
    with pytest.raises(
        UsageError, match=r"needs images of at least 16 pixels, but recipe\.resolution is 8; leave swd out"
    ):
        evaluator(shards, resolution=8)
    assert measured(evaluator(shards, resolution=8, metrics=()), noise(side=8)) == {}
    without_logits = evaluator(shards, metrics=("fid", "inception_score"))
    with pytest.raises(UsageError, match=r"inception_score needs a feature network that also returns logits"):
        measured(without_logits, noise())
    with pytest.raises(ValidationError, match="metrics has swd 2 times; name it once"):
        EvaluationSettings(metrics=("swd", "swd"))
    with pytest.raises(ValidationError, match="best is fid, which is not among metrics"):
        EvaluationSettings(best="fid")


_ON_A_TERMINAL = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_evaluator import evaluator, measured, noise
from hires_gan.data.shards import ShardSet
from hires_gan.progress import console
from hires_gan.training.status import StatusLine
assert console.is_terminal
judge = evaluator(ShardSet(Path(sys.argv[2])))
with StatusLine("outer", 0, 100):
    assert measured(judge, noise()) is not None
    assert measured(judge, noise()) is not None
"""


def test_its_bars_may_run_inside_that_of_the_training_on_a_terminal(shards: ShardSet) -> None:
    master, terminal = os.openpty()
    command = [sys.executable, "-c", _ON_A_TERMINAL, str(Path(__file__).parent), str(shards.folder)]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=os.environ | {"TERM": "xterm"})
    os.close(terminal)
    shown = bytearray()
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(master)
    text = shown.decode()
    assert process.wait(60) == 0, text
    for title in ("outer", "describing reals", "generating and describing fakes", "comparing"):
        assert title in text
