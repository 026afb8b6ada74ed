"""The input against its definition: every sample's pixels, label and number, in every layout."""

from __future__ import annotations

import gc
import itertools
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from input_definition import Definition, noise_files, write_shards

from hires_gan.cores import usable_cores
from hires_gan.data.decoders import decode_into
from hires_gan.data.loader import Loaded, Loader, Request, SampleReader
from hires_gan.data.manifest import INDEX_ROW, Manifest, ShardEntry
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.writer import write_manifest
from hires_gan.errors import Failure

COUNT, SIDE, SEED, GROUP = 37, 16, 5, 4
FILES = noise_files(COUNT, SIDE)
LABELS = [row * 7 % 3 for row in range(COUNT)]
LARGEST = 120 * SIDE * SIDE * 3
DEFINITIONS = {mirror: Definition(FILES, LABELS, SEED, mirror) for mirror in (False, True)}
STAGES = [(4, 12, 5), (8, 20, 3), (16, 8, 6), (16, 4, 4)]
"""Resolution, batch and number of steps: growing, with a batch of a single group at the end."""


pytestmark = pytest.mark.usefixtures("fresh_server")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), FILES, SIDE, LABELS)


def loader_of(folder, workers, mirror=False, prefetch=3, largest=LARGEST) -> Loader:
    data = DataSettings(shards=str(folder), workers=workers, mirror=mirror, prefetch=prefetch)
    return Loader(ShardSet(folder), data, SEED, largest)


def plan(nimg=0) -> Iterator[tuple[range, int]]:
    """The steps of a run from `nimg` on: their samples and resolution."""
    start = 0
    for resolution, batch, count in STAGES:
        for _ in range(count):
            if start >= nimg:
                yield range(start, start + batch), resolution
            start += batch


