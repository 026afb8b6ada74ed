"""`hires-gan shards check --repair`: what is good stays, what is bad goes, and everybody can read the result."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from damaged_sets import (
    BIN,
    COUNT,
    PER_SHARD,
    assert_repaired,
    check,
    contents,
    edit,
    edit_shard,
    files,
    flip,
    flip_header,
    flip_sample,
    make_original,
    mend,
    png,
    remake,
    shown,
    swap,
)
from PIL import Image

from hires_gan.data import looks
from hires_gan.data.check import check_shards
from hires_gan.data.manifest import read_manifest
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.repair import check_and_repair
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make_original(tmp_path_factory)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def test_an_unlabelled_set(tmp_path):
    (tmp_path / "i").mkdir()
    for number in range(5):
        Image.new("RGB", (16, 16), (number * 40, 0, 0)).save(tmp_path / "i" / f"{number}.jpg")
    prepare([str(tmp_path / "i")], tmp_path / "set", PrepareOptions(resolution=16, shard_images=2, processes=1))
    assert check(tmp_path / "set").ok
    flip_sample(tmp_path / "set", 2)
    assert mend(tmp_path / "set").after.count == 4
    assert check(tmp_path / "set").ok
    (tmp_path / "set" / "shard-000000.labels").write_bytes(b"1234")
    assert check(tmp_path / "set").counts == {"extra": 1}


# --- damage to the samples --------------------------------------------------------------------------------------------


def test_changed_bytes_are_named_and_dropped(folder, original, tmp_path):
    keys = {flip_sample(folder, 1), flip_sample(folder, 2, "image.8"), flip_sample(folder, 13)}
    before = read_manifest(folder)
    report = check_shards(folder, 1, tmp_path / "report.csv")
    assert report.counts == {"crc32": 3, "changed": 2}
    assert [(p.file, p.key, p.column) for p in report.first["crc32"]] == [
        ("shard-000000.tar", "000000001", "image"),
        ("shard-000000.tar", "000000002", "image.8"),
        ("shard-000003.tar", "000000013", "image"),
    ]
    lines = report.lines()
    assert "  images whose bytes were changed: 3" in lines
    assert any("shard-000000.tar, sample 000000001, column 'image': " in line for line in lines)
    assert lines[-1].endswith("report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert {row["key"] for row in rows if row["problem"] == "crc32"} == keys
    result = mend(folder)
    assert_repaired(folder, original, keys)
    assert [shard.name for shard in result.after.shards] == [
        "shard-000000-r1.tar",
        "shard-000001.tar",
        "shard-000002.tar",
        "shard-000003-r1.tar",
    ]
    text = "\n".join(result.lines())
    assert "repaired: 11 samples in 4 shards; 3 dropped" in text
    assert "shard-000000.tar is now shard-000000-r1.tar: 2 of 4 samples" in text
    old, new = before.digest()[:12], read_manifest(folder).digest()[:12]
    assert f"digest changed from {old} to {new}: runs trained on it will refuse to resume" in text


def test_a_second_repair_of_a_shard(folder, original):
    gone = {flip_sample(folder, 1)}
    mend(folder)
    gone.add(flip_sample(folder, 1))  # another one now
    mend(folder)
    assert gone == {"000000001", "000000002"}
    assert (folder / "shard-000000-r2.tar").exists()
    assert_repaired(folder, original, gone)


def test_a_damaged_header_costs_one_sample(folder, original):
    flip_header(folder, 5)
    report = check(folder)
    assert report.counts["tar"] == 1
    assert report.counts["member"] == 1
    assert report.first["member"][0].key == "000000005"
    mend(folder)
    assert_repaired(folder, original, {"000000005"})


def test_a_hole_in_a_shard(folder, original):
    place = ShardSet(folder).locate(5)
    data = bytearray(place.path.read_bytes())
    data[place.offset - 512 : place.offset + 512] = bytes(1024)
    place.path.write_bytes(data)
    mend(folder)
    gone = set(contents(original)) - set(contents(folder))
    assert "000000005" in gone
    assert len(gone) <= 2
    assert_repaired(folder, original, gone)


def test_a_shard_cut_short_keeps_what_it_still_holds(folder, original):
    place = ShardSet(folder).locate(6)
    os.truncate(place.path, place.offset + 10)
    report = check(folder)
    assert {"manifest", "changed", "tar", "member"} <= set(report.counts)
    with pytest.raises(Failure, match="was cut short or changed"):
        ShardSet(folder)
    mend(folder)
    assert_repaired(folder, original, {"000000006", "000000007"})


def test_damage_that_touches_no_sample_is_undone_to_the_byte(folder, original):
    """What lies behind the end of a file is no sample's: the shard is written anew, and equal to the original."""
    place = ShardSet(folder).locate(5)
    flip(place.path, place.offset + place.size)
    with (folder / "shard-000002.tar").open("ab") as file:
        file.write(b"more")
    assert set(check(folder).counts) == {"changed", "manifest"}
    result = mend(folder)
    assert result.after.digest() == read_manifest(original).digest()
    assert "the set's digest is what it was: runs trained on it resume" in "\n".join(result.lines())
    assert_repaired(folder, original)


