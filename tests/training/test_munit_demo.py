"""What the demo of MUNIT promises, by training it whole: another domain, the same content, styles that differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from demo_runs import DemoRun, hires_gan, trained
from PIL import Image

from hires_gan.config import load_configuration
from hires_gan.data.domains import open_data
from hires_gan.data.waiting import never
from hires_gan.evaluation.evaluator import Evaluator, counted
from hires_gan.evaluation.instruments import Instruments
from hires_gan.evaluation.protocol import CheckpointRecord
from hires_gan.evaluation.reals import Reals
from hires_gan.evaluation.subjects import Shown

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parent.parent.parent
DIRECTIONS = [("snapshots", "prints"), ("prints", "snapshots")]
SIDE, INPUTS, STYLES = 32, 8, 6

Pixels = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    return trained("munit", tmp_path_factory)


def cells(demo: DemoRun, source: str, target: str) -> Pixels:
    """The last grid of a direction: float64 `[inputs, 1 + styles, r, r, 3]` in [0, 1]."""
    (*_, last) = [path for path in demo.grids if path.stem.endswith(f"_{source}_to_{target}")]
    grid = np.asarray(Image.open(last), dtype=float) / 255
    assert grid.shape == (INPUTS * SIDE, (1 + STYLES) * SIDE, 3)
    return grid.reshape(INPUTS, SIDE, 1 + STYLES, SIDE, 3).transpose(0, 2, 1, 3, 4)


def edges(images: Pixels) -> Pixels:
    """How strong luminance changes at each pixel, over a few of them: the hatching of prints is finer than that."""
    luminance = images @ np.array([0.299, 0.587, 0.114])
    blocks = luminance.reshape(*luminance.shape[:-2], SIDE // 4, 4, SIDE // 4, 4).mean((-3, -1))
    along_y, along_x = np.gradient(blocks, axis=(-2, -1))
    return np.hypot(along_y, along_x)


def correlation(one: Pixels, other: Pixels) -> Pixels:
    """Of the edges of images `[n, r, r, 3]` and `[n, styles, r, r, 3]`, each pair by itself: `[n, styles]`."""
    a, b = edges(one).reshape(len(one), 1, -1), edges(other).reshape(*other.shape[:2], -1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def test_the_run_ends_with_what_it_made(demo: DemoRun) -> None:
    assert demo.done.returncode == 0, demo.done.stderr
    assert json.loads((demo.folder / "status.json").read_text())["state"] == "finished"
    assert not any(count for _, count in demo.metric("gradients/nonfinite"))


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_translations_are_near_the_other_domain(demo: DemoRun, source: str, target: str) -> None:
    """Their distance to it is at most 60 % of that of the images that were translated."""
    settings = load_configuration(ROOT / "configs" / "munit_demo.yaml")
    data = open_data(settings.data)
    there, here = (Reals(data.only(name), settings.data, SIDE) for name in (target, source))
    counts = counted(512, None, len(there), len(here))
    evaluator = Evaluator(("swd",), counts, there, Instruments(), torch.device("cpu"))
    before = evaluator.measure(Untranslated(here), CheckpointRecord(nimg=0), never)
    assert before is not None
    behind = demo.metric(f"evaluation/swd/{source}_to_{target}")[-1][1]
    assert behind <= 0.6 * before.values["swd"], (behind, before)


class Untranslated:
    """Stands for a translation that changes nothing."""

    def __init__(self, reals: Reals) -> None:
        self.reals = reals
        self.seeds: dict[str, int] = {}

    def chunks(self, wanted: Sequence[range], stopped: Callable[[], bool]) -> Iterator[Shown]:
        return map(Shown, self.reals.chunks(wanted, stopped))


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_translations_have_the_edges_of_their_inputs(demo: DemoRun, source: str, target: str) -> None:
    """Half of what equal edges would have, and far more than those of other inputs have."""
    grid = cells(demo, source, target)
    own = correlation(grid[:, 0], grid[:, 1:]).mean()
    others = correlation(np.roll(grid[:, 0], 1, axis=0), grid[:, 1:]).mean()
    assert own >= 0.5, (own, others)
    assert others <= own / 2, (own, others)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_styles_are_visibly_different(demo: DemoRun, source: str, target: str) -> None:
    """Two translations of one image differ by a twelfth of the whole range at least, on average over all pixels."""
    translations = cells(demo, source, target)[:, 1:]
    pairs = [(a, b) for a in range(STYLES) for b in range(a)]
    distance = np.mean([np.abs(translations[:, a] - translations[:, b]).mean() for a, b in pairs])
    assert distance >= 1 / 12, distance


def test_the_checkpoint_serves_in_all_modes(demo: DemoRun, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, cell in enumerate(cells(demo, "prints", "snapshots")[:2, 0]):
        Image.fromarray((cell * 255).astype(np.uint8)).resize((80, 60)).save(pictures / f"{number}.png")
    back = ["--to", "snapshots"]
    for name, options, count in (
        ("random", ["--styles", "3"], 7),
        ("guided", ["--style", str(pictures)], 5),
        ("large", ["--size", "96", "--tile", "64", "--styles", "1"], 3),
    ):
        done = hires_gan("translate", demo.folder, pictures, *back, "--out", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / name).glob("*.png"))) == count
    film = ["--interpolate", "--frames", "3", "--styles", "2"]
    done = hires_gan("translate", demo.folder, pictures, *back, "--out", tmp_path / "film", *film)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "film" / "grid.png")