def share(samples: range, rank: int, ranks: int) -> range:
    """The consecutive whole groups of a step that a rank shows; the first ranks get what does not divide."""
    groups = len(samples) // GROUP
    sizes = [groups // ranks + (one < groups % ranks) for one in range(ranks)]
    first = sum(sizes[:rank])
    return samples[first * GROUP : (first + sizes[rank]) * GROUP]


def requests(rank=0, ranks=1, nimg=0) -> Iterator[Request]:
    return (Request(share(samples, rank, ranks), resolution) for samples, resolution in plan(nimg))


def is_defined(batch: Loaded, request: Request, definition: Definition) -> bool:
    """Whether a batch is, to the last bit, what the definition says."""
    assert batch.samples == request.samples
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    wanted = definition.images(request.samples, request.resolution)
    same = np.array_equal(batch.images.numpy(), wanted)
    return same and (batch.labels is None or batch.labels.tolist() == definition.classes(request.samples))


def check(loader: Loader, wanted: list[Request], definition: Definition) -> None:
    batches = loader.batches(iter(wanted))
    for request, batch in zip(wanted, batches, strict=True):
        assert is_defined(batch, request, definition)


# --- the definition ---------------------------------------------------------------------------------------------------


def test_the_definition_shows_every_image_once_per_epoch_and_flips_about_half():
    rows = [DEFINITIONS[True].row(sample) for sample in range(3 * COUNT)]
    assert all(sorted(rows[start : start + COUNT]) == list(range(COUNT)) for start in (0, COUNT, 2 * COUNT))
    flipped = sum(
        not np.array_equal(DEFINITIONS[True].image(k, SIDE), DEFINITIONS[False].image(k, SIDE)) for k in range(400)
    )
    assert 160 < flipped < 240


@pytest.mark.parametrize(("mirror", "prefetch"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("workers", range(5))
def test_every_layout_is_the_definition(folder, workers, mirror, prefetch):
    """1 to 3 ranks, 0 to 4 workers, stage changes, uneven and empty shares; together, the ranks show every sample."""
    with loader_of(folder, workers, mirror, prefetch) as loader:
        for ranks in (1, 2, 3):
            shown: list[int] = []
            for rank in range(ranks):
                wanted = list(requests(rank, ranks))
                check(loader, wanted, DEFINITIONS[mirror])
                shown += itertools.chain.from_iterable(request.samples for request in wanted)
            assert sorted(shown) == list(range(sum(batch * count for _, batch, count in STAGES)))
        assert {len(request.samples) for request in requests(2, 3)} == {0, 4}


def test_ranks_side_by_side(folder):
    loaders = [loader_of(folder, workers, True) for workers in (2, 1, 0)]
    try:
        streams = [loader.batches(requests(rank, 3)) for rank, loader in enumerate(loaders)]
        for wanted in zip(*(requests(rank, 3) for rank in range(3)), strict=True):
            for request, stream in zip(wanted, streams, strict=True):
                assert is_defined(next(stream), request, DEFINITIONS[True])
    finally:
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_from_any_nimg_is_the_continuation(folder, workers):
    """On the same or on another number of ranks: nimg is the whole state."""
    boundaries = [samples.start for samples, _ in plan()]
    with loader_of(folder, workers, True) as loader:
        for place, nimg in enumerate(boundaries):
            ranks = place % 3 + 1
            for rank in range(ranks):
                check(loader, list(requests(rank, ranks, nimg)), DEFINITIONS[True])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_left_half_way_does_not_disturb_the_next(folder, workers):
    """Its batches may still be on their way into the slots of the next one's."""
    with loader_of(folder, workers, prefetch=3) as loader:
        for attempt in range(30):
            far = (Request(range(start, start + 120), SIDE) for start in range(10**6, 10**6 + 1200, 120))
            for _ in zip(range(attempt % 3), loader.batches(far), strict=False):
                pass
            wanted = [Request(range(attempt * 9, attempt * 9 + 9), 8) for attempt in range(6)]
            check(loader, wanted, DEFINITIONS[False])


def test_a_batch_stays_whole_until_the_next_is_asked_for(folder):
    with loader_of(folder, 2, prefetch=1) as loader:
        wanted = list(requests())
        for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
            time.sleep(0.01)  # the workers have long begun whatever they may
            assert is_defined(batch, request, DEFINITIONS[False])


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("start", [2**32 - 7, 10**12])
def test_late_samples_of_long_runs(folder, workers, start):
    with loader_of(folder, workers, True) as loader:
        check(loader, [Request(range(start, start + 14), 16)], DEFINITIONS[True])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_larger_than_the_data_set_wraps(folder, workers):
    with loader_of(folder, workers, True) as loader:
        check(loader, [Request(range(30, 150), SIDE), Request(range(150, 151), SIDE)], DEFINITIONS[True])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_without_any_sample(folder, workers):
    with loader_of(folder, workers, largest=0) as loader:
        check(loader, [Request(range(k, k), 16) for k in range(6)], DEFINITIONS[False])


def test_no_labels_and_no_requests(tmp_path):
    with loader_of(write_shards(tmp_path, FILES[:1], SIDE), 0) as loader:
        assert [batch.labels for batch in loader.batches(iter([Request(range(5), 4)]))] == [None]
        assert list(loader.batches(iter(()))) == []


def test_small_resolutions_read_the_smallest_copy_that_is_large_enough(tmp_path):
    """Here each copy is an image of its own, so that what was read is seen."""
    copies = {side: noise_files(3, side, seed=side) for side in (4, 8)}
    levels = [{side: copies[side][row] for side in copies} for row in range(3)]
    write_shards(tmp_path, FILES[:3], SIDE, levels=levels)
    with loader_of(tmp_path, 2, True) as loader:
        for resolution, read in ((16, FILES[:3]), (8, copies[8]), (4, copies[4]), (2, copies[4])):
            check(loader, [Request(range(9), resolution)], Definition(read, [0] * 3, SEED, True))


def test_workers_follow_the_cores(folder):
    data = DataSettings(shards=str(folder))
    for share in (1, 10 * usable_cores()):
        with Loader(ShardSet(folder), data, SEED, LARGEST, share) as loader:
            assert len(loader.decoder.pids) == max(1, usable_cores() // share // 2)  # the other half trains
            assert loader.settings.workers == len(loader.decoder.pids)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_shard_that_vanishes_is_named(tmp_path):
    write_shards(tmp_path, FILES, SIDE)
    with loader_of(tmp_path, 1) as loader:
        for path in tmp_path.glob("*.tar"):
            path.unlink()
        with pytest.raises(Failure, match=r"sample 0 of the run .*belongs to the shard set but cannot be opened"):
            next(loader.batches(iter([Request(range(3), SIDE)])))


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_two_hundred_batches_leak_nothing(folder):
    with loader_of(folder, 2) as loader:
        processes = [psutil.Process(), *(psutil.Process(pid) for pid in loader.decoder.pids)]
        stream = loader.batches(Request(range(k, k + 40), SIDE) for k in itertools.count(0, 40))
        for _ in range(60):
            next(stream)
        gc.collect()  # what earlier tests have left
        descriptors = [process.num_fds() for process in processes]
        memory = [process.memory_info().rss for process in processes]
        for _ in range(200):
            next(stream)
        assert all(now.num_fds() <= before for now, before in zip(processes, descriptors, strict=True))
        growth = [process.memory_info().rss - before for process, before in zip(processes, memory, strict=True)]
        assert max(growth) < 4 * 2**20


def sparse_shards(folder: Path, shards: int, each: int) -> ShardSet:
    """A set whose every sample is one and the same small PNG; the tars are sparse files."""
    folder.mkdir()
    image = noise_files(1, 4)[0]
    rows = np.zeros(each, INDEX_ROW)
    rows["offset"], rows["size"], rows["crc32"] = 512, len(image), zlib.crc32(image)
    entries = []
    for number in range(shards):
        name, size = f"shard-{number:06d}", each * 1024
        (folder / f"{name}.index").write_bytes(rows.tobytes())
        with (folder / f"{name}.tar").open("wb") as file:
            file.seek(512)
            file.write(image)
            file.truncate(size)
        entries.append(ShardEntry(name=f"{name}.tar", samples=each, bytes=size, sha256="0" * 64))
    manifest = Manifest(resolution=4, count=shards * each, columns=("image",), filter="box", shards=tuple(entries))
    write_manifest(folder, manifest)
    return ShardSet(folder)


def seconds_per_sample(reader: SampleReader, first: int, count: int) -> float:
    images = torch.empty(count, 4, 4, 3, dtype=torch.uint8)
    start = time.process_time()
    reader.fill(images, range(first, first + count), 0, 1)
    return (time.process_time() - start) / count


def test_the_next_of_a_million_samples_takes_no_longer_than_of_a_thousand(tmp_path):
    small = SampleReader(sparse_shards(tmp_path / "small", 1, 1000), 0, True)
    sparse_shards(tmp_path / "large", 100, 10_000)
    memory, start = psutil.Process().memory_info().rss, time.perf_counter()
    large = SampleReader(ShardSet(tmp_path / "large"), 0, True)
    large.fill(torch.empty(1, 4, 4, 3, dtype=torch.uint8), range(1), 0, 1)
    assert time.perf_counter() - start < 2
    for reader in (small, large):
        seconds_per_sample(reader, 5_000_000, 1000)  # opens the shards
    # The best of several: the machine has other things to do as well.
    best = [min(seconds_per_sample(reader, 7_000_000, 500) for _ in range(5)) for reader in (small, large)]
    assert best[1] < 1e-3
    assert best[1] < 3 * best[0]
    assert psutil.Process().memory_info().rss - memory < 100e6


def test_decoding_in_place_needs_no_second_batch(folder):
    """The slots are all that the loader holds: `prefetch` + 1 of the largest batch."""
    with loader_of(folder, 0, prefetch=3, largest=2**20) as loader:
        assert loader.decoder.ring.slots * loader.decoder.ring.slot_bytes == 4 * 2**20
        batch = next(loader.batches(iter([Request(range(4), SIDE)])))
        assert batch.images.data_ptr() == loader.decoder.ring.images(0, 4, SIDE).data_ptr()
        decode_into(FILES[0], loader.decoder.ring.images(0, 4, SIDE)[0], False)
        assert np.array_equal(batch.images[0].numpy(), Definition(FILES[:1], [0], 0, False).image(0, SIDE))


# --- what is auto -----------------------------------------------------------------------------------------------------


def test_a_loader_that_knows_its_batches_measures_what_is_auto_and_says_so(folder, capfd):
    data = DataSettings(shards=str(folder))
    with Loader(ShardSet(folder), data, SEED, LARGEST, typical=Request(range(8), SIDE)) as loader:
        assert "data.workers: auto takes " in capfd.readouterr().err
        check(loader, list(requests()), DEFINITIONS[False])
        chosen = len(loader.decoder.pids), loader.decoder.slots
    assert chosen[0] >= 1
    assert chosen[1] >= 2
    fixed = DataSettings(shards=str(folder), workers=0, prefetch=2)
    with Loader(ShardSet(folder), fixed, SEED, LARGEST, typical=Request(range(8), SIDE)) as loader:
        assert (len(loader.decoder.pids), loader.decoder.slots) == (0, 3)
    assert capfd.readouterr().err == ""


def test_a_loader_that_does_not_know_goes_by_the_cores(folder, capfd):
    with Loader(ShardSet(folder), DataSettings(shards=str(folder)), SEED, LARGEST) as loader:
        assert (len(loader.decoder.pids), loader.decoder.slots) == (max(1, usable_cores() // 2), 4)
    assert capfd.readouterr().err == ""