def test_a_label_changed_in_the_tar(folder, original):
    with tarfile.open(folder / "shard-000001.tar") as archive:
        member = archive.getmember("000000006.cls")
    data = bytearray((folder / "shard-000001.tar").read_bytes())
    data[member.offset_data] = ord("0")
    (folder / "shard-000001.tar").write_bytes(data)
    assert "sample 000000006: the .cls file says 0, the labels file 1" in shown(folder)
    mend(folder)
    assert_repaired(folder, original, {"000000006"})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"_000000005_png": b"no image"}, "decode", "sample 000000005, column 'image': cannot decode an image of 8"),
        ({"_000000005_png": png(16, "I;16")}, "decode", "sample 000000005, column 'image': an image of .* 16 bits"),
        ({"_000000005_png": png(32)}, "size", "sample 000000005, column 'image': 32x32 pixels, 16x16 by the manifest"),
        ({"_000000005_8_png": png(4)}, "size", "sample 000000005, column 'image.8': 4x4 pixels, 8x8 by the manifest"),
        ({"_000000005_cls": b"3"}, "label", "sample 000000005: the .cls file says '3'; 0 to 2 is allowed"),
        ({"_000000005_cls": b"-1"}, "label", "sample 000000005: the .cls file says '-1'; 0 to 2 is allowed"),
        ({"_000000005_cls": b""}, "label", "sample 000000005: the .cls file says ''; 0 to 2 is allowed"),
    ],
)
def test_sets_made_wrong(folder, original, changes, kind, message):
    """Every hash is right, and still the samples cannot be used."""
    remake(folder, 1, **changes)
    report = check(folder)
    assert report.counts == {kind: 1}
    assert re.search(message, shown(folder))
    mend(folder)
    assert_repaired(folder, original, {"000000005"})


def test_files_of_no_column_are_left_out(folder, original):
    remake(folder, 1, _000000007_txt=b"a caption")
    assert "'000000007.txt' is of no column that the manifest names" in shown(folder)
    mend(folder)
    assert_repaired(folder, original)


def test_mixed_resolutions_leave_the_ones_that_fit(folder, original):
    edit(folder, resolution=32)
    assert check(folder).counts == {"size": 14}
    before = files(folder)
    with pytest.raises(Failure, match=r"no sample of .* would be left: nothing was changed; copy the set again"):
        mend(folder)
    assert files(folder) == before
    remake(folder, 3, _000000012_png=png(32))
    mend(folder)
    assert list(contents(folder)) == ["000000012"]


# --- damage to what lies beside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "odd", "swap", "empty"])
@pytest.mark.parametrize("ending", ["index", "labels"])
def test_indexes_and_labels_are_rebuilt_from_an_intact_tar(folder, original, damage, ending):
    path = folder / f"shard-000001.{ending}"
    if damage == "delete":
        path.unlink()
    elif damage == "swap":
        swap(path, folder / f"shard-000002.{ending}")
    else:
        data = path.read_bytes()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes({"truncate": data[:-8], "flip": flipped, "odd": data + b"x", "empty": b""}[damage])
    report = check(folder)
    expected = "missing" if damage == "delete" else {"index": "index", "labels": "label"}[ending]
    assert set(report.counts) == {expected}
    result = mend(folder)
    assert result.before.digest() == result.after.digest()
    assert "shard-000001.tar stays as it is: what lies beside it was made anew from it" in "\n".join(result.lines())
    assert files(folder) == files(original)


def test_without_index_a_changed_shard_cannot_be_vouched_for(folder, original):
    flip_sample(folder, 5)
    (folder / "shard-000001.index").unlink()
    result = mend(folder)
    assert any("shard-000001.tar has no sample that can stay: dropped, with 4 samples" in n for n in result.notes)
    assert_repaired(folder, original, {f"{row:09d}" for row in range(4, 8)})


