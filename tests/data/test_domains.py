"""Pairs and unpaired domains against their definition: which images, in which order and layout, whatever decodes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from domain_sets import DECODERS, FILES, LEFT, PAIRS, RIGHT, SEED, SIDE, check, definitions, loader_of
from hypothesis import given, settings
from hypothesis import strategies as st
from input_definition import Definition, noise_files, write_columns, write_shards
from PIL import Image

from hires_gan.data.domains import open_data
from hires_gan.data.loader import Request
from hires_gan.data.pictures import encode
from hires_gan.data.reader import SampleReader
from hires_gan.data.ring import Ring
from hires_gan.data.settings import DataSettings

GROUP = 4
STEPS = [(8, 12, 3), (16, 20, 2), (16, 8, 4), (4, 4, 3)]
"""Resolution, batch and number of steps."""


pytestmark = pytest.mark.usefixtures("fresh_server")


def steps() -> Iterator[tuple[range, int]]:
    start = 10**6
    for resolution, batch, count in STEPS:
        for _ in range(count):
            yield range(start, start + batch), resolution
            start += batch


def share(samples: range, rank: int, ranks: int) -> range:
    """The consecutive whole groups of a step that a rank shows; the first ranks get what does not divide."""
    groups = len(samples) // GROUP
    sizes = [groups // ranks + (one < groups % ranks) for one in range(ranks)]
    first = sum(sizes[:rank])
    return samples[first * GROUP : (first + sizes[rank]) * GROUP]


def test_the_definition_keeps_pairs_together_and_unpaired_domains_apart():
    pairs, unpaired = definitions("pairs"), definitions("unpaired")
    assert all(pairs["left"].row(k) == pairs["right"].row(k) for k in range(50))
    same = Definition(FILES["sun"], [], SEED, True, stream=1)
    assert sum(unpaired["sun"].row(k) == same.row(k) for k in range(170)) < 40, "two sets of one size run in parallel"


@pytest.mark.parametrize("kind", ["plain", "pairs", "unpaired"])
@pytest.mark.parametrize("mirror", [True, False])
def test_every_layout_is_the_definition(kinds, kind, mirror, decoder):
    """1 to 3 ranks, any number of workers, resolutions that change, uneven and empty shares."""
    with loader_of(kinds[kind], mirror=mirror, **decoder) as loader:
        for ranks in (1, 2, 3):
            for rank in range(ranks):
                wanted = [Request(share(samples, rank, ranks), resolution) for samples, resolution in steps()]
                check(loader, wanted, definitions(kind, mirror))
        assert {len(share(samples, 2, 3)) for samples, _ in steps()} == {0, 4}


@pytest.mark.parametrize("kind", ["plain", "pairs", "unpaired"])
def test_ranks_that_become_more_continue_one_order_and_show_every_image_once_per_epoch(kinds, kind):
    """A run on 1 rank goes on on 2 and then on 3; each rank has a loader of its own, begun where the run stands."""
    shown: dict[str, list[bytes]] = {name: [] for name in definitions(kind)}
    nimg = 0
    for ranks in (1, 2, 3):
        plan = [range(start, start + 12) for start in range(nimg, nimg + 72, 12)]
        nimg = plan[-1].stop
        loaders = [loader_of(kinds[kind], mirror=False, workers=rank) for rank in range(ranks)]
        streams = [
            loader.batches(iter([Request(share(samples, rank, ranks), SIDE) for samples in plan]))
            for rank, loader in enumerate(loaders)
        ]
        for batches in zip(*streams, strict=True):
            for batch in batches:
                for name, images in zip(batch.domains, batch.images.chunk(len(batch.domains)), strict=True):
                    shown[name] += [image.numpy().tobytes() for image in images]
        for loader in loaders:
            loader.close()
    for name, definition in definitions(kind, mirror=False).items():
        assert shown[name] == [definition.image(sample, SIDE).tobytes() for sample in range(nimg)]
        count = len(definition.files)
        epochs = [shown[name][start : start + count] for start in range(0, nimg - count + 1, count)]
        assert all(set(Counter(epoch).values()) == {1} for epoch in epochs)


def test_pairs_are_turned_together(tmp_path, decoder):
    """b is the negative of a; were one of them flipped without the other, it would not be."""
    random = np.random.default_rng(0)
    a = [random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(9)]
    files = {"a": [encode(one, "png").data for one in a], "b": [encode(255 - one, "png").data for one in a]}
    write_columns(tmp_path / "set", files, SIDE, per_shard=4)
    flipped = Counter()
    with loader_of({"shards": str(tmp_path / "set")}, **decoder) as loader:
        for batch in loader.batches(iter([Request(range(k, k + 20), SIDE) for k in range(0, 100, 20)])):
            left, right = batch.images[:20], batch.images[20:]
            assert torch.equal(right, 255 - left)
            for image in left:
                flipped[any(np.array_equal(image.permute(1, 2, 0).numpy(), one) for one in a)] += 1
    assert 30 < flipped[True] < 70


def test_unpaired_domains_are_turned_each_by_itself(kinds):
    reader = SampleReader(open_data(DataSettings(**kinds["unpaired"])), SEED, mirror=True)
    flips = [stream.flips(range(2000)) for stream in reader.streams]
    plain = SampleReader(open_data(DataSettings(**kinds["plain"])), SEED, mirror=True).streams[0]
    assert flips[0] == plain.flips(range(2000)), "the first domain's flips are those of plain images"
    for one, other in itertools.combinations(flips, 2):
        assert 900 < sum(a == b for a, b in zip(one, other, strict=True)) < 1100


def test_each_domain_is_read_from_the_smallest_copies_that_suffice(tmp_path, decoder):
    """Sets of different sides and levels; every copy is an image of its own, so that what was read is seen."""
    small, wide = noise_files(5, 8, 1), noise_files(7, 32, 2)
    write_columns(tmp_path / "a", {"image": LEFT[:5], "image.8": small}, SIDE)
    write_shards(tmp_path / "b", wide, 32)
    with loader_of({"domains": {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}}, **decoder) as loader:
        for resolution, read in ((16, LEFT[:5]), (8, small), (4, small)):
            domains = {"a": Definition(read, [], SEED, True), "b": Definition(wide, [], SEED, True, 1)}
            check(loader, [Request(range(9), resolution), Request(range(9, 10), resolution)], domains)


def test_pairs_have_levels_of_their_own_and_one_that_only_a_half_has_is_left_alone(tmp_path, decoder):
    copies = {name: noise_files(PAIRS, side, side) for name, side in (("left.8", 8), ("right.8", 8), ("left.4", 4))}
    write_columns(tmp_path / "set", {"left": LEFT, "right": RIGHT, **copies}, SIDE)
    with loader_of({"shards": str(tmp_path / "set")}, **decoder) as loader:
        for resolution, left, right in (
            (16, LEFT, RIGHT),
            (8, copies["left.8"], copies["right.8"]),
            (4, copies["left.8"], copies["right.8"]),
        ):
            domains = {"left": Definition(left, [], SEED, True), "right": Definition(right, [], SEED, True)}
            check(loader, [Request(range(15), resolution)], domains)


def test_large_batches_go_through_dali_in_parts(tmp_path):
    """The largest batch is small at full size, so that a stage of small images is cut."""
    pytest.importorskip("nvidia.dali")
    files = {name: noise_files(9, 64, seed) for seed, name in enumerate("ab")}
    write_columns(tmp_path / "pairs", files, 64)
    for name, one in files.items():
        write_shards(tmp_path / name, one, 64)
    for data in (
        {"shards": str(tmp_path / "pairs")},
        {"domains": {name: str(tmp_path / name) for name in files}},
    ):
        wanted = [Request(range(k, k + 50), 4) for k in (0, 50, 100)]
        got = []
        for decoder in ("dali-cpu", "torchvision"):
            with loader_of(data, largest=wanted[0].size, decoder=decoder, workers=0) as loader:
                got.append([batch.images.clone() for batch in loader.batches(iter(wanted))])
        assert all(torch.equal(one, other) for one, other in zip(*got, strict=True))


@given(
    domains=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    count=st.integers(0, 7),
    step=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_workers_share_every_image_evenly_and_once(domains, count, step):
    """Whatever the streams: each counts the places that it is asked to fill."""

    class Counts:
        def __init__(self, number: int, images: int) -> None:
            self.number, self.source, self.shards = number, type("S", (), {"domains": ("d",) * images})(), ()
            self.units = 0

        def fill(self, images, samples, start, step, reading):
            assert images.shape[:2] == (len(self.source.domains), count)
            images[:, start::step] += 1
            self.units = len(range(start, count, step))
            return type("R", (), {"shown": {}, "corrupt": [], "retries": [], "given_up": False})()

    reader = SampleReader.__new__(SampleReader)
    reader.streams = tuple(Counts(number, images) for number, images in enumerate(domains))
    reader.domains = ("d",) * sum(domains)
    images = torch.zeros(sum(domains) * count, 2, 2, 3, dtype=torch.uint8)
    loads = []
    for start in range(step):
        reader.fill(images, range(100, 100 + count), start, step)
        loads.append(sum(stream.units for stream in reader.streams))
    assert (images == 1).all()
    assert max(loads) - min(loads) <= 1


def test_a_slot_holds_all_domains():
    ring = Ring(2, 5 * 8 * 8 * 3, domains=3)
    assert ring.slot_bytes == 4096
    assert ring.images(1, 5, 8).shape == (15, 8, 8, 3)
    assert ring.images(0, 0, 8).shape == (0, 8, 8, 3)
    with pytest.raises(AssertionError):
        ring.images(0, 8, 8)


@pytest.mark.shared
def test_real_photographs_of_two_domains(shared_data, tmp_path):
    """Cats and dogs, unpaired; the same photographs in colour and in grey as pairs; DALI gives torchvision's pixels."""
    pytest.importorskip("nvidia.dali")
    photographs = {kind: sorted((shared_data / "pets_cats_dogs" / kind).glob("*.jpg"))[:9] for kind in ("cat", "dog")}
    files: dict[str, list[bytes]] = {}
    for kind, paths in photographs.items():
        squares = [np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in paths]
        files[kind] = [encode(square, "jpg").data for square in squares]
        greys = [np.repeat(square.mean(2, keepdims=True).astype(np.uint8), 3, 2) for square in squares]
        files[f"grey_{kind}"] = [encode(grey, "png").data for grey in greys]
        write_shards(tmp_path / kind, files[kind], 128)
    write_columns(tmp_path / "pairs", {"colour": files["cat"], "grey": files["grey_cat"]}, 128)
    wanted = [Request(range(k, k + 12), side) for k, side in ((0, 128), (12, 64), (24, 128), (36, 8))]
    for data in (
        {"domains": {kind: str(tmp_path / kind) for kind in ("cat", "dog")}},
        {"shards": str(tmp_path / "pairs")},
    ):
        got = []
        for decoder in DECODERS.values():
            with loader_of(data, largest=wanted[0].size, **decoder) as loader:
                got.append([batch.images.clone() for batch in loader.batches(iter(wanted))])
        for other in got[1:]:
            assert all(torch.equal(one, two) for one, two in zip(got[0], other, strict=True))
        if "shards" in data:
            colour, grey = got[0][0].float().chunk(2)
            assert (colour.mean(1) - grey.mean(1)).abs().mean() < 3, "a pair shows one cat twice"
