"""`hires-gan shards check`: real damage is found and named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from damaged_sets import (
    COLUMNS,
    check,
    edit,
    edit_shard,
    files,
    flip_header,
    flip_sample,
    make_original,
    png,
    remake,
    shown,
)
from hypothesis import given
from hypothesis import strategies as st

from hires_gan.data import looks, scan
from hires_gan.data.check import KINDS, check_shard, check_shards
from hires_gan.data.looks import Look, Part
from hires_gan.data.manifest import Manifest, read_manifest
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.repair import check_and_repair
from hires_gan.data.scan import Layout, Problem
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make_original(tmp_path_factory)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


@pytest.fixture(scope="module")
def huge(original, tmp_path_factory) -> Path:
    """The same samples in a single shard."""
    out = tmp_path_factory.mktemp("sets") / "huge"
    wanted = PrepareOptions(resolution=16, levels=(8,), labels="own", shard_images=100, processes=1)
    prepare([str(original)], out, wanted)
    return out


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


def test_opening_a_set_mentions_extra_tars_once(folder):
    shutil.copyfile(folder / "shard-000001.tar", folder / "copy.tar")
    code = "import sys; from hires_gan.data.shards import ShardSet; [ShardSet(sys.argv[1]) for _ in range(3)]"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stderr.count(f"warning: {folder} holds copy.tar beside the shards that its manifest names") == 1
    (folder / "copy.tar").unlink()
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stderr == ""


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


def test_reports_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(UsageError, match="there is no folder .*nowhere: make it first"):
        check_shards(folder, 1, tmp_path / "nowhere" / "report.csv")
    (tmp_path / "report.csv").mkdir()
    with pytest.raises(Failure, match=r"report\.csv cannot be written: Is a directory"):
        check_shards(folder, 1, tmp_path / "report.csv")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_every_kind_of_problem_has_words(folder):
    assert len(set(KINDS.values())) == len(KINDS)
    assert isinstance(check(folder).manifest, Manifest)


# --- bad input, by the sentences --------------------------------------------------------------------------------------


def lose(folder: Path) -> None:
    for ending in ("tar", "index", "labels"):
        (folder / f"shard-000001.{ending}").unlink()


BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "mixed resolutions": (
        lambda folder: remake(folder, 1, _000000005_png=png(32), _000000006_8_png=png(4)),
        [
            "images of other sides than the manifest says: 2",
            "shard-000001.tar, sample 000000005, column 'image': 32x32 pixels, 16x16 by the manifest",
            "shard-000001.tar, sample 000000006, column 'image.8': 4x4 pixels, 8x8 by the manifest",
        ],
    ),
    "labels outside the range": (
        lambda folder: remake(folder, 1, _000000005_cls=b"3"),
        [
            "labels that are out of range or contradictory: 1",
            "shard-000001.tar, sample 000000005: the .cls file says '3'; 0 to 2 is allowed",
        ],
    ),
    "labels that the manifest does not name": (
        lambda folder: edit(folder, label_names=["a", "b"]),
        [
            "labels that are out of range or contradictory: 4",
            "shard-000002.tar, sample 000000010: the .cls file says '2'; 0 to 1 is allowed",
        ],
    ),
    "a missing shard": (
        lose,
        [
            "missing files: 3",
            "shard-000001.tar: it is not in the folder",
            "shard-000001.index: it is not in the folder",
            "shard-000001.labels: it is not in the folder",
        ],
    ),
    "an extra shard": (
        lambda folder: shutil.copyfile(folder / "shard-000001.tar", folder / "shard-000004.tar"),
        [
            "files that do not belong to the set: 1",
            "shard-000004.tar: the manifest does not name it; if it is not needed, move it away",
        ],
    ),
    "another sha256": (
        lambda folder: edit_shard(folder, 1, sha256="0" * 64),
        ["shards whose sha256 is not the manifest's: 1", f"; the manifest says {'0' * 64}"],
    ),
    "other bytes": (
        lambda folder: edit_shard(folder, 1, bytes=5),
        ["disagreements between the manifest and", "shard-000001.tar: the manifest says 5 bytes, it has 20480"],
    ),
    "other samples": (
        lambda folder: (edit_shard(folder, 1, samples=3), edit(folder, count=13)),
        ["shard-000001.tar: the manifest says 3 samples, the tar has 4"],
    ),
    "another count": (
        lambda folder: edit(folder, count=99),
        ["manifest.json: it says that there are 99 samples, but its shards add up to 14"],
    ),
    "another column": (
        lambda folder: edit(folder, columns=["image", "image.4"]),
        [
            "samples with missing or superfluous files: 28",
            "shard-000000.tar, sample 000000000: '000000000.8.png' is of no column that the manifest names",
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sets_are_named(folder, name):
    spoil, sentences = BAD[name]
    spoil(folder)
    told = shown(folder)
    assert "problems: " in told
    for sentence in sentences:
        assert sentence in told


# What opening a set finds already: what the sizes and the manifest alone tell
OPENING = {
    "a missing shard": r"shard-000001\.tar belongs to the shard set but cannot be opened .*: copy it again, or prepare",
    "other bytes": r"shard-000001\.tar has 20480 bytes where its manifest says 5: it was cut short or changed",
    "other samples": r"shard-000001\.index has 128 bytes where its manifest says 96: it was cut short or changed",
    "another count": r"says that there are 99 samples, but its shards add up to 14: copy it again",
}


@pytest.mark.parametrize("name", OPENING)
def test_bad_sets_that_are_not_opened(folder, name):
    BAD[name][0](folder)
    with pytest.raises(Failure, match=OPENING[name]):
        ShardSet(folder)


def test_labels_outside_the_range_are_not_read(folder):
    edit(folder, label_names=["a", "b"])
    with pytest.raises(Failure, match=r"shard-000002\.labels holds labels from 1 to 2, the manifest names 2 classes"):
        ShardSet(folder).label(10)


# --- huge shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch) -> list[Part]:
    """Two samples make a part; what was looked at."""
    looked: list[Part] = []
    wanted = looks.parts_of

    def parts_of(shards: Sequence[tuple[str, str, int]], processes: int) -> list[Part]:
        looked.extend(wanted(shards, processes))
        return list(looked)

    monkeypatch.setattr(looks, "FEWEST", 2)
    monkeypatch.setattr(looks, "parts_of", parts_of)
    return looked


@pytest.mark.parametrize("damage", ["none", "bytes", "header", "index", "cut", "wild", "garbage"])
def test_many_processes_see_one_shard_as_one_does(huge, tmp_path, small_parts, damage):
    folder = Path(shutil.copytree(huge, tmp_path / "set"))
    index, tar = folder / "shard-000000.index", folder / "shard-000000.tar"
    if damage == "bytes":
        flip_sample(folder, 2, "image.8")
        flip_sample(folder, 13)
    elif damage == "header":
        flip_header(folder, 5)
    elif damage == "index":
        index.unlink()
    elif damage == "cut":
        os.truncate(tar, tar.stat().st_size // 2)
    elif damage == "wild":
        index.write_bytes(np.random.default_rng(0).bytes(index.stat().st_size))
    elif damage == "garbage":
        tar.write_bytes(np.random.default_rng(0).bytes(tar.stat().st_size))
    alone = check_shards(folder, 1, tmp_path / "1.csv")
    assert small_parts == []
    several = check_shards(folder, 2, tmp_path / "2.csv")
    assert [part.rows for part in small_parts] == (
        [] if damage == "index" else [*map(range, range(0, 14, 2), range(2, 15, 2))]
    )
    assert (several.counts, several.first, several.shards) == (alone.counts, alone.first, alone.shards)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    assert alone.ok == (damage == "none")


def test_what_was_looked_at_before_is_not_looked_at_again(huge, monkeypatch):
    layout = Layout.of(read_manifest(huge))
    (entry,) = read_manifest(huge).shards
    part = Part(entry.name, entry.name, range(14))
    seen = looks.look_at_part(huge, 2, part)
    assert len(seen) == 28
    with monkeypatch.context() as patch:
        patch.setattr(scan, "look", lambda data: pytest.fail("looked again"))
        assert check_shard(huge, layout, entry, seen).verdict == "whole"
    first = ShardSet(huge).locate(3)
    seen[first.offset, first.size] = Look(first.crc32, 16, 16, "bad")
    assert check_shard(huge, layout, entry, seen).problems == (
        Problem("decode", entry.name, "000000003", "image", "bad"),
    )


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=20), processes=st.integers(1, 64))
def test_parts_are_whole_and_of_the_large_shards_alone(sizes, processes):
    shards = [(f"{number}.tar", f"{number}", size) for number, size in enumerate(sizes)]
    parts = looks.parts_of(shards, processes)
    cut = {part.tar for part in parts}
    for tar, name, size in shards:
        rows = [row for part in parts if (part.tar, part.shard) == (tar, name) for row in part.rows]
        assert rows == (list(range(size)) if tar in cut else [])
    if processes > 1:
        fair = sum(sizes) / processes
        assert all(size <= max(looks.FEWEST, fair / 2 + 1) for tar, _, size in shards if tar not in cut)
        assert all(len(part.rows) <= max(looks.FEWEST, fair / 4 + 1) for part in parts)
    else:
        assert parts == []


def test_equal_shards_are_not_cut():
    shards = [(f"{number}.tar", f"{number}", 256) for number in range(100)]
    assert looks.parts_of(shards, 8) == []
