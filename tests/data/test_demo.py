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
from hires_gan.data.demo import demo_shards, overlapping_crops, resolve_shards
from hires_gan.data.pictures import decode
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="the demo photographs come with scikit-image"
)
RECIPE = {
    2: "8bb4fc0c78bef2fe1b0827a1f872ca01993901fdaebaec85263429af5b56c869"
}  # version, and sha256 of what is cut out of what
CODE = "from hires_gan.data.demo import resolve_shards; print(resolve_shards('demo:photographs'))"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@needs_skimage
def test_two_processes_at_once_make_one_set(cache, monkeypatch):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    both = [subprocess.Popen([sys.executable, "-c", CODE], env=environment, stdout=-1, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0].strip() for process in both}
    folder = cache / f"hires_gan/demo/photographs-v{demo._VERSION}"
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
    assert (len(shards), shards.manifest.filter) == (951, "lanczos"), "a changed recipe needs a new _VERSION"
    images = np.stack([decode(shards.read(row)) for row in range(0, len(shards), 5)])
    assert images.shape[1:] == (64, 64, 3)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert images.astype(float).std(axis=(1, 2)).mean() > 30
    assert np.abs(images[..., 0].astype(int) - images[..., 2]).mean() > 30


def test_crops_span_the_photograph_in_several_sizes():
    columns, rows = np.meshgrid(np.arange(200, dtype=np.uint8), np.arange(100, dtype=np.uint8))
    crops = [np.asarray(crop) for crop in overlapping_crops(Image.fromarray(np.stack([columns, rows, rows], -1)))]
    assert sorted({len(crop) for crop in crops}) == [55, 70, 85, 100]
    assert all(crop.shape[0] == crop.shape[1] for crop in crops)
    for side in (55, 100):
        corners = [(crop[0, 0, 0], crop[0, 0, 1]) for crop in crops if len(crop) == side]
        assert (0, 0) in corners
        assert (200 - side, 100 - side) in corners
        assert len(set(corners)) == len(corners)


def test_a_changed_recipe_has_a_new_version():
    sizes = [(512, 512), (451, 300), (600, 400), (640, 427), (741, 500)]
    boxes = [box for size in sizes for box in crop_boxes(size)]
    recipe = repr((demo._SETS, demo._RESOLUTION, boxes))
    assert {demo._VERSION: hashlib.sha256(recipe.encode()).hexdigest()} == RECIPE


def crop_boxes(size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Left, top, right and bottom of every crop of a photograph, read from the crops of its coordinates."""
    rows, columns = np.mgrid[: size[1], : size[0]].astype(np.int32)
    coordinates = Image.fromarray(rows * 1000 + columns)
    corners = [np.asarray(crop)[[0, -1], [0, -1]] for crop in overlapping_crops(coordinates)]
    return [tuple(int(n) for corner in pair for n in (corner % 1000, corner // 1000)) for pair in corners]


def test_paths_stay_paths(tmp_path):
    assert resolve_shards(str(tmp_path / "shards")) == tmp_path / "shards"
    assert resolve_shards("~/shards") == Path.home() / "shards"


def test_unknown_set_and_missing_skimage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no demo set 'cats': the demo sets are demo:photographs"):
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
