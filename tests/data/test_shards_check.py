"""`hires-gan shards check`: real damage is found and named; a repair keeps what is good, whenever it is killed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset
from PIL import Image

from hires_gan.data import repair as repair_module
from hires_gan.data.check import KINDS, CheckReport, check_shards, in_processes
from hires_gan.data.manifest import INDEX_ROW, Manifest, read_manifest
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.repair import RepairReport, check_and_repair, repair_folder, repair_shards
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

BIN = Path(sys.executable).parent
COLUMNS = ("image", "image.8")
COUNT, PER_SHARD = 14, 4  # shards of 4, 4, 4 and 2


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A labelled set with one level: 16x16 PNG files in four shards."""
    source = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        path = source / "abc"[number // 5] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    out = tmp_path_factory.mktemp("sets") / "original"
    wanted = PrepareOptions(resolution=16, levels=(8,), labels="folders", shard_images=PER_SHARD, processes=1)
    prepare([str(source)], out, wanted)
    return out


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def flip_sample(folder: Path, row: int, column: str = "image") -> str:
    """Change a byte in the middle of a file; return the sample's key."""
    shards = ShardSet(folder)
    place = shards.locate(row, column)
    key = shards.key_of(row)
    flip(place.path, place.offset + place.size // 2)
    return key


def flip_header(folder: Path, row: int) -> None:
    place = ShardSet(folder).locate(row)
    flip(place.path, place.offset - 512 + 140)  # in the time of change: only the header's checksum knows


def edit(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_shard(folder: Path, number: int, **changes) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    shards[number] |= changes
    edit(folder, shards=shards)


def swap(one: Path, two: Path) -> None:
    other = one.with_suffix(".swap")
    one.rename(other)
    two.rename(one)
    other.rename(two)


def check(folder: Path) -> CheckReport:
    return check_shards(folder, workers=1)


def shown(folder: Path) -> str:
    return "\n".join(check(folder).lines())


def mend(folder: Path) -> RepairReport:
    with repair_folder(folder) as work:
        return repair_shards(work, check_shards(folder, 1, repairing=True), 1)


def contents(folder: Path) -> dict[str, tuple[bytes, bytes, int]]:
    """Every sample by its key."""
    shards = ShardSet(folder)
    return {
        shards.key_of(row): (shards.read(row), shards.read(row, "image.8"), shards.label(row))
        for row in range(len(shards))
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_repaired(folder: Path, original: Path, gone: set[str] = frozenset()) -> None:
    """The set is well, holds what it held but for `gone`, and everybody reads it; nothing else lies in the folder."""
    report = check(folder)
    assert report.ok, report.lines()
    wanted = {key: sample for key, sample in contents(original).items() if key not in gone}
    assert contents(folder) == wanted
    manifest = read_manifest(folder)
    names = {path.name for path in folder.iterdir()} - {"prepare.json"}
    stems = {shard.name.removesuffix(".tar") for shard in manifest.shards}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("tar", "index", "labels")} | {"manifest.json"}
    urls = [str(folder / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert {s["__key__"]: (s["png"], s["8.png"], int(s["cls"])) for s in samples} == wanted
    assert [sample["__key__"] for sample in samples] == list(wanted)
    for url in urls:
        listed = subprocess.run(["tar", "-tf", url], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        assert len(listed.stdout.split()) % 3 == 0


# --- nothing wrong ----------------------------------------------------------------------------------------------------


def test_a_good_set_is_well(folder):
    before = files(folder)
    report = check(folder)
    assert report.ok
    assert shown(folder).startswith(f"{folder}: all is well: 14 samples in 4 shards, ")
    assert [(s.verdict, s.good, s.first, s.last) for s in report.shards] == [
        ("whole", 4, 0, 3),
        ("whole", 4, 4, 7),
        ("whole", 4, 8, 11),
        ("whole", 2, 12, 13),
    ]
    told: list[str] = []
    assert check_and_repair(folder, 1, None, told.append)
    assert told[-1] == f"{folder}: nothing to repair"
    assert files(folder) == before


def test_unrelated_files_are_no_concern(folder):
    (folder / "README.md").write_text("mine")
    (folder / "more").mkdir()
    (folder / ".shard-000000.tar.partial").write_bytes(b"x")
    assert check(folder).ok


def test_processes_find_the_same(folder, tmp_path):
    for row in (1, 6, 13):
        flip_sample(folder, row)
    reports = []
    for workers in (1, 3):
        report = check_shards(folder, workers, tmp_path / f"{workers}.csv")
        reports.append((report.counts, report.first, report.shards))
    assert reports[0] == reports[1]
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "3.csv").read_bytes()


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


def remake(folder: Path, number: int, **changes: bytes) -> None:
    """Replace files in a shard, as somebody would who makes a set by other means: tar, sha256, index and labels agree.

    Args:
        folder: The shard folder.
        number: Of the shard.
        changes: Contents by the member's name, with `_` for `.`, and a letter before.
    """
    wanted = {name[1:].replace("_", "."): data for name, data in changes.items()}
    path = folder / f"shard-{number:06d}.tar"
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    names = [member.name for member, _ in members]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in [*names, *sorted(set(wanted) - set(names))]:
            data = wanted.get(name, dict(zip(names, [d for _, d in members], strict=True)).get(name))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = path.read_bytes()
    edit_shard(folder, number, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    rows, labels = [], []
    with tarfile.open(path) as archive:
        for name in sorted({member.name.partition(".")[0] for member in archive}):
            for ending in ("png", "8.png"):
                member = archive.getmember(f"{name}.{ending}")
                rows.append((member.offset_data, member.size, zlib.crc32(archive.extractfile(member).read())))
            text = archive.extractfile(f"{name}.cls").read()
            labels.append(int(text) if text.isdigit() else 0)
    path.with_suffix(".index").write_bytes(np.array(rows, INDEX_ROW).tobytes())
    path.with_suffix(".labels").write_bytes(np.array(labels, "<i4").tobytes())


def png(side: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


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


def test_opening_a_set_mentions_extra_tars_once(folder):
    shutil.copyfile(folder / "shard-000001.tar", folder / "copy.tar")
    code = "import sys; from hires_gan.data.shards import ShardSet; [ShardSet(sys.argv[1]) for _ in range(3)]"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stderr.count(f"warning: {folder} holds copy.tar beside the shards that its manifest names") == 1
    (folder / "copy.tar").unlink()
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stderr == ""


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["image", "image"]}, "names the column 'image' twice"),
        ({"columns": ["image", "image.x"]}, r"names the column 'image\.x': a name is allowed"),
        ({"columns": ["image", "image.0"]}, r"names the column 'image\.0'"),
    ],
)
def test_manifests_that_cannot_be(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(Failure, match=message):
        check(folder)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit(folder, columns=list(COLUMNS), shards=[shards[0], shards[0]])
    with pytest.raises(Failure, match=r"names the shard 'shard-000000\.tar' twice"):
        check(folder)


# --- interruption -----------------------------------------------------------------------------------------------------


def damage(folder: Path) -> set[str]:
    """Something of everything: a bad sample, a lost shard, a lost index, a manifest that is wrong."""
    gone = {flip_sample(folder, 1)} | {f"{row:09d}" for row in range(8, 12)}
    (folder / "shard-000001.index").unlink()
    (folder / "shard-000002.tar").unlink()
    return gone


def repair_until(folder: Path, step: int) -> bool:
    """Repair in a process that kills itself before its step-th change in the folder; return whether it got there."""
    child = os.fork()
    if child == 0:
        changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
        left = step

        def audit(event: str, arguments: tuple) -> None:
            nonlocal left
            is_write = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if (event in changes or is_write) and str(folder) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            check_and_repair(folder, 1, None, lambda line: None)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_set(folder, original, tmp_path):
    gone = damage(folder)
    rest = set(contents(original)) - gone
    old = read_manifest(folder)
    tars = {name for name in files(folder) if name.endswith(".tar")}
    step, seen = 0, set()
    while True:
        victim = Path(shutil.copytree(folder, tmp_path / f"victim-{step}"))
        if not repair_until(victim, step):
            break
        manifest = read_manifest(victim)
        seen.add(manifest == old)
        if manifest == old:
            there = files_there(victim)
            assert tars <= there  # nothing of the old set was touched
            assert all((victim / name).read_bytes() == (folder / name).read_bytes() for name in tars)
        else:
            assert set(contents(victim)) == rest
        # Another start ends well, even if it is killed as well
        if step % 3 == 0:
            repair_until(victim, step // 2)
        assert check_and_repair(victim, 1, None, lambda line: None)
        assert_repaired(victim, original, gone)
        shutil.rmtree(victim)
        step += 1
    assert seen == {True, False}
    assert step > 15
    assert_repaired(victim, original, gone)


def files_there(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_interrupted_repair_is_mentioned_and_its_files_are_not_strangers(folder, monkeypatch):
    damage(folder)
    monkeypatch.setattr(repair_module, "_remove", lambda *arguments: os._exit(9))
    child = os.fork()
    if child == 0:
        check_and_repair(folder, 1, None, lambda line: None)
        os._exit(0)
    os.waitpid(child, 0)
    report = check(folder)
    assert report.counts == {"interrupted": 1}
    assert "--repair finishes it or begins anew" in "\n".join(report.lines())


def test_a_good_copy_that_comes_after_an_interruption_is_not_lost(folder, original, tmp_path):
    """The user kills a repair and copies the shards again: nothing of the set may be dropped any more."""
    for step in range(60):
        victim = Path(shutil.copytree(folder, tmp_path / f"victim-{step}"))
        damage(victim)
        if not repair_until(victim, step):
            break
        was_done = not (victim / ".repair" / "plan.json").exists() and read_manifest(victim) != read_manifest(original)
        shutil.copytree(original, victim, dirs_exist_ok=True)
        check_and_repair(victim, 1, None, lambda line: None)
        if was_done:  # its files are as strange to the copied set as any other's
            assert contents(victim) == contents(original)
            assert set(check(victim).counts) == {"extra"}
        else:
            assert_repaired(victim, original)
    assert step > 15


def test_a_killed_command_and_its_workers(folder, original):
    """The real command with processes of its own is killed from outside; no worker outlives it."""
    gone = damage(folder)
    command = [BIN / "hires-gan", "shards", "check", folder, "--repair", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    children: list[psutil.Process] = []
    while process.poll() is None and not any((folder / ".repair").glob("*.tar")):
        children = psutil.Process(process.pid).children(recursive=True) or children
        time.sleep(0.002)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert children
    assert psutil.wait_procs(children, timeout=20)[1] == []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_repaired(folder, original, gone)


def test_one_repair_at_a_time(folder):
    flip_sample(folder, 1)
    with repair_folder(folder):
        code = (
            "import sys; from pathlib import Path; from hires_gan.data.repair import *\n"
            "with repair_folder(Path(sys.argv[1])): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        assert "is being repaired by another process: wait for it, or end it" in done.stderr
        assert check(folder).counts["interrupted"] == 1
    assert not (folder / ".repair").exists()


def test_a_failed_repair_changes_nothing(folder, monkeypatch):
    damage(folder)
    before = files(folder)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(repair_module, "_write_tar", full)
    with pytest.raises(Failure, match="cannot be repaired: somewhere: No space left on device; nothing was changed"):
        mend(folder)
    assert files(folder) == before


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


def test_reports_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(UsageError, match="there is no folder .*nowhere: make it first"):
        check_shards(folder, 1, tmp_path / "nowhere" / "report.csv")
    (tmp_path / "report.csv").mkdir()
    with pytest.raises(Failure, match=r"report\.csv cannot be written: Is a directory"):
        check_shards(folder, 1, tmp_path / "report.csv")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def die(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_said():
    with pytest.raises(Failure, match="a worker process was killed.*fewer --workers than 2"):
        list(in_processes(die, range(4), 2))
    assert list(in_processes(abs, [-1, -2, -3], 2)) == [1, 2, 3]


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "hires-gan", "shards", "check", *words], capture_output=True, text=True)


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


def test_every_kind_of_problem_has_words(folder):
    assert len(set(KINDS.values())) == len(KINDS)
    assert isinstance(check(folder).manifest, Manifest)


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
