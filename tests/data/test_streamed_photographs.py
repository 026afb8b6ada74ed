"""Real photographs from a web server: what is streamed is what the same set gives where it lies."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from input_definition import Definition

from hires_gan.data.lanes import LaneOrder
from hires_gan.data.loader import Loader, Request
from hires_gan.data.manifest import sizes_of
from hires_gan.data.opening import open_shards, order_of
from hires_gan.data.order import Order
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_settings import StreamSettings

pytestmark = pytest.mark.shared

SEED, SIDE, LANES, BATCH = 11, 256, 4, 6


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory) -> Path:
    """Faces and pets, JPEG of many makers: in shards of five, with a level, in one class for each of their folders."""
    source = tmp_path_factory.mktemp("photographs")
    kinds = ("faces_london/neutral", "faces_london/smiling", "pets_cats_dogs/cat", "pets_cats_dogs/dog")
    for kind in kinds:
        (source / Path(kind).name).mkdir()
        for path in sorted((shared_data / kind).glob("*.jpg"))[:12]:
            (source / Path(kind).name / path.name).symlink_to(path)
    out = tmp_path_factory.mktemp("served") / "set"
    wanted = PrepareOptions(resolution=SIDE, levels=(64,), labels="folders", shard_images=5, processes=1)
    assert prepare([str(source)], out, wanted).samples == 48
    return out


def test_every_sample_has_the_bytes_of_the_set_that_is_read_by_offset(server, settings, folder):
    local, streamed = ShardSet(folder), open_shards(server.url, settings())
    assert streamed.streamed
    assert not local.streamed
    for row, column in itertools.product(range(len(local)), local.manifest.columns):
        assert streamed.read(row, column) == local.read(row, column)
        assert streamed.label(row) == local.label(row)
        assert streamed.key_of(row) == local.key_of(row)
    assert set(server.fetched().values()) == {1}


def test_the_order_is_that_of_the_lanes_and_every_epoch_holds_every_photograph(server, settings, folder):
    local, streamed = ShardSet(folder), open_shards(server.url, settings())
    lanes, offset = order_of(streamed, SEED, LANES), order_of(local, SEED, LANES)
    assert isinstance(lanes, LaneOrder)
    assert isinstance(offset, Order)
    for epoch in range(2):
        samples = range(epoch * len(local), (epoch + 1) * len(local))
        shown = [streamed.read(lanes.row(sample)) for sample in samples]
        assert shown != [local.read(offset.row(sample)) for sample in samples]
        assert Counter(shown) == Counter(local.read(row) for row in range(len(local)))


@pytest.mark.parametrize("decoder", ["torchvision", "dali-cpu"])
def test_batches_are_the_photographs_whatever_decodes_and_however_small_the_cache(server, cache, folder, decoder):
    """The pixels are those of the local set's bytes, decoded here, in the order of the lanes."""
    if decoder == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    local = ShardSet(folder)
    largest = max(sum(sizes_of(local.manifest, shard).values()) for shard in local.manifest.shards)
    stream = StreamSettings(cache=cache, cache_gb=2 * LANES * largest / 1e9, lanes=LANES, patience=20)
    settings = DataSettings(shards=server.url, decoder=decoder, workers=0, threads=1, mirror=True, stream=stream)
    defined = InLanes(local, "image"), InLanes(local, "image.64")
    wanted = [Request(range(10 * k, 10 * k + BATCH), (SIDE, 64)[k % 2]) for k in range(8)]
    with Loader(open_shards(server.url, stream), settings, SEED, BATCH * SIDE * SIDE * 3) as loader:
        for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
            images = defined[request.resolution == 64].images(request.samples, request.resolution)
            assert np.array_equal(batch.images.numpy(), images)
            assert batch.labels.tolist() == [local.label(defined[0].row(sample)) for sample in request.samples]


class InLanes(Definition):
    """The input of a run whose samples are ordered in lanes."""

    def __init__(self, shards: ShardSet, column: str) -> None:
        super().__init__([shards.read(row, column) for row in range(len(shards))], [], SEED, mirror=True)
        self._order = LaneOrder(SEED, [shard.samples for shard in shards.manifest.shards], LANES)

    def row(self, sample: int) -> int:
        return self._order.row(sample)
