from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.data.manifest import INDEX_ROW, Manifest, ShardEntry, read_manifest
from hires_gan.data.shards import CorruptSample, ShardSet
from hires_gan.data.writer import Encoded, ShardWriter, write_manifest
from hires_gan.errors import Failure, UsageError

COLUMNS = ("image", "image.64", "image.4")


def body(row: int, column: str) -> bytes:
    return f"{column} of {row}".encode() * (row * 37 % 100 + 1)


def write_set(folder: Path, sizes: tuple[int, ...] = (3, 1, 4), labelled: bool = True, columns=COLUMNS) -> Manifest:
    entries, row = [], 0
    for number, size in enumerate(sizes):
        with ShardWriter(folder, number, columns, labelled, row) as writer:
            for _ in range(size):
                kind = "jpg" if row % 2 else "png"
                writer.write({column: Encoded(kind, body(row, column)) for column in columns}, row % 3)
                row += 1
            entries.append(writer.finish())
    manifest = Manifest(
        resolution=128,
        count=row,
        columns=columns,
        filter="lanczos",
        label_names=("a", "b", "c") if labelled else None,
        shards=tuple(entries),
    )
    write_manifest(folder, manifest)
    return manifest


def read_all(shards: ShardSet) -> bool:
    return all(shards.read(row, column) == body(row, column) for row in range(len(shards)) for column in COLUMNS)


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_reads_what_was_written(tmp_path):
    manifest = write_set(tmp_path)
    shards = ShardSet(tmp_path)
    assert shards.manifest == manifest
    assert (len(shards), shards.resolution) == (8, 128)
    assert read_all(shards)
    assert [shards.label(row) for row in range(8)] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert shards.label_counts.tolist() == [3, 3, 2]
    assert shards.label_counts.dtype == np.int64
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.booleans(), st.sets(st.sampled_from(COLUMNS[1:])))
@settings(max_examples=15, deadline=None)
def test_locations_are_those_of_tarfile(tmp_path_factory, sizes, labelled, levels):
    folder = tmp_path_factory.mktemp("set")
    columns = ("image", *sorted(levels))
    write_set(folder, tuple(sizes), labelled, columns)
    shards = ShardSet(folder)
    members = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            members |= {member.name: (path, member.offset_data, member.size) for member in archive}
    for row in range(len(shards)):
        for column in columns:
            ending = column.removeprefix("image").removeprefix(".") + "." * (column != "image")
            location = shards.locate(row, column)
            assert members.pop(f"{row:09d}.{ending}{'jpg' if row % 2 else 'png'}") == location[:3]
            assert location.crc32 == zlib.crc32(body(row, column))
        if labelled:
            members.pop(f"{row:09d}.cls")
    assert not members


def test_no_labels_and_no_such_column(tmp_path):
    write_set(tmp_path, labelled=False, columns=("image",))
    shards = ShardSet(tmp_path)
    assert shards.label_counts is None
    with pytest.raises(UsageError, match="has no labels"):
        shards.label(0)
    with pytest.raises(UsageError, match=r"no column 'image\.64', only image: .*--levels"):
        shards.read(0, "image.64")
    for row in (-1, 8):
        with pytest.raises(IndexError, match="of a set of 8"):
            shards.locate(row)


def test_webdataset_and_tar_read_the_shards(tmp_path):
    import webdataset

    write_set(tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{row:09d}" for row in range(8)]
    for row, sample in enumerate(samples):
        kind = "jpg" if row % 2 else "png"
        assert sample[kind] == body(row, "image")
        assert sample[f"64.{kind}"] == body(row, "image.64")
        assert sample["cls"] == str(row % 3).encode()
    listed = subprocess.run(["tar", "-tf", urls[1]], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == ["000000003.4.jpg", "000000003.64.jpg", "000000003.cls", "000000003.jpg"]
    file = subprocess.run(["tar", "-xOf", urls[1], "000000003.jpg"], capture_output=True, check=True).stdout
    assert file == body(3, "image")


def test_equal_samples_give_equal_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert write_set(tmp_path / "one").digest() == write_set(tmp_path / "two").digest()
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_digest_identifies_the_data(tmp_path):
    manifest = write_set(tmp_path)
    other = manifest.shards[0].model_copy(update={"sha256": "0" * 64})
    for change in ({"label_names": ("x", "b", "c")}, {"resolution": 64}, {"shards": (other, *manifest.shards[1:])}):
        assert manifest.model_copy(update=change).digest() != manifest.digest()
    assert manifest.model_copy(update={"filter": "box"}).digest() == manifest.digest()


def test_an_abandoned_shard_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 0, ("image",), False, 0) as writer:
        writer.write({"image": Encoded("png", b"x")}, None)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_keys_are_read_from_the_tar(tmp_path):
    manifest = write_set(tmp_path)
    entries = manifest.shards[1:]  # what is left when the first shard is lost: keys stay, rows move up
    write_manifest(tmp_path, manifest.model_copy(update={"shards": entries, "count": 5}))
    shards = ShardSet(tmp_path)
    assert [shards.key_of(row) for row in range(5)] == [f"{key:09d}" for key in range(3, 8)]
    path, offset, _, _ = shards.locate(2, "image.64")
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptSample, match=r"sample 000000005, column 'image\.64'") as e:
        ShardSet(tmp_path).read(2, "image.64")
    assert (e.value.row, e.value.key) == (2, "000000005")
    with pytest.raises(IndexError, match="row 5 of a set of 5"):
        shards.key_of(5)


