"""A set of several sizes is named before a run; a run that goes on, and what is merely corrupt, is left alone."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from damaged_sets import flip
from input_definition import noise_files, write_columns, write_shards
from PIL import Image

from hires_gan.data import mixed
from hires_gan.data.domains import in_one_set, open_data
from hires_gan.data.manifest import Manifest, ShardEntry
from hires_gan.data.mixed import refuse_mixed, rows_to_look_at
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure

LARGE, SMALL = noise_files(12, 16), noise_files(12, 8)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, all is looked at that there is to look at."""
    monkeypatch.setattr(mixed, "SECONDS", 60.0)


def begun(folder: Path, *resolutions: int, max_corrupt: float = 0.001, goes_on: bool = False) -> ShardSet:
    """Look at a set as a run with stages of these resolutions does, by default of the full one alone."""
    shards = ShardSet(folder)
    refuse_mixed(in_one_set(shards), resolutions or (shards.resolution,), max_corrupt, goes_on)
    return shards


def refused(folder: Path, *resolutions: int, **how: float) -> str:
    with pytest.raises(Failure) as caught:
        begun(folder, *resolutions, **how)
    return str(caught.value)


def jpeg(width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("row", [4, 5, 7])  # the first, a middle and the last one of the second shard
def test_a_mixed_set_is_refused_and_two_samples_are_named(tmp_path, row):
    folder = write_shards(tmp_path / "set", [*LARGE[:row], SMALL[row], *LARGE[row + 1 :]], 16, per_shard=4)
    assert refused(folder) == (
        f"{folder} holds images of different sizes: sample {row:09d} in shard-000001.tar, column 'image', has 8x8 "
        "pixels, and sample 000000000 in shard-000000.tar, column 'image', has 16x16 pixels, where 16x16 must stand "
        "(1 of 9 samples looked at are wrong): "
        f"drop those that differ with `hires-gan shards check --repair {folder}`, prepare the images again at one "
        "--resolution, or raise data.max_corrupt to train without them"
    )


def test_a_set_of_one_size_is_begun_without_a_word(tmp_path, capfd):
    folder = write_shards(tmp_path / "set", LARGE, 16, per_shard=4)
    assert len(begun(folder)) == 12
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", [{"goes_on": True}, {"goes_on": True, "max_corrupt": 0.0}, {"max_corrupt": 2 / 9}])
def test_a_run_that_goes_on_or_allows_as_many_is_only_told(tmp_path, capfd, how):
    files = [SMALL[row] if row in (4, 7) else LARGE[row] for row in range(12)]  # both are looked at
    folder = write_shards(tmp_path / "set", files, 16, per_shard=4)
    begun(folder, **how)
    (said,) = capfd.readouterr().err.splitlines()
    assert f"{folder} holds images of different sizes: sample 000000004 in shard-000001.tar" in said
    assert "(2 of 9 samples looked at are wrong): they are skipped as corrupt, and data.max_corrupt, " in said
    assert "(2 of 9 samples looked at are wrong): drop those" in refused(folder, max_corrupt=1.9 / 9)


@pytest.mark.parametrize("resolutions", [(16,), (16, 32), (4,), (4, 8)])
def test_a_level_that_no_stage_reads_is_only_told(tmp_path, capfd, resolutions):
    """Stages of 4 and 8 read the level, and not the full images; those of 16 the other way round."""
    columns = {"image": LARGE, "image.8": SMALL}
    read = "image.8" if max(resolutions) <= 8 else "image"
    unread = next(name for name in columns if name != read)
    other = noise_files(1, 4)
    folder = write_columns(tmp_path / "unread", columns | {unread: [*columns[unread][:-1], *other]}, 16)
    begun(folder, *resolutions)
    (said,) = capfd.readouterr().err.splitlines()
    assert f"column '{unread}', has 4x4 pixels, and sample" in said
    assert said.endswith("; no stage of this run reads that column")
    folder = write_columns(tmp_path / "read", columns | {read: [*columns[read][:-1], *other]}, 16)
    assert f"column '{read}', has 4x4 pixels" in refused(folder, *resolutions)


def test_a_manifest_of_another_resolution_is_told_apart(tmp_path):
    said = refused(write_shards(tmp_path / "set", SMALL, 16, per_shard=4))
    assert said.startswith(f"{tmp_path}/set does not hold what its manifest says: sample 000000000 in shard-000000.tar")
    assert (
        "has 8x8 pixels, and sample 000000004 in shard-000001.tar, column 'image', has 8x8 pixels, where 16x16" in said
    )
    assert "prepare the images again at one --resolution" in said
    assert "--repair" not in said
    alone = refused(write_shards(tmp_path / "one", SMALL[:1], 16))
    assert "sample 000000000 in shard-000000.tar, column 'image', has 8x8 pixels, where 16x16 must stand" in alone


def test_what_is_not_square_has_another_size(tmp_path):
    said = refused(write_shards(tmp_path / "set", [jpeg(16, 16), jpeg(16, 24)], 16))
    assert "sample 000000001 in shard-000000.tar, column 'image', has 16x24 pixels, and sample 000000000" in said


@pytest.mark.parametrize(("column", "sides"), [("b", "16x16"), ("b.8", "8x8")])
def test_every_column_that_is_read_is_looked_at(tmp_path, column, sides):
    columns = {"a": LARGE, "b": LARGE, "a.8": SMALL, "b.8": SMALL}
    other = noise_files(1, 4)
    write_columns(tmp_path / "good", columns, 16)
    assert begun(tmp_path / "good", 8, 16).manifest.columns == ("a", "b", "a.8", "b.8")
    bad = columns | {column: [*columns[column][:-1], *other]}
    said = refused(write_columns(tmp_path / "bad", bad, 16), 8, 16)
    assert f"column '{column}', has 4x4 pixels, and sample 000000000" in said
    assert f"where {sides} must stand" in said


def test_the_header_may_lie_far_behind(tmp_path):
    far = {"icc_profile": bytes(60_000)}
    assert len(begun(write_shards(tmp_path / "good", [jpeg(16, 16, **far)] * 2, 16))) == 2
    assert "has 8x8 pixels" in refused(write_shards(tmp_path / "bad", [jpeg(16, 16), jpeg(8, 8, **far)], 16))


def test_a_damaged_header_is_a_corrupt_sample_and_no_other_size(tmp_path):
    folder = write_shards(tmp_path / "set", LARGE, 16)
    place = ShardSet(folder).locate(0)
    flip(place.path, place.offset + 18)  # in the width: 16 becomes 16400
    assert len(begun(folder)) == 12


def test_what_cannot_be_read_is_left_to_the_run(tmp_path):
    folder = write_shards(tmp_path / "set", [b"no image", *LARGE[1:]], 16, per_shard=4)
    index = folder / "shard-000001.index"
    index.write_bytes(b"\xff" * index.stat().st_size)
    assert len(begun(folder)) == 12


def test_the_domain_of_a_mixed_set_is_named(tmp_path):
    write_shards(tmp_path / "a", LARGE, 16)
    write_shards(tmp_path / "b", [*LARGE[:-1], SMALL[0]], 16)
    data = open_data(DataSettings(domains={"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}))
    with pytest.raises(Failure, match=rf"^data\.domains\.b: {tmp_path}/b holds images of different sizes"):
        refuse_mixed(data, [16], 0.001, False)


def manifest_of(*samples: int) -> Manifest:
    shards = tuple(
        ShardEntry(name=f"shard-{number:06d}.tar", samples=count, bytes=1, sha256="0" * 64)
        for number, count in enumerate(samples)
    )
    return Manifest(resolution=16, count=sum(samples), columns=("image",), filter="box", shards=shards)


def test_few_images_from_all_over_are_looked_at():
    assert rows_to_look_at(manifest_of(1)) == [0]
    assert rows_to_look_at(manifest_of(5, 1, 4)) == [0, 5, 6, 4, 9, 2, 7]
    rows = rows_to_look_at(manifest_of(*[10] * 1000))
    assert len(rows) == len(set(rows)) == 96
    assert {row // 10 for row in rows} >= {0, 999}
    gaps = np.diff(sorted({row // 10 for row in rows}))
    assert gaps.max() <= 33


def test_a_slow_disk_does_not_keep_a_run_waiting(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "set", [*LARGE[:-1], SMALL[0]], 16, per_shard=1)
    clock, read = iter(range(0, 1000, 1)), []
    monkeypatch.setattr(mixed, "SECONDS", 2.0)
    monkeypatch.setattr(mixed, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    start = ShardSet.read_start
    monkeypatch.setattr(ShardSet, "read_start", lambda self, row, *rest: read.append(row) or start(self, row, *rest))
    begun(folder)
    assert read == [0, 1, 2]  # a second each
