"""Pairs and unpaired domains against their definition: which images, in which order and layout, whatever decodes."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from input_definition import Definition, noise_files, write_columns, write_shards
from PIL import Image

from hires_gan.data.domains import Domains, in_one_set, open_data
from hires_gan.data.loader import Loader, Request
from hires_gan.data.pictures import encode
from hires_gan.data.reader import SampleReader
from hires_gan.data.ring import Ring
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

SIDE, SEED, GROUP = 16, 5, 4
COUNTS = {"sun": 17, "rain": 3, "snow": 1}
"""Unpaired sets, one of them of a single image."""
PAIRS = 11
FILES = {name: noise_files(count, SIDE, seed) for seed, (name, count) in enumerate(COUNTS.items())}
LEFT, RIGHT = noise_files(PAIRS, SIDE, 7), noise_files(PAIRS, SIDE, 8)
DECODERS: dict[str, dict[str, Any]] = {
    "in this process": {"workers": 0},
    "one worker": {"workers": 1},
    "three workers": {"workers": 3},
    "dali-cpu": {"decoder": "dali-cpu", "threads": 2},
}
STEPS = [(8, 12, 3), (16, 20, 2), (16, 8, 4), (4, 4, 3)]
"""Resolution, batch and number of steps."""


@pytest.fixture(scope="module", autouse=True)
def _fresh_server():
    """Another test may have started a server that has not imported torch: every worker would do so by itself."""
    forkserver._forkserver._stop()


@pytest.fixture(params=DECODERS)
def decoder(request) -> dict[str, Any]:
    if request.param == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    return DECODERS[request.param]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Settings that name plain images, pairs and unpaired domains."""
    root = tmp_path_factory.mktemp("sets")
    for name, files in FILES.items():
        write_shards(root / name, files, SIDE, per_shard=5)
    write_columns(root / "pairs", {"left": LEFT, "right": RIGHT}, SIDE, per_shard=4)
    return {
        "plain": {"shards": str(root / "sun")},
        "pairs": {"shards": str(root / "pairs")},
        "unpaired": {"domains": {name: str(root / name) for name in COUNTS}},
    }


def definitions(kind: str, mirror: bool = True) -> dict[str, Definition]:
    """What each domain shows: those of a pair in one order with one set of flips, the unpaired each with its own."""
    if kind == "plain":
        return {"image": Definition(FILES["sun"], [], SEED, mirror)}
    if kind == "pairs":
        return {name: Definition(files, [], SEED, mirror) for name, files in (("left", LEFT), ("right", RIGHT))}
    return {name: Definition(files, [], SEED, mirror, stream) for stream, (name, files) in enumerate(FILES.items())}


def defined(domains: dict[str, Definition], request: Request) -> np.ndarray:
    return np.concatenate([one.images(request.samples, request.resolution) for one in domains.values()])


def loader_of(data: dict[str, Any], largest: int = 60 * SIDE * SIDE * 3, **more: Any) -> Loader:
    block = DataSettings(**({"mirror": True} | data | more))
    return Loader(open_data(block), block, SEED, largest)


def check(loader: Loader, wanted: list[Request], domains: dict[str, Definition]) -> None:
    for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
        assert batch.samples == request.samples
        assert batch.domains == tuple(domains)
        assert batch.labels is None
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(batch.images.numpy(), defined(domains, request))


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


# --- which images -----------------------------------------------------------------------------------------------------


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


# --- corrupt images ---------------------------------------------------------------------------------------------------


def damage(folder: Path, row: int, column: str) -> None:
    path, offset, size, _ = ShardSet(folder).locate(row, column)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)


def replaced(files: list[bytes], bad: set[int]) -> list[bytes]:
    count = len(files)
    return [next(files[r % count] for r in range(row, row + count) if r % count not in bad) for row in range(count)]