# --- lost, swapped and extra files ------------------------------------------------------------------------------------


def test_a_lost_shard_is_dropped(folder, original):
    (folder / "shard-000001.tar").unlink()
    assert check(folder).counts == {"missing": 1}
    result = mend(folder)
    assert "shard-000001.tar is lost: dropped, with 4 samples" in result.notes
    assert_repaired(folder, original, {f"{row:09d}" for row in range(4, 8)})


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, bytes(20480)])
def test_a_shard_that_is_no_tar_is_dropped(folder, original, content):
    (folder / "shard-000001.tar").write_bytes(content)
    mend(folder)
    assert_repaired(folder, original, {f"{row:09d}" for row in range(4, 8)})


@pytest.mark.parametrize("endings", [("tar",), ("tar", "index", "labels")])
def test_swapped_shards_are_put_right(folder, original, endings):
    for ending in endings:
        swap(folder / f"shard-000000.{ending}", folder / f"shard-000002.{ending}")
    assert ", that of shard-000002.tar in the manifest: files were swapped; the manifest says" in shown(folder)
    result = mend(folder)
    assert result.after.digest() == read_manifest(original).digest()
    assert_repaired(folder, original)


@pytest.mark.parametrize(("one", "two"), [(0, 2), (2, 0)])
def test_a_shard_copied_over_another(folder, original, one, two):
    for ending in ("tar", "index", "labels"):
        shutil.copyfile(folder / f"shard-{one:06d}.{ending}", folder / f"shard-{two:06d}.{ending}")
    result = mend(folder)
    assert f"shard-{two:06d}.tar is a copy of another one: dropped, with 4 samples" in result.notes
    assert_repaired(folder, original, {f"{row:09d}" for row in range(two * 4, two * 4 + 4)})


def test_a_renamed_shard_is_found_again_and_extra_files_stay(folder, original):
    (folder / "shard-000001.tar").rename(folder / "backup.tar")
    (folder / "other.index").write_bytes(b"x")
    report = check(folder)
    assert report.counts == {"missing": 1, "extra": 2}
    told: list[str] = []
    assert not check_and_repair(folder, 1, None, told.append)
    assert "left alone, because they do not belong to the set: backup.tar, other.index; move them away" in told[-1]
    assert read_manifest(folder).digest() == read_manifest(original).digest()
    assert check(folder).counts == {"extra": 2}
    (folder / "backup.tar").unlink()
    (folder / "other.index").unlink()
    assert_repaired(folder, original)


# --- the manifest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"samples": 3}, {"manifest", "index"}),
        ({"samples": 5}, {"manifest", "index"}),
        ({"bytes": 5}, {"manifest"}),
        ({"sha256": "0" * 64}, {"changed"}),
    ],
)
def test_manifests_that_disagree_with_the_shards(folder, original, changes, kinds):
    edit_shard(folder, 1, **changes)
    if "samples" in changes:
        edit(folder, count=COUNT - PER_SHARD + changes["samples"])
    report = check(folder)
    assert set(report.counts) <= kinds
    assert not report.ok
    result = mend(folder)
    assert result.after.digest() == read_manifest(original).digest()
    assert_repaired(folder, original)


def test_a_manifest_whose_count_is_wrong(folder, original):
    edit(folder, count=99)
    with pytest.raises(Failure, match=r"says that there are 99 samples, but its shards add up to 14: .*shards check"):
        ShardSet(folder)
    assert check(folder).counts == {"manifest": 1}
    mend(folder)
    assert files(folder) == files(original)


def test_shards_out_of_order(folder, original):
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit(folder, shards=[shards[1], shards[0], *shards[2:]])
    assert "its first key, 0, is not above those of the shards before, up to 7" in shown(folder)
    mend(folder)
    assert files(folder) == files(original)


def test_two_sets_in_one_manifest_have_repeated_keys(folder, original):
    for ending in ("tar", "index", "labels"):
        shutil.copyfile(folder / f"shard-000001.{ending}", folder / f"shard-000009.{ending}")
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit(folder, shards=[*shards, shards[1] | {"name": "shard-000009.tar"}], count=COUNT + 4)
    assert check(folder).counts == {"key": 1}
    mend(folder)
    assert_repaired(folder, original)


# --- what cannot be read or written -----------------------------------------------------------------------------------


