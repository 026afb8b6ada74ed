from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hires_gan.data import demo
from hires_gan.data.demo import demo_shards, resolve_shards
from hires_gan.data.demo_pictures import HUES, inks, overlapping_crops, two_ink_print
from hires_gan.data.manifest import MANIFEST
from hires_gan.data.pictures import decode, halve
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="the demo photographs come with scikit-image"
)
RECIPES = {
    ("photographs", 2): "b6cc470b67b0c8390471890982e70f3e7a2d08f547c39a1ea89a6dac9c3d1d7d",
    ("snapshots", 1): "c65312758d88c664e949e68ceb878e2487053f7c46dceb0fd911f53c93a4bc29",
    ("prints", 1): "5a4b391e6d6aa2a179901099749ee7a0f37dfa1660f56c03a9ba9da7b4988c2c",
}  # name, version, and sha256 of what is cut out of what and of what becomes of it
SIZES = {
    "astronaut.png": (512, 512),
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "rocket.jpg": (640, 427),
    "motorcycle_left.png": (741, 500),
}
CODE = "from hires_gan.data.demo import resolve_shards; print(resolve_shards('demo:photographs'))"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@needs_skimage
def test_two_processes_at_once_make_one_set(cache, monkeypatch):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    both = [subprocess.Popen([sys.executable, "-c", CODE], env=environment, stdout=-1, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=400)[0].strip() for process in both}
    folder = cache / "hires_gan/demo/photographs-v2"
    assert answers == {str(folder)}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    made = folder.stat().st_mtime_ns
    assert demo_shards("photographs") == folder
    assert folder.stat().st_mtime_ns == made


