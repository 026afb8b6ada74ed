"""The keys of samples: places in the listing of all images, with room for the tiles of each."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image
from ranked_sets import IMAGES, PER_SHARD, make_source, options

from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return make_source(tmp_path_factory.mktemp("source") / "i")


def keys(out: Path) -> list[str]:
    names = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += [name.split(".")[0] for name in tar.getnames() if name.count(".") == 1]
    return names


def test_keys_are_places_in_the_listing(tmp_path, source):
    prepare([source], tmp_path / "out", options(labels="none"))
    good = [place for place in range(IMAGES) if place not in (2, 17) and place // PER_SHARD != 1]
    assert keys(tmp_path / "out") == [f"{place:09d}" for place in good]
    shards = ShardSet(tmp_path / "out")
    assert [shards.key_of(row) for row in range(len(shards))] == keys(tmp_path / "out")


def test_prepared_again_a_set_names_its_keys(tmp_path, source):
    prepare([source], tmp_path / "out", options())
    with pytest.raises(Failure, match="none of the 24 images could be used"):
        prepare([str(tmp_path / "out")], tmp_path / "again", options(labels="none", max_pixels=1, max_rejected=0.9))
    lines = (tmp_path / "again/rejected.csv").read_text().splitlines()
    assert lines[3].startswith(f"{tmp_path}/out/shard-000000.tar/000000003,")


def test_tiles_have_room_for_their_count(tmp_path):
    for name, size in {"a": (40, 24), "b": (8, 8), "c": (16, 32)}.items():
        (tmp_path / "i").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"i/{name}.png")
    given = {"resolution": 16, "crop": "tiles", "max_rejected": 0.5, "processes": 1}
    prepare([str(tmp_path / "i")], tmp_path / "out", PrepareOptions(**given, max_pixels=40 * 24))
    assert keys(tmp_path / "out") == ["000000000", "000000001", "000000020", "000000021"]
    prepare([str(tmp_path / "i")], tmp_path / "more", PrepareOptions(**given))
    assert keys(tmp_path / "more") == ["000000000", "000000001", "002000000", "002000001"]


@pytest.mark.parametrize(
    ("changes", "room"),
    [
        ({}, 1),
        ({"crop": "tiles", "resolution": 1024}, 1000),
        ({"crop": "tiles", "resolution": 64}, 100_000),
        ({"crop": "tiles", "resolution": 1024, "max_pixels": 2**20}, 1),
        ({"crop": "tiles", "resolution": 1024, "max_pixels": 2**20 * 10}, 10),
        ({"crop": "tiles", "resolution": 1024, "max_pixels": 2**20 * 11}, 100),
    ],
)
def test_room_for_tiles(changes, room):
    assert PrepareOptions(**{"resolution": 64} | changes).keys_per_image == room