@pytest.mark.parametrize("offset", [0, 511, 513, 10**6, 2**63, 2**64 - 1])
def test_a_key_that_cannot_be_read_is_the_row(tmp_path, offset):
    write_set(tmp_path)
    index = np.memmap(tmp_path / "shard-000002.index", INDEX_ROW, "r+")
    index[3]["offset"] = offset  # the first column of the second sample
    index.flush()
    shards = ShardSet(tmp_path)
    assert shards.key_of(5) == "row 5"
    assert shards.key_of(6) == "000000006"


def test_the_start_of_a_file_tells_its_kind(tmp_path):
    write_set(tmp_path)
    shards = ShardSet(tmp_path)
    assert shards.read_start(3, "image.4", 5) == body(3, "image.4")[:5]
    assert shards.read_start(0, "image", 1000) == body(0, "image")


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_changed_byte_is_found_before_it_is_returned(tmp_path):
    write_set(tmp_path)
    path, offset, size, _ = ShardSet(tmp_path).locate(5, "image.64")
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)
    shards = ShardSet(tmp_path)
    with pytest.raises(
        CorruptSample, match=r"shard-000002\.tar, sample 000000005, column 'image\.64': its crc32 is"
    ) as e:
        shards.read(5, "image.64")
    place = ("shard-000002.tar", 5, "image.64", "000000005")
    assert (e.value.shard, e.value.row, e.value.column, e.value.key) == place
    copy = pickle.loads(pickle.dumps(e.value))
    assert (str(copy), copy.shard, copy.row, copy.column, copy.key) == (str(e.value), *place)
    assert shards.read(5) == body(5, "image")


def test_a_shard_cut_after_opening_and_a_wild_index(tmp_path):
    write_set(tmp_path)
    shards = ShardSet(tmp_path)
    path, offset, size, _ = shards.locate(7)
    os.truncate(path, offset + size - 1)
    with pytest.raises(CorruptSample, match=f"ends after {size - 1} of its {size} bytes"):
        shards.read(7)
    index = np.memmap(tmp_path / "shard-000000.index", INDEX_ROW, "r+")
    index[0]["size"] = 2**32 - 1
    index.flush()
    with pytest.raises(CorruptSample, match="behind the end of the shard"):
        shards.read(0)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.index", "shard-000001.labels"])
def test_missing_and_resized_files_are_found_on_opening(tmp_path, name):
    write_set(tmp_path)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 4)
    with pytest.raises(
        Failure, match=rf"{name} has \d+ bytes where its manifest says \d+: it was cut short or changed"
    ):
        ShardSet(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(Failure, match=rf"{name} belongs to the shard set but cannot be opened \(No such file"):
        ShardSet(tmp_path)


def test_labels_beyond_the_classes_are_found(tmp_path):
    write_set(tmp_path)
    (tmp_path / "shard-000000.labels").write_bytes(np.array([0, 9, 0], "<i4").tobytes())
    with pytest.raises(Failure, match=r"labels from 0 to 9, the manifest names 3 classes"):
        ShardSet(tmp_path).label(0)


def test_folders_that_are_no_shard_sets(tmp_path):
    with pytest.raises(UsageError, match="there is no shard folder"):
        ShardSet(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no finished shard set \(it has no manifest\.json\)"):
        ShardSet(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2, "news": 1}, "has version 2 of the shard format, this program reads up to 1: update"),
        ({"format": "something"}, "not the manifest of a shard set"),
        ({"count": 9}, "says that there are 9 samples, but its shards add up to 8"),
        ({"resolution": "wide"}, "resolution: Input should be a valid integer.*found 'wide'"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
    ],
)
def test_bad_manifests(tmp_path, changes, message):
    write_set(tmp_path)
    rewrite(tmp_path / "manifest.json", **changes)
    with pytest.raises(Failure, match=message):
        ShardSet(tmp_path)