@needs_skimage
def test_the_photographs_are_colourful_and_many(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    shards = ShardSet(resolve_shards("demo:photographs"))
    assert (shards.resolution, shards.manifest.columns) == (64, ("image",))
    assert (len(shards), shards.manifest.filter) == (951, "lanczos"), "a changed recipe needs a new version"
    images = every_fifth(shards)
    assert images.shape[1:] == (64, 64, 3)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert images.astype(float).std(axis=(1, 2)).mean() > 30
    assert np.abs(images[..., 0].astype(int) - images[..., 2]).mean() > 30


def every_fifth(shards: ShardSet) -> np.ndarray:
    return np.stack([decode(shards.read(row)) for row in range(0, len(shards), 5)])


@needs_skimage
def test_two_domains_of_snapshots_and_prints(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    sets = {name: ShardSet(resolve_shards(f"demo:{name}")) for name in ("snapshots", "prints")}
    assert {name: len(shards) for name, shards in sets.items()} == {"snapshots": 1131, "prints": 1069}
    assert all((shards.resolution, shards.manifest.columns) == (64, ("image",)) for shards in sets.values())
    images = {name: every_fifth(shards) for name, shards in sets.items()}
    assert all(len(np.unique(array.reshape(len(array), -1), axis=0)) == len(array) for array in images.values())
    assert max(colours(image) for image in images["prints"]) == 3
    assert min(colours(image) for image in images["snapshots"]) > 100
    palettes = [np.unique(image.reshape(-1, 3), axis=0).tobytes() for image in images["prints"]]
    assert len(set(palettes)) == len(palettes), "every print has inks of its own"


def colours(image: np.ndarray) -> int:
    return len(np.unique(image.reshape(-1, 3), axis=0))


def test_the_domains_have_no_pixel_in_common():
    regions = {name: dict(demo._SETS[name].regions) for name in ("snapshots", "prints")}
    assert set(regions["snapshots"]) == set(regions["prints"])
    for file, one in regions["snapshots"].items():
        other = regions["prints"][file]
        assert one is not None, "the whole photograph"
        assert other is not None, "the whole photograph"
        for left, top, right, bottom in (one, other):  # beyond the photograph there would be black
            assert 0 <= left < right <= SIZES[file][0]
            assert 0 <= top < bottom <= SIZES[file][1]
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@needs_skimage
@pytest.mark.parametrize("name", ["snapshots", "prints"])
def test_a_second_build_is_the_same(cache, tmp_path, monkeypatch, name):
    digests = []
    for base in (cache, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        digests.append(hashlib.sha256((demo_shards(name) / MANIFEST).read_bytes()).hexdigest())
    assert digests[0] == digests[1]  # the manifest holds the shard's sha256


def test_inks_go_round_the_wheel_far_from_each_other():
    numbers = np.random.PCG64(0)
    light, dark = np.array([inks(numbers) for _ in range(1000)]).T
    apart = np.abs(light - dark)
    assert np.minimum(apart, HUES - apart).min() >= HUES // 4
    for hues in (light, dark):
        assert np.histogram(hues, bins=8, range=(0, HUES))[0].min() > 80


def test_prints_differ_in_colour_and_keep_the_tones():
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, axis=0)
    picture = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    prints = np.stack([two_ink_print(picture, hue, (hue + HUES // 2) % HUES) for hue in range(0, HUES, HUES // 8)])
    assert (prints.shape, prints.dtype) == ((8, 64, 64, 3), np.uint8)
    for shown in (prints, np.stack([halve(image) for image in prints])):
        differences = np.abs(shown.astype(float)[:, None] - shown).mean(axis=(2, 3)).max(axis=-1)
        assert (differences + 255 * np.eye(8)).min() > 20, "two styles look the same"
        columns = shown.astype(float).mean(axis=(1, 3))
        bands = columns.reshape(8, 8, -1).mean(axis=2)  # eight bands from black to white
        assert np.diff(bands, axis=1).min() > -1, "a brighter part is printed darker"
        assert (bands[:, -1] - bands[:, 0] > 120).all()
        rows = shown.astype(float).std(axis=1).max(axis=-1)  # within a column only the hatching varies
        assert ((rows > 10).mean(axis=1) > 0.25).all(), "no hatching is left"
        assert ((rows == 0).mean(axis=1) > 0.4).all(), "flat tones are hatched"


def test_dark_and_pale_photographs_make_equally_bright_prints():
    noise = np.random.default_rng(0).integers(0, 60, (64, 64, 1)).repeat(3, axis=2)
    dark, pale = (Image.fromarray((noise + base).astype(np.uint8)) for base in (0, 190))
    assert np.array_equal(two_ink_print(dark, 0, HUES // 2), two_ink_print(pale, 0, HUES // 2))
    squared = Image.fromarray((noise**2 // 60).astype(np.uint8))  # most pixels near its darkest
    bright = [two_ink_print(one, 0, HUES // 2).mean() for one in (dark, squared)]
    assert abs(bright[0] - bright[1]) < 25
    assert colours(two_ink_print(Image.new("RGB", (64, 64)), 0, HUES // 2)) <= 2, "an even picture has one tone"


def test_crops_span_the_photograph_in_several_sizes():
    columns, rows = np.meshgrid(np.arange(200, dtype=np.uint8), np.arange(100, dtype=np.uint8))
    photograph = Image.fromarray(np.stack([columns, rows, rows], -1))
    crops = [np.asarray(crop) for crop in overlapping_crops(photograph, 0.12)]
    assert sorted({len(crop) for crop in crops}) == [55, 70, 85, 100]
    assert all(crop.shape[0] == crop.shape[1] for crop in crops)
    for side in (55, 100):
        corners = [(crop[0, 0, 0], crop[0, 0, 1]) for crop in crops if len(crop) == side]
        assert (0, 0) in corners
        assert (200 - side, 100 - side) in corners
        assert len(set(corners)) == len(corners)


def test_a_changed_recipe_has_a_new_version():
    assert {(name, one.version): recipe_digest(one) for name, one in demo._SETS.items()} == RECIPES


def recipe_digest(one: demo.DemoSet) -> str:
    sizes = [(box[2] - box[0], box[3] - box[1]) if box else SIZES[file] for file, box in one.regions]
    crops = [crop_boxes(size, one.stride) for size in sizes]
    digest = hashlib.sha256(repr((one.regions, demo._RESOLUTION, crops)).encode())
    if one.printed:
        rows, columns = np.mgrid[:64, :64].astype(np.uint8)
        picture, numbers = Image.fromarray(np.stack([rows, columns, rows + columns], -1)), np.random.PCG64(demo._SEED)
        digest.update(b"".join(two_ink_print(picture, *inks(numbers)).tobytes() for _ in range(20)))
    return digest.hexdigest()


def crop_boxes(size: tuple[int, int], stride: float) -> list[tuple[int, ...]]:
    """Left, top, right and bottom of every crop of a photograph, read from the crops of its coordinates."""
    rows, columns = np.mgrid[: size[1], : size[0]].astype(np.int32)
    coordinates = Image.fromarray(rows * 1000 + columns)
    corners = [np.asarray(crop)[[0, -1], [0, -1]] for crop in overlapping_crops(coordinates, stride)]
    return [tuple(int(n) for corner in pair for n in (corner % 1000, corner // 1000)) for pair in corners]


def test_paths_stay_paths(tmp_path):
    assert resolve_shards(str(tmp_path / "shards")) == tmp_path / "shards"
    assert resolve_shards("~/shards") == Path.home() / "shards"


def test_unknown_set_and_missing_skimage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UsageError, match="no demo set 'cats': the demo sets are demo:photographs, demo:snapshots, demo:prints$"
    ):
        resolve_shards("demo:cats")
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    with pytest.raises(Failure, match=r"pip install 'hires-gan\[demo\]'"):
        resolve_shards("demo:photographs")
    assert list(tmp_path.iterdir()) == []


@needs_skimage
def test_an_unwritable_cache_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert demo.cache_folder() == tmp_path / "file/hires_gan"
    with pytest.raises(Failure, match=r"cannot be prepared: .*Not a directory"):
        demo_shards("photographs")