def test_a_corrupt_half_takes_its_pair_along(tmp_path, decoder, capfd):
    """Bytes that changed, a file that was cut before its crc32 was taken, and one in each half of neighbouring rows."""
    right = list(RIGHT)
    right[10] = RIGHT[10][: len(RIGHT[10]) // 2]
    folder = write_columns(tmp_path / "set", {"left": LEFT, "right": right}, SIDE, per_shard=4)
    for row, column in ((2, "right"), (5, "left"), (6, "right")):
        damage(folder, row, column)
    bad = {2, 5, 6, 10}
    domains = {name: Definition(replaced(files, bad), [], SEED, True) for name, files in (("l", LEFT), ("r", RIGHT))}
    domains = {"left": domains["l"], "right": domains["r"]}
    with loader_of({"shards": str(folder)}, max_corrupt=0.5, **decoder) as loader:
        check(loader, [Request(range(k, k + 9), SIDE) for k in range(0, 45, 9)], domains)
        assert len(loader.corrupt) == 4
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped a corrupt sample" in line]
    assert len(said) == 4
    for row, column in ((2, "right"), (5, "left"), (6, "right"), (10, "right")):
        assert sum(f"sample {row:09d}, column '{column}'" in line for line in said) == 1


def test_a_known_bad_half_is_not_read_again_and_neither_is_the_other(tmp_path, monkeypatch):
    folder = write_columns(tmp_path / "set", {"left": LEFT, "right": RIGHT}, SIDE)
    damage(folder, 4, "right")
    read, asked = ShardSet.read, []
    monkeypatch.setattr(
        ShardSet, "read", lambda self, row, column: asked.append((row, column)) or read(self, row, column)
    )
    with loader_of({"shards": str(folder)}, max_corrupt=0.5, workers=0) as loader:
        list(loader.batches(iter([Request(range(k, k + PAIRS), SIDE) for k in (0, PAIRS, 2 * PAIRS)])))
    assert (asked.count((4, "left")), asked.count((4, "right"))) == (1, 1)


def test_each_unpaired_set_replaces_and_counts_by_itself(tmp_path, decoder):
    sets = {"a": noise_files(10, SIDE, 1), "b": noise_files(20, SIDE, 2)}
    for name, files in sets.items():
        write_shards(tmp_path / name, files, SIDE)
    data = {"domains": {name: str(tmp_path / name) for name in sets}}
    for name, row in (("a", 3), ("b", 3), ("b", 19)):
        damage(tmp_path / name, row, "image")
    bad = {"a": {3}, "b": {3, 19}}
    domains = {
        name: Definition(replaced(files, bad[name]), [], SEED, True, stream)
        for stream, (name, files) in enumerate(sets.items())
    }
    wanted = [Request(range(k, k + 10), SIDE) for k in range(0, 40, 10)]
    with loader_of(data, max_corrupt=0.1, **decoder) as loader:
        check(loader, wanted, domains)
        assert len(loader.corrupt) == 3
    damage(tmp_path / "b", 7, "image")
    named = rf"^3 of the 20 samples in {tmp_path}/b have turned out corrupt, a share of 0\.15, and data\.max_corrupt al"
    with loader_of(data, max_corrupt=0.1, **decoder) as loader, pytest.raises(Failure, match=named):
        list(loader.batches(iter(wanted)))


def test_a_place_in_the_data_is_named_by_its_set(kinds):
    reader = SampleReader(open_data(DataSettings(**kinds["unpaired"])), SEED, False)
    folders = kinds["unpaired"]["domains"]
    assert reader.where(16) == f"row 16, in {folders['sun']}/shard-000003.tar"
    assert reader.where(17) == f"row 0, in {folders['rain']}/shard-000000.tar"
    assert reader.where(20) == f"row 0, in {folders['snow']}/shard-000000.tar"
    with pytest.raises(IndexError):
        reader.where(21)
    told: list[int] = []
    reader.fill(torch.empty(6, SIDE, SIDE, 3, dtype=torch.uint8), range(2), 0, 1, told.append)
    assert [reader.where(place).split("/")[-2] for place in told] == ["sun", "sun", "rain", "rain", "snow", "snow"]


def test_a_read_that_hangs_is_named_with_the_shard_of_its_domain(kinds, monkeypatch):
    pytest.importorskip("nvidia.dali")
    read, released = ShardSet.read, time.monotonic() + 3

    def hang(self: ShardSet, row: int, column: str) -> bytes:
        if self.folder.name == "rain":
            time.sleep(max(0.0, released - time.monotonic()))
            raise PermissionError(13, "too late")
        return read(self, row, column)

    monkeypatch.setattr(ShardSet, "read", hang)
    named = r"no image was decoded for 1 s, while reading row \d, in .*/rain/shard-000000\.tar; look at the disk"
    with loader_of(kinds["unpaired"], decoder="dali-cpu", timeout=1) as loader, pytest.raises(Failure, match=named):
        list(loader.batches(iter([Request(range(3), SIDE)])))


# --- what the data block names ----------------------------------------------------------------------------------------


def test_the_digest_is_the_manifests_and_of_several_their_names_order_and_digests(kinds, tmp_path):
    plain, unpaired = (open_data(DataSettings(**kinds[kind])) for kind in ("plain", "unpaired"))
    assert plain.digest() == plain.sources[0].shards.manifest.digest()
    where = kinds["unpaired"]["domains"]
    copy = write_shards(tmp_path / "elsewhere", FILES["rain"], SIDE, per_shard=5)
    digests = {
        "moved": where | {"rain": str(copy)},
        "renamed": {"sol": where["sun"], "rain": where["rain"], "snow": where["snow"]},
        "turned": {name: where[name] for name in ("rain", "sun", "snow")},
        "fewer": {name: where[name] for name in ("sun", "rain")},
        "swapped": {"sun": where["rain"], "rain": where["sun"], "snow": where["snow"]},
    }
    found = {name: open_data(DataSettings(domains=domains)).digest() for name, domains in digests.items()}
    assert found.pop("moved") == unpaired.digest()
    assert len({*found.values(), unpaired.digest(), plain.digest()}) == 6


def test_the_smallest_domain_must_do(tmp_path):
    write_shards(tmp_path / "a", noise_files(2, 32), 32)
    write_shards(tmp_path / "b", noise_files(3, 16), 16)
    data = open_data(DataSettings(domains={"cats": str(tmp_path / "a"), "dogs": str(tmp_path / "b")}))
    data.check_resolution(16)
    named = rf"recipe\.resolution is 32, but the images of domain dogs in {tmp_path}/b have 16; prepare them again at -"
    with pytest.raises(UsageError, match=named):
        data.check_resolution(32)
    pairs = in_one_set(ShardSet(write_columns(tmp_path / "p", {"x": LEFT, "y": RIGHT}, SIDE)))
    assert pairs.names == ("x", "y")
    with pytest.raises(UsageError, match=rf"the images of domains x and y in {tmp_path}/p have 16"):
        pairs.check_resolution(32)
    with pytest.raises(UsageError, match=rf"the images in {tmp_path}/b have 16"):
        in_one_set(ShardSet(tmp_path / "b")).check_resolution(32)


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        open_data(DataSettings(**data))
    return str(caught.value)


def test_domains_that_cannot_be_opened_are_named(kinds, tmp_path):
    where = kinds["unpaired"]["domains"]
    missing = refused({"domains": {"a": where["sun"], "b": str(tmp_path / "nowhere")}})
    assert missing.startswith(f"data.domains.b: there is no shard folder {tmp_path}/nowhere: make it with")
    (tmp_path / "empty").mkdir()
    empty = refused({"domains": {"a": str(tmp_path / "empty"), "b": where["sun"]}})
    assert empty.startswith(f"data.domains.a: {tmp_path}/empty is no finished shard set")
    broken = write_shards(tmp_path / "broken", LEFT, SIDE)
    (broken / "manifest.json").write_text("{}")
    with pytest.raises(Failure, match=r"^data\.domains\.b: .*is not the manifest of a shard set") as caught:
        open_data(DataSettings(domains={"a": where["sun"], "b": str(broken)}))
    assert not isinstance(caught.value, UsageError)


def test_one_set_for_two_domains_is_refused_also_as_a_copy(kinds, tmp_path):
    where = kinds["unpaired"]["domains"]
    copy = write_shards(tmp_path / "copy", FILES["sun"], SIDE, per_shard=5)
    for other in (where["sun"], str(copy)):
        said = refused({"domains": {"a": where["sun"], "b": where["rain"], "c": other}})
        assert said.startswith(f"data.domains.a and data.domains.c hold the same images ({where['sun']} and {other}): ")
        assert "--pair" in said


def test_a_set_of_pairs_is_no_single_domain(kinds):
    where, pairs = kinds["unpaired"]["domains"], kinds["pairs"]["shards"]
    said = refused({"domains": {"a": where["sun"], "b": pairs}})
    assert said.startswith(
        f"data.domains.b is {pairs}, which has the domains left, right itself: such a set is given wh"
    )


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "neither shards nor domains is given; exactly one of them is needed"),
        ({"shards": "x", "domains": {"a": "x", "b": "y"}}, "both shards and domains are given; exactly one of them"),
        ({"domains": {"a": "x"}}, "1 given, and two or more are needed, such as"),
        ({"domains": {}}, "0 given, and two or more are needed"),
        (
            {"domains": {"a": "x", "1b": "y"}},
            "'1b' is no name of a domain; letters, digits and underscores are allowed",
        ),
        ({"domains": {"a": "x", "b-c": "y"}}, "'b-c' is no name of a domain"),
        ({"domains": {"a": "x", "": "y"}}, "'' is no name of a domain"),
        ({"domains": {"a": "x", "ä": "y"}}, "'ä' is no name of a domain"),
        ({"domains": {"a": "x", "b": ""}}, "at least 1 character"),
        ({"domains": "x"}, "valid dictionary"),
    ],
)
def test_data_blocks_that_cannot_be(data, named):
    with pytest.raises(ValueError, match=named):
        DataSettings(**data)