@pytest.mark.parametrize("name", ["../shard-000000.tar", "/etc/x.tar", "a/b.tar", "..tar", ".hidden.tar", "x.zip"])
def test_shard_names_stay_in_the_folder(tmp_path, name):
    manifest = write_set(tmp_path)
    shards = [shard.model_dump() for shard in manifest.shards]
    shards[0]["name"] = name
    rewrite(tmp_path / "manifest.json", shards=shards)
    with pytest.raises(Failure, match=r"a plain file name that ends in \.tar is allowed"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_unreadable_manifests(tmp_path, content):
    write_set(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(Failure, match=r"manifest\.json (cannot be read|is not the manifest)"):
        read_manifest(tmp_path)


# --- processes, threads, sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_sets_work_in_other_processes(tmp_path, method):
    write_set(tmp_path)
    shards = ShardSet(tmp_path)
    assert read_all(shards)
    with ProcessPoolExecutor(2, get_context(method)) as pool:
        assert all(pool.map(read_all, [shards] * 4))
    assert len(pickle.dumps(shards)) < 2000


def test_open_files_are_bounded_and_threads_share_them(tmp_path, monkeypatch):
    write_set(tmp_path, sizes=(1,) * 60)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (40, hard))
    shards = ShardSet(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    results: list[bool] = []

    threads = [threading.Thread(target=lambda s: results.append(read_all(s)), args=(shards,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    assert len(os.listdir("/proc/self/fd")) - before <= 20
    del shards, threads
    assert len(os.listdir("/proc/self/fd")) <= before


def test_files_that_were_closed_are_opened_anew(tmp_path):
    """As after a stale handle: what lies under the name by now is read, the index too."""
    write_set(tmp_path)
    shards = ShardSet(tmp_path)
    assert read_all(shards)
    for path in [*tmp_path.iterdir()]:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data if path.suffix == ".json" else bytes(len(data)))
    assert read_all(shards)  # the files of before are open
    open_before = len(os.listdir("/proc/self/fd"))
    shards.close_files()
    assert len(os.listdir("/proc/self/fd")) < open_before
    with pytest.raises(CorruptSample, match="its index says that it has no bytes"):
        shards.read(0)


def test_a_million_samples_open_fast_and_small(tmp_path):
    """100 shards of 10,000 samples, two columns; the tars are sparse files. Opened and looked at as a run does it."""
    entries = []
    rows = np.zeros((10_000, 2), INDEX_ROW)
    rows["offset"] = np.arange(20_000).reshape(10_000, 2) * 1024 + 512
    rows["size"] = 100
    rows["crc32"] = zlib.crc32(bytes(100))
    for number in range(100):
        name = f"shard-{number:06d}"
        (tmp_path / f"{name}.index").write_bytes(rows.tobytes())
        (tmp_path / f"{name}.labels").write_bytes(np.zeros(10_000, "<i4").tobytes())
        with (tmp_path / f"{name}.tar").open("wb") as file:
            file.truncate(20_480_000 + 1024)
        entries.append(ShardEntry(name=f"{name}.tar", samples=10_000, bytes=20_481_024, sha256="0" * 64))
    manifest = Manifest(
        resolution=64,
        count=1_000_000,
        columns=("image", "image.4"),
        filter="box",
        label_names=("a",),
        shards=tuple(entries),
    )
    write_manifest(tmp_path, manifest)
    code = """
import sys, time, psutil
from hires_gan.data.domains import open_data
from hires_gan.data.mixed import refuse_mixed
from hires_gan.data.settings import DataSettings
memory = psutil.Process().memory_info
before, start = memory().rss, time.perf_counter()
data = open_data(DataSettings(shards=sys.argv[1]))
refuse_mixed(data, [4, 64], 0.001, False)
shards = data.sources[0].shards
opened = time.perf_counter() - start
start = time.perf_counter()
for k in range(10_000):
    row = k * 7919 % 1_000_000
    assert len(shards.read(row, "image.4")) == 100 and shards.label(row) == 0
each = (time.perf_counter() - start) / 10_000
print(opened, each, memory().rss - before)
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    opened, each, memory = map(float, result.stdout.split())
    assert opened < 2
    assert each < 1e-3
    assert memory < 100e6


def test_reading_is_safe_from_short_answers(tmp_path, monkeypatch):
    """A network file system may answer with fewer bytes than asked for."""
    write_set(tmp_path)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: whole(file, min(size, 7), offset))
    assert read_all(ShardSet(tmp_path))


def test_index_is_little_endian_rows_per_sample_and_column(tmp_path):
    write_set(tmp_path, sizes=(2,), columns=("image", "image.4"))
    raw = (tmp_path / "shard-000000.index").read_bytes()
    assert len(raw) == 2 * 2 * 16
    assert int.from_bytes(raw[:8], "little") == ShardSet(tmp_path).locate(0).offset
    assert int.from_bytes(raw[24:28], "little") == len(body(0, "image.4"))
    with io.BytesIO((tmp_path / "shard-000000.labels").read_bytes()) as labels:
        assert labels.read() == b"\0\0\0\0\1\0\0\0"
