"""`hires-gan shards check` and its repair on sets of pairs: what is bad in one half costs the whole pair."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import webdataset
from damaged_sets import PER_SHARD, check, edit, edit_shard, files, flip_sample, mend, png, shown
from PIL import Image

from hires_gan.data.manifest import read_manifest
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.shards import ShardSet


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Ten pairs of 16x16, `a` as JPEG and `b` as PNG, with one level and labels, in shards of four."""
    for number in range(10):
        array = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        for name, kind in (("a", "jpeg"), ("b", "png")):
            path = tmp_path / f"{name}/{'xy'[number // 5]}/{number}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    sources = {name: str(tmp_path / name) for name in "ab"}
    wanted = PrepareOptions(resolution=16, levels=(8,), labels="folders", shard_images=PER_SHARD, processes=1)
    prepare(sources, tmp_path / "pairs", wanted)
    return tmp_path / "pairs"


PAIR = ("a", "b", "a.8", "b.8")


def samples_of(folder: Path) -> dict[str, tuple[bytes | int, ...]]:
    shards = ShardSet(folder)
    rows = range(len(shards))
    return {shards.key_of(row): (*(shards.read(row, c) for c in PAIR), shards.label(row)) for row in rows}


@pytest.mark.parametrize("column", PAIR)
def test_a_bad_half_drops_the_pair(pairs, column):
    before = samples_of(pairs)
    assert check(pairs).ok
    key = flip_sample(pairs, 5, column)
    report = check(pairs)
    assert report.counts == {"crc32": 1, "changed": 1}
    assert f"shard-000001.tar, sample {key}, column '{column}': " in "\n".join(report.lines())
    assert mend(pairs).after.columns == PAIR
    assert check(pairs).ok
    assert samples_of(pairs) == {other: sample for other, sample in before.items() if other != key}
    urls = [str(pairs / shard.name) for shard in read_manifest(pairs).shards]
    assert [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)] == list(samples_of(pairs))


def members_without(path: Path, *gone: str, extra: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Write a tar anew without some of its files, and with others."""
    with tarfile.open(path) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive if m.name not in gone}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted((files | extra).items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    edit_shard(path.parent, 1, bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_pair_without_one_half_and_files_of_no_column(pairs):
    before = samples_of(pairs)
    more = {"000000006.png": png(16), "000000006.b.16.png": png(16)}
    members_without(pairs / "shard-000001.tar", "000000005.b.png", extra=more)
    told = shown(pairs)
    assert "shard-000001.tar, sample 000000005, column 'b': the tar has no such file of this sample" in told
    for name in more:
        assert f"sample 000000006: '{name}' is of no column that the manifest names" in told
    mend(pairs)
    assert check(pairs).ok
    assert samples_of(pairs) == {key: sample for key, sample in before.items() if key != "000000005"}


def test_halves_of_other_sides_are_named(pairs):
    members_without(pairs / "shard-000001.tar", "000000005.b.png", extra={"000000005.b.png": png(32)})
    assert "shard-000001.tar, sample 000000005, column 'b': 32x32 pixels, 16x16 by the manifest" in shown(pairs)


def test_an_index_of_pairs_is_made_anew(pairs):
    before = files(pairs)
    index = pairs / "shard-000001.index"
    index.write_bytes(index.read_bytes()[16:32] + index.read_bytes()[:16] + index.read_bytes()[32:])
    report = check(pairs)
    assert [(p.key, p.column) for p in report.first["index"]] == [("000000004", "a"), ("000000004", "b")]
    result = mend(pairs)
    assert result.before.digest() == result.after.digest()
    assert files(pairs) == before


def test_pairs_and_their_digest_are_told_apart_by_their_columns(pairs):
    digest = read_manifest(pairs).digest()
    edit(pairs, columns=["b", "a", "b.8", "a.8"])
    assert read_manifest(pairs).digest() != digest
    assert set(check(pairs).counts) == {"index"}
