"""Copies in the cache that are not what arrived: mended where the disk is to blame, and left as they are where not."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from input_definition import noise_files, write_shards
from shard_server import serving
from streamed_sets import EQUAL, opened

from hires_gan.data.domains import in_one_set
from hires_gan.data.loader import Loader, Request
from hires_gan.data.mixed import refuse_mixed
from hires_gan.data.settings import DataSettings
from hires_gan.data.shard_files import CachedFiles
from hires_gan.data.shards import CorruptSample

FILES, LABELS, COUNT, EACH = EQUAL.files, EQUAL.labels, EQUAL.count, EQUAL.each


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return EQUAL.write(tmp_path_factory.mktemp("served") / "set")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("ending", ["tar", "index"])
def test_a_copy_that_the_disk_damaged_is_fetched_again(server, cache, ending):
    shards = opened(server, cache)
    place = shards.locate(7)
    flip(place.path.with_suffix(f".{ending}"), place.offset + 9 if ending == "tar" else 2 * 16 + 9)
    assert [shards.read(row) for row in range(EACH, 2 * EACH)] == FILES[EACH : 2 * EACH]
    assert server.fetched()[f"shard-000001.{ending}"] == 2


@pytest.mark.parametrize("ending", ["tar", "index", "labels"])
def test_a_copy_that_is_cut_short_or_gone_is_fetched_again(server, cache, ending):
    shards = opened(server, cache)
    path = shards.locate(7).path.with_suffix(f".{ending}")
    os.truncate(path, 20)
    fresh = opened(server, cache)
    if ending != "labels":
        assert [fresh.read(row) for row in range(COUNT)] == FILES
    path.unlink()
    fresh = opened(server, cache)
    assert [fresh.read(row) for row in range(COUNT)] == FILES
    assert [fresh.label(row) for row in range(COUNT)] == LABELS


@pytest.mark.parametrize("ending", ["tar", "index", "labels"])
def test_zeros_under_a_final_name_are_no_copy(server, cache, ending):
    """What a power cut leaves of files that nobody has synced: the crc32 of no bytes is that of a row of zeros."""
    shards = opened(server, cache)
    path = shards.locate(7).path.with_suffix(f".{ending}")
    path.write_bytes(bytes(path.stat().st_size))
    fresh = opened(server, cache)
    assert [fresh.read(row) for row in range(COUNT)] == FILES
    assert [fresh.label(row) for row in range(COUNT)] == LABELS
    assert server.fetched()[path.name] == 2
    assert server.fetched()["shard-000001.tar"] == 1 + (ending == "tar")


def test_bytes_are_on_the_disk_before_their_names(server, cache, monkeypatch):
    done, sync, rename = [], os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        sync(descriptor)
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", str(path)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    shards = opened(server, cache)
    shards.read(0)
    partials = [path for what, path in done if what == "rename" and path.endswith(".partial")]
    assert len(partials) == 3
    assert all(done.index(("sync", path)) < done.index(("rename", path)) for path in partials)
    assert done[-1] == ("sync", str(shards.cache.folder))


def test_many_threads_that_meet_one_damaged_copy_all_get_good_bytes(server, cache):
    shards = opened(server, cache)
    place = shards.locate(7)
    data = place.path.read_bytes()
    place.path.write_bytes(data[: place.offset] + bytes(len(data) - place.offset))
    server.fail(pause={"shard-000001.tar": 0.05})  # the others read while one mends
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(shards.read, [7, 8, 9] * 8)) == FILES[7:10] * 8
    assert server.fetched()["shard-000001.tar"] == 2


def test_a_copy_that_is_damaged_again_is_mended_again(server, cache):
    shards = opened(server, cache)
    for _ in range(3):
        place = shards.locate(7)
        flip(place.path, place.offset + 9)
        assert shards.read(7) == FILES[7]
    assert server.fetched()["shard-000001.tar"] == 4


def test_a_sample_that_is_corrupt_in_the_store_is_not_downloaded_again(server, cache, folder, tmp_path):
    """The index is not in the manifest: one that disagrees with its tar arrives as it is."""
    damaged = tmp_path / "damaged" / "set"
    shutil.copytree(folder, damaged)
    flip(damaged / "shard-000001.index", 2 * 16 + 13)
    with serving(damaged, tmp_path / "second") as second:
        sets = [opened(second, cache) for _ in range(3)]  # as in several processes
        for shards in sets * 2:
            with pytest.raises(
                CorruptSample, match=rf"{second.url}/shard-000001\.tar, sample 000000007, .* its crc32 is"
            ):
                shards.read(7)
        assert shards.read(8) == FILES[8]
        assert second.fetched()["shard-000001.tar"] == second.fetched()["shard-000001.index"] == 1
        place = shards.locate(8)  # and what is damaged here in the same shard is still mended
        flip(place.path, place.offset + 9)
        assert opened(second, cache).read(8) == FILES[8]
        assert second.fetched()["shard-000001.tar"] == 2


@pytest.mark.parametrize("decoder", ["torchvision", "dali-cpu"])
def test_images_of_another_size_are_named_with_both_sizes_and_not_looked_for(cache, tmp_path, capfd, decoder):
    """In a streamed set they are met in training alone: a look beforehand would fetch shards."""
    if decoder == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    odd = dict(zip((0, 7, COUNT - 1), noise_files(3, 8), strict=True))
    folder = write_shards(tmp_path / "mixed" / "set", [odd.get(k, FILES[k]) for k in range(COUNT)], 16, LABELS, EACH)
    with serving(folder, tmp_path / "second") as second:
        shards = opened(second, cache)
        refuse_mixed(in_one_set(shards), [16], 0.0, False)
        assert set(second.fetched()) == {"manifest.json"}
        settings = DataSettings(shards=second.url, decoder=decoder, workers=0, threads=1, max_corrupt=0.1)
        with Loader(shards, settings, 0, COUNT * 16 * 16 * 3, lanes=4) as loader:
            (batch,) = loader.batches(iter([Request(range(COUNT), 16)]))
            assert batch.images.shape == (COUNT, 3, 16, 16)
            assert len(loader.corrupt) == 3
    said = capfd.readouterr().err
    for row in odd:
        name = f"{second.url}/shard-{row // EACH:06d}.tar, sample {row:09d}, column 'image'"
        sizes = "an image of 8x8 pixels stands where one of 16x16 must"
        assert f"skipped a corrupt sample: {name}: {sizes}\n" in said


def test_two_readers_of_one_damaged_copy_fetch_it_once(server, cache):
    first, second = opened(server, cache), opened(server, cache)
    place = first.locate(7)
    assert second.read(7) == FILES[7]
    flip(place.path, place.offset + 9)
    files = [CachedFiles(one.cache) for one in (first, second)]
    copies = [one.copy(1) for one in files]
    assert [one.renew(1, copy) for one, copy in zip(files, copies, strict=True)] == [True, True]
    for expected in (True, False):  # once more it is compared, and found to be what the store has
        assert [one.renew(1, one.copy(1)) for one in files] == [expected, expected]
    assert server.fetched()["shard-000001.tar"] == 2


def test_files_that_vanish_between_two_reads_are_fetched_again(server, cache):
    shards = opened(server, cache)
    for row in range(COUNT):
        assert shards.read(row) == FILES[row]
        if row % 3 == 0:
            for path in shards.cache.folder.glob("shard-*"):
                path.unlink()
        if row % 10 == 9:
            shutil.rmtree(cache)
