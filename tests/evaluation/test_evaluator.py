"""The evaluator: it compares with the first reals, can be stopped anywhere, and says what it cannot do beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.evaluator import Evaluator
from hires_gan.evaluation.reals import Reals
from hires_gan.evaluation.settings import EvaluationSettings


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


def evaluator(shards: ShardSet, resolution: int = 32, **settings: object) -> Evaluator:
    data = DataSettings(shards=str(shards.folder), workers=0)
    return Evaluator(EvaluationSettings(**settings), Reals(shards, data, resolution), torch.device("cpu"))


def noise(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, count, 4):
        yield torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)


def never() -> bool:
    return False


def test_reals_against_themselves_are_at_distance_zero(shards: ShardSet, capfd: pytest.CaptureFixture[str]) -> None:
    judge = evaluator(shards)
    reals = [part.clone() for part in judge.reals.first(judge.count, never)]
    assert judge.measure(lambda count: iter(reals), never) == {"swd": 0.0, "swd/16": 0.0, "swd/32": 0.0}
    other = judge.measure(noise, never)
    assert other is not None
    assert other["swd"] == pytest.approx((other["swd/16"] + other["swd/32"]) / 2)
    assert other["swd"] > 0
    assert capfd.readouterr().err == ""  # short: nothing to say


def test_it_is_given_up_wherever_it_is_stopped(shards: ShardSet) -> None:
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > allowed

    judge, allowed = evaluator(shards), 1000
    assert judge.measure(noise, stopped) is not None
    often = asked
    assert often > 6  # while the reals are read; and before the one part of them, the 3 of fakes, the 2 levels
    for allowed in range(often):
        asked = 0
        judge._real = None
        assert judge.measure(noise, stopped) is None
        assert asked == allowed + 1
    allowed, asked, judge._real = often, 0, None
    assert judge.measure(noise, stopped) is not None


def test_too_little_memory_is_said_before_anything_is_described(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * 2**20))
    with pytest.raises(Failure, match=r"evaluation\.count 12 at 32x32 needs 0\.0 GiB of memory, but only 0\.0 GiB are"):
        evaluator(shards).measure(noise, never)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7 * 2**20))
    assert evaluator(shards).measure(noise, never) is not None  # 12 images x (2 sets x 2 levels + 3) x 75 kB: 6.0 MiB


def test_an_image_without_a_pyramid_is_refused_at_once(shards: ShardSet) -> None:
    with pytest.raises(UsageError, match=r"needs images of at least 16 pixels, but recipe\.resolution is 8; raise it"):
        evaluator(shards, resolution=8)
    assert evaluator(shards, resolution=8, metrics=(), best=None).measure(noise, never) == {}


_ON_A_TERMINAL = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_evaluator import evaluator, never, noise
from hires_gan.data.shards import ShardSet
from hires_gan.progress import console
from hires_gan.training.status import StatusLine
assert console.is_terminal
judge = evaluator(ShardSet(Path(sys.argv[2])))
with StatusLine("outer", 0, 100):
    assert judge.measure(noise, never) is not None
    assert judge.measure(noise, never) is not None
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