def test_what_cannot_be_read_is_not_taken_for_lost(folder):
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000001.tar").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "shard-000002.index").unlink()
    (folder / "fifo").rename(folder / "shard-000002.index")
    report = check(folder)
    assert report.counts == {"unreadable": 2}
    assert [p.file for p in report.first["unreadable"]] == ["shard-000001.tar", "shard-000002.index"]
    with pytest.raises(
        Failure, match=r"shard-000001\.tar cannot be read \(it is no regular file\): nothing was changed"
    ):
        mend(folder)
    assert not (folder / ".repair").exists()


def without_rights(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command that no read-only folder lets through, even where the tests are root's."""
    drop: list[str] = []
    if os.getuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("needs setpriv: a read-only folder does not stop root")
        drop = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"]
    return subprocess.run([*drop, *map(str, words)], capture_output=True, text=True)


def test_a_read_only_folder_can_be_checked_but_not_repaired(folder):
    flip_sample(folder, 1)
    before = files(folder)
    folder.chmod(0o555)
    try:
        done = without_rights(BIN / "hires-gan", "shards", "check", folder)
        assert (done.returncode, "images whose bytes were changed: 1" in done.stdout) == (1, True), done.stderr
        done = without_rights(BIN / "hires-gan", "shards", "check", folder, "--repair")
    finally:
        folder.chmod(0o755)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {folder} cannot be repaired: it cannot be written (Permission denied)" in done.stderr
    assert files(folder) == before


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "hires-gan", "shards", "check", *words], capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_and_its_exit_codes(folder, original, tmp_path):
    key = flip_sample(folder, 2)
    done = command(folder, "--workers", "2", "--report", tmp_path / "report.csv")
    assert done.returncode == 1
    assert f"shard-000000.tar, sample {key}, column 'image': " in done.stdout
    assert key in (tmp_path / "report.csv").read_text()
    done = command(folder, "--repair")
    assert (done.returncode, "1 dropped" in done.stdout) == (0, True), done.stderr
    assert_repaired(folder, original, {key})
    done = command(folder)
    assert (done.returncode, "all is well" in done.stdout) == (0, True), done.stderr
    assert "check: 13/13 samples" in done.stderr
    assert command(folder, "--workers", "0").returncode == 2


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_folders_that_are_no_sets_are_wrong_usage(tmp_path, name):
    (tmp_path / "empty").mkdir()
    for run in (lambda: check(tmp_path / name), lambda: check_and_repair(tmp_path / name, 1, None, print)):
        with pytest.raises(UsageError, match="there is no shard folder|is no finished shard set"):
            run()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_repaired_set_trains_and_can_be_repaired_again(folder, original):
    from hires_gan.data.loader import Loader, Request
    from hires_gan.data.settings import DataSettings

    gone = {flip_sample(folder, row) for row in (0, 5, 13)}
    mend(folder)
    assert len(gone) == 3
    shards = ShardSet(folder)
    with Loader(shards, DataSettings(shards=str(folder), workers=0), 0, 11 * 16 * 16 * 3) as loader:
        (batch,) = loader.batches(iter([Request(range(11), 16)]))
        assert batch.images.shape == (11, 3, 16, 16)
        assert sorted(batch.labels.tolist()) == sorted(shards.label(row) for row in range(11))


@pytest.mark.shared
def test_real_photographs(shared_data, tmp_path):
    """JPEG files that kept their bytes, damaged one by one."""
    wanted = PrepareOptions(resolution=64, levels=(16,), shard_images=8, max_rejected=0.5)
    prepare([str(shared_data)], tmp_path / "set", wanted)
    assert check_shards(tmp_path / "set").ok
    shards = ShardSet(tmp_path / "set")
    before = {shards.key_of(row): shards.read(row) for row in range(len(shards))}
    keys = {flip_sample(tmp_path / "set", row) for row in range(0, len(shards), 3)}
    mend(tmp_path / "set")
    assert check_shards(tmp_path / "set").ok
    shards = ShardSet(tmp_path / "set")
    assert {shards.key_of(row): shards.read(row) for row in range(len(shards))} == {
        key: data for key, data in before.items() if key not in keys
    }


# --- huge shards ------------------------------------------------------------------------------------------------------


def test_many_processes_mend_one_shard_as_one_does(folder, tmp_path, monkeypatch):
    prepare([str(folder)], tmp_path / "one", PrepareOptions(resolution=16, levels=(8,), labels="own", processes=1))
    for row in (2, 9):
        flip_sample(tmp_path / "one", row)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    monkeypatch.setattr(looks, "FEWEST", 2)
    for name, workers in (("one", 1), ("two", 2)):
        assert check_and_repair(tmp_path / name, workers, None, lambda line: None)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert len(ShardSet(tmp_path / "two")) == COUNT - 2