def test_labels_are_for_plain_images_alone(tmp_path):
    labelled = write_shards(tmp_path / "a", LEFT, SIDE, labels=[row % 3 for row in range(PAIRS)])
    other = write_shards(tmp_path / "b", RIGHT, SIDE, labels=[0] * PAIRS)
    pairs = write_columns(tmp_path / "p", {"x": LEFT, "y": RIGHT}, SIDE, labels=[1] * PAIRS)
    for data, has in (
        ({"shards": str(labelled)}, True),
        ({"shards": str(pairs)}, False),
        ({"domains": {"a": str(labelled), "b": str(other)}}, False),
    ):
        with loader_of(data, workers=0) as loader:
            batch = next(loader.batches(iter([Request(range(5), SIDE)])))
            assert (batch.labels is not None) == has
    np.full(10, 3, "<i4").tofile(labelled / "shard-000000.labels")
    with (
        loader_of({"shards": str(labelled)}, workers=0) as loader,
        pytest.raises(Failure, match=r"shard-000000\.labels holds labels from 3 to 3, the manifest names 3 classes"),
    ):
        next(loader.batches(iter([Request(range(PAIRS), SIDE)])))


def test_plain_images_are_the_domain_image(kinds):
    data = open_data(DataSettings(**kinds["plain"]))
    assert isinstance(data, Domains)
    assert (data.names, data.is_plain, data.location) == (("image",), True, kinds["plain"]["shards"])
