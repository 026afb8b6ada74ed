"""`hires-gan prepare` of pairs: which images belong together, that both show the same part, and who reads the set."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections import Counter

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_sources import (
    COUNT,
    ROWS,
    folder_of,
    maps,
    noise,
    options,
    pair,
    photos,
    rejected,
    saved,
    shards_of,
    tar_of,
    together,
    without,
    zip_of,
)
from PIL import Image, ImageOps

from hires_gan.data.manifest import column_of, ending_of, pictures_of
from hires_gan.data.pictures import PictureOptions, check_sizes, decode, halve, samples
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.rejection import Rejected
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

# --- the whole way ----------------------------------------------------------------------------------------------------


def by_hand(data: bytes) -> Image.Image:
    """The largest square in the middle, at 16x16."""
    picture = Image.open(io.BytesIO(data))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.LANCZOS)


def test_two_folders_become_one_set_of_pairs(tmp_path):
    report = pair(tmp_path, photos(), maps(), levels=(4, 8))
    shards = ShardSet(tmp_path / "out")
    assert shards.manifest.columns == ("a", "b", "a.8", "b.8", "a.4", "b.4")
    assert [shard.samples for shard in shards.manifest.shards] == [4, 4, 2]
    for row, name in enumerate(ROWS):
        assert shards.key_of(row) == f"{row:09d}"
        a, b = decode(shards.read(row, "a")), decode(shards.read(row, "b"))
        assert (a == np.asarray(by_hand(photos()[f"{name}.png"]))).all()
        quality = saved(np.asarray(by_hand(maps()[f"{name}.jpeg"])), "JPEG", quality=95, subsampling="4:4:4")
        assert shards.read(row, "b") == quality
        for column, array in (("a", a), ("b", b)):
            assert (decode(shards.read(row, f"{column}.8")) == halve(array)).all()
            assert (decode(shards.read(row, f"{column}.4")) == halve(halve(array))).all()
    assert (report.images, report.samples, report.rejected) == (COUNT, COUNT, 0)
    assert "10 pairs -> 10 samples in 3 shards" in report.lines()[0]


def test_webdataset_and_tar_read_the_set(tmp_path):
    pair(tmp_path, photos(), maps(), levels=(8,))
    shards = ShardSet(tmp_path / "out")
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    endings = {"a": "a.png", "b": "b.jpg", "a.8": "a.8.png", "b.8": "b.8.png"}
    assert [{column: sample[endings[column]] for column in endings} for sample in found] == [
        {column: shards.read(row, column) for column in endings} for row in range(COUNT)
    ]
    listed = subprocess.run(["tar", "-tf", tars[0]], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert listed.stdout.split()[:5] == [*(f"000000000.{e}" for e in sorted(endings.values())), "000000001.a.8.png"]
    for row in (0, 3):
        for column, ending in endings.items():
            with tarfile.open(tars[0]) as archive:
                assert shards.locate(row, column).offset == archive.getmember(f"{row:09d}.{ending}").offset_data


def test_more_than_two_pictures_keep_their_order(tmp_path):
    sources = {name: folder_of(tmp_path / name, photos()) for name in ("depth", "Photo", "edges_2")}
    prepare(sources, tmp_path / "out", options(levels=(8,)))
    shards = ShardSet(tmp_path / "out")
    assert shards.manifest.columns == ("depth", "Photo", "edges_2", "depth.8", "Photo.8", "edges_2.8")
    assert pictures_of(shards.manifest.columns) == ("depth", "Photo", "edges_2")
    assert shards.read(7, "depth") == shards.read(7, "Photo") == shards.read(7, "edges_2")


@given(
    name=st.sampled_from(["image", "a", "photo_2", "png"]),
    level=st.sampled_from(["", "4", "1024"]),
    extension=st.sampled_from(["jpg", "png"]),
)
def test_names_of_members_tell_their_columns(name, level, extension):
    column = f"{name}.{level}" if level else name
    assert column_of(ending_of(column, extension)) == column


def test_members_that_are_no_pictures_have_no_column():
    assert [column_of(ending) for ending in ("cls", "a.cls", "json", "a.txt", "")] == [None] * 5
    assert [column_of(ending) for ending in ("jpg", "64.png", "a.64.png")] == ["image", "image.64", "a.64"]


# --- kinds of sources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [folder_of, zip_of, tar_of])
@pytest.mark.parametrize("second", [folder_of, zip_of, tar_of])
def test_the_kinds_of_the_two_sources_change_nothing(tmp_path, first, second):
    pair(tmp_path, photos(), maps())
    sources = {"a": first(tmp_path / "first", photos()), "b": second(tmp_path / "second", maps())}
    prepare(sources, tmp_path / "again", options())
    assert shards_of(tmp_path / "again") == shards_of(tmp_path / "out")


def test_shard_sets_are_paired_by_their_keys(tmp_path):
    """Two sets of the same images, in shards of other sizes."""
    for name, files, each in (("a", photos(), 3), ("b", maps(), 7)):
        prepare([folder_of(tmp_path / name, files)], tmp_path / f"set-{name}", options(shard_images=each, encode="png"))
    prepare({name: str(tmp_path / f"set-{name}") for name in "ab"}, tmp_path / "sets", options())
    pair(tmp_path, photos(), maps(), encode="png")
    assert shards_of(tmp_path / "sets") == shards_of(tmp_path / "out")


@pytest.mark.parametrize("make", [folder_of, zip_of, tar_of])
def test_pairs_that_lie_together(tmp_path, make):
    pair(tmp_path, photos(), maps(), levels=(8,))
    more = {"x/00.a.64.png": b"", "x/00.mask.png": b"", "x/00.png": b"", "x/00.txt": b""}
    source = make(tmp_path / "source", together({"a": photos(), "b": maps()}) | more)
    report = prepare([source], tmp_path / "together", options(columns=("a", "b"), levels=(8,)))
    assert shards_of(tmp_path / "together") == shards_of(tmp_path / "out")
    assert report.passed_over == {"other columns": 3, ".txt": 1}


def test_webdatasets_of_pairs_may_repeat_their_keys(tmp_path):
    """Each tar numbers its samples anew, and has labels; several sources follow each other."""
    (tmp_path / "w").mkdir()
    for shard in range(2):
        files = {}
        for number in range(3):
            seed = 10 * shard + number
            files |= {f"{number}.b.png": saved(255 - noise(seed)), f"{number}.a.png": saved(noise(seed))}
            files[f"{number}.cls"] = str(shard).encode()
        tar_of(tmp_path / f"w/s-{shard}", files)
    sources = [str(tmp_path / "w"), tar_of(tmp_path / "last", together({"b": maps(), "a": photos()}))]
    wanted = options(columns=("b", "a"), crop="tiles", shard_images=100)
    report = prepare([sources[0]], tmp_path / "one", wanted.model_copy(update={"labels": "own"}))
    assert report.passed_over == {}
    shards = ShardSet(tmp_path / "one")
    assert [shards.label(row) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    for row, seed in enumerate((0, 1, 2, 10, 11, 12)):
        assert (decode(shards.read(row, "a")) == noise(seed)[:16, :16]).all()
        assert (decode(shards.read(row, "b")) == 255 - noise(seed)[:16, :16]).all()
    prepare(sources, tmp_path / "both", wanted)
    both = ShardSet(tmp_path / "both")
    assert len(both) == 6 + COUNT
    assert (decode(both.read(6, "a")) == decode(photos()["x/00.png"])[:16, :16]).all()


def test_a_set_of_pairs_is_a_source(tmp_path):
    pair(tmp_path, photos(), maps(), levels=(8,), labels="folders")
    prepare([str(tmp_path / "out")], tmp_path / "again", options(columns=("a", "b"), levels=(8,), labels="own"))
    assert shards_of(tmp_path / "again") == shards_of(tmp_path / "out")
    prepare([str(tmp_path / "out")], tmp_path / "turned", options(columns=("b", "a")))
    assert ShardSet(tmp_path / "turned").manifest.columns == ("b", "a")
    with pytest.raises(UsageError, match=r"out hold a and b, not image: use --columns a,b"):
        prepare([str(tmp_path / "out")], tmp_path / "plain", options())
    with pytest.raises(UsageError, match=r"out hold a and b, not a and c: use --columns a,b"):
        prepare([str(tmp_path / "out")], tmp_path / "plain", options(columns=("a", "c")))
    prepare([str(tmp_path / "a")], tmp_path / "plain", options())
    with pytest.raises(UsageError, match="plain hold image, not a and b: leave --columns out"):
        prepare([str(tmp_path / "plain")], tmp_path / "none", options(columns=("a", "b")))


# --- incomplete pairs -------------------------------------------------------------------------------------------------


def test_incomplete_pairs_are_refused_and_named(tmp_path):
    with pytest.raises(UsageError) as refused:
        pair(tmp_path, without(photos(), "x/02"), without(maps(), "y/01", "y/03", "y/05"))
    a = tmp_path / "a"
    assert str(refused.value) == (
        f"4 of 10 pairs are incomplete: {a}/y/01.png (no b), {a}/y/03.png (no b), {a}/y/05.png (no b) and 1 more: "
        "pictures are matched by their paths inside the sources without the endings; add what is missing, or leave "
        "these out with --max-rejected 0.4"
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=rf"1 of 10 pairs are incomplete: {tmp_path}/c\.zip/x/00\.a\.png \(no b\): .*"):
        source = zip_of(tmp_path / "c", together({"a": photos(), "b": without(maps(), "x/00")}))
        prepare([source], tmp_path / "out", options(columns=("a", "b")))


def test_incomplete_pairs_are_left_out_where_that_was_allowed(tmp_path):
    report = pair(tmp_path, without(photos(), "x/02"), without(maps(), "y/01"), max_rejected=0.2, labels="folders")
    assert rejected(tmp_path / "out") == [
        ("a/y/01.png", "the pair is incomplete: it has no b"),
        ("b/x/02.jpeg", "the pair is incomplete: it has no a"),
    ]
    assert (report.images, report.samples, report.rejected) == (10, 8, 2)
    shards = ShardSet(tmp_path / "out")
    names = [name for name in ROWS if name not in ("x/02", "y/01")]
    for row, name in enumerate(names):
        assert (decode(shards.read(row, "a")) == np.asarray(by_hand(photos()[f"{name}.png"]))).all()
        assert shards.label(row) == "xy".index(name[0])
    # Keys are the places among all pairs, the incomplete ones too
    assert [shards.key_of(row) for row in (3, 4, 7)] == ["000000003", "000000005", "000000008"]


def test_pairs_of_which_none_is_complete(tmp_path):
    other = {f"b_{name.replace('/', '_')}": data for name, data in maps().items()}
    with pytest.raises(UsageError, match=r"20 of 20 pairs are incomplete: .*; give their files the same names"):
        pair(tmp_path, photos(), other, max_rejected=1.0)


def test_partners_have_to_be_clear(tmp_path):
    more = {"x/00.jpg": b"", "x/02.webp": b""}
    with pytest.raises(
        UsageError,
        match=r"--pair a=.*: x/00\.jpg and x/00\.png, x/02\.png and x/02\.webp have one path without their endings",
    ):
        pair(tmp_path, photos() | more, maps())
    source = tar_of(tmp_path / "c", {"1.a.png": b"", "1.a.jpg": b"", "1.b.png": b""})
    with pytest.raises(UsageError, match=r"c\.tar: 1\.a\.jpg and 1\.a\.png have one path"):
        prepare([source], tmp_path / "out", options(columns=("a", "b")))


def test_sources_without_such_pictures(tmp_path):
    source = folder_of(tmp_path / "a", photos())
    with pytest.raises(UsageError, match=r"a holds no images of --columns a,b \(10 other columns\): .* KEY\.a\.jpg"):
        prepare([source], tmp_path / "out", options(columns=("a", "b")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no images: what counts is"):
        prepare({"a": source, "b": str(tmp_path / "empty")}, tmp_path / "out", options())


# --- rejected halves --------------------------------------------------------------------------------------------------


def test_a_rejected_half_rejects_the_pair(tmp_path):
    a, b = photos(), maps()
    a["x/02.png"], b["y/03.jpeg"], b["x/04.jpeg"] = a["x/02.png"][:100], b"", b"no image"
    a["y/05.png"] = saved(noise(5, 24, 30))
    report = pair(tmp_path, a, b, max_rejected=0.4)
    (damaged, *others) = rejected(tmp_path / "out")
    assert damaged[0] == "a/x/02.png"
    assert "damaged" in damaged[1]
    assert others == [
        ("b/x/04.jpeg", "the file is no image of a known kind"),
        ("b/y/03.jpeg", "the file is empty"),
        ("a/y/05.png", "'a' has 24x30 pixels and 'b' 24x20: the same proportions are needed"),
    ]
    assert (report.samples, report.rejected, len(ShardSet(tmp_path / "out"))) == (6, 4, 6)
    with pytest.raises(Failure, match="4 of 10 pairs were rejected, more than the share of 0.3 that"):
        prepare({name: str(tmp_path / name) for name in "ab"}, tmp_path / "less", options(max_rejected=0.3))


# --- geometry ---------------------------------------------------------------------------------------------------------


def made(a: np.ndarray, b: np.ndarray, **changes) -> list[tuple[np.ndarray, np.ndarray]]:
    files = {"a": saved(a), "b": saved(b)}
    found = samples(files, PictureOptions(**{"resolution": 16} | changes), Counter())
    return [(decode(sample["a"].data), decode(sample["b"].data)) for sample in found]


@settings(max_examples=30, deadline=None)
@given(width=st.integers(16, 70), height=st.integers(16, 70), crop=st.sampled_from(["center", "tiles"]))
def test_both_halves_show_the_same_part(width, height, crop):
    array = noise(width * height, width, height)
    pairs = made(array, array[:, :, ::-1], crop=crop)
    assert len(pairs) == (1 if crop == "center" else (width // 16) * (height // 16))
    for a, b in pairs:
        assert (a == b[:, :, ::-1]).all()


@settings(max_examples=20, deadline=None)
@given(factor=st.integers(1, 4), other=st.integers(1, 4), crop=st.sampled_from(["center", "none"]))
def test_the_same_picture_in_other_sizes(factor, other, crop):
    """Enlarged by repetition and reduced by averaging: both halves are the central square of one small picture."""
    small = noise(factor * other, 16 if crop == "none" else 22, 16)
    large = [small.repeat(times, 0).repeat(times, 1) for times in (factor, other)]
    ((a, b),) = made(*large, crop=crop, filter="box")
    left = (small.shape[1] - 16) // 2
    assert (a == small[:, left : left + 16]).all()
    assert (b == a).all()


def test_halves_are_compared_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    a, b = noise(0, 40, 20), noise(1, 20, 40)
    turned = {"a": saved(a, "PNG", exif=exif), "b": saved(b)}
    sample = next(samples(turned, PictureOptions(16, crop="tiles"), counts := Counter()))
    assert counts["oriented"] == 1
    assert (decode(sample["a"].data) == np.rot90(a, -1)[:16, :16]).all()
    assert (decode(sample["b"].data) == b[:16, :16]).all()
    with pytest.raises(Rejected, match="'a' has 20x40 pixels and 'b' 40x20: --crop tiles needs equal sizes"):
        list(samples(turned | {"b": saved(a)}, PictureOptions(16, crop="tiles"), Counter()))


@pytest.mark.parametrize(
    ("sizes", "crop", "fits"),
    [
        (((640, 480), (640, 480)), "tiles", True),
        (((640, 480), (320, 240)), "tiles", False),
        (((640, 480), (320, 240)), "center", True),
        (((1001, 667), (500, 333)), "center", True),
        (((1001, 667), (501, 334)), "center", True),
        (((500, 333), (1001, 667)), "center", True),
        (((640, 480), (480, 640)), "center", False),
        (((640, 480), (512, 512)), "center", False),
        (((640, 480), (640, 476)), "center", False),
        (((512, 512), (64, 64)), "none", True),
        (((512, 512), (512, 512), (512, 256)), "none", False),
    ],
)
def test_sizes_that_fit_each_other(sizes, crop, fits):
    named = dict(zip("abc", sizes, strict=False))
    if fits:
        check_sizes(named, crop)
    else:
        with pytest.raises(Rejected, match="the same proportions are needed|needs equal sizes"):
            check_sizes(named, crop)


def test_each_half_keeps_its_kind_and_its_bytes(tmp_path):
    a = {"1.jpg": saved(noise(1, 16, 16), "JPEG")}
    b = {"1.bmp": saved(noise(2, 32, 32), "BMP")}
    report = pair(tmp_path, a, b)
    shards = ShardSet(tmp_path / "out")
    assert shards.read(0, "a") == a["1.jpg"]
    assert shards.read(0, "b").startswith(b"\x89PNG")
    assert report.counts == {"kept": 1}


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_go_by_the_first_picture(tmp_path):
    pair(tmp_path, photos(), maps(), labels="folders")
    shards = ShardSet(tmp_path / "out")
    assert (shards.manifest.label_names, [shards.label(row) for row in range(10)]) == (("x", "y"), [0] * 5 + [1] * 5)
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(f"{name},{int(name[2:4]) % 3}\n" for name in photos()))
    sources = {name: str(tmp_path / name) for name in "ab"}
    prepare(sources, tmp_path / "csv", options(labels=str(tmp_path / "l.csv")))
    shards = ShardSet(tmp_path / "csv")
    assert [shards.label(row) for row in range(10)] == [int(name[2:]) % 3 for name in ROWS]
    with pytest.raises(UsageError, match=r"l\.csv names x/00\.png, .*, which no source holds"):
        prepare({"b": sources["b"], "a": sources["a"]}, tmp_path / "no", options(labels=str(tmp_path / "l.csv")))
    prepare([sources["a"]], tmp_path / "plain", options(labels="folders"))
    prepare([sources["b"]], tmp_path / "plain-b", options())
    sets = {"a": str(tmp_path / "plain"), "b": str(tmp_path / "plain-b")}
    prepare(sets, tmp_path / "own", options(labels="own"))
    assert ShardSet(tmp_path / "own").label_counts.tolist() == [5, 5]


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_pairs_of_real_photographs(tmp_path, shared_data):
    """Tiles of photographs and of their grey copies, which stay where they are in the picture."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    photographs = sorted((shared_data / "photos_highres").rglob("*.jpg"), key=lambda path: path.stat().st_size)[:2]
    for path in photographs:
        os.symlink(path, tmp_path / "a" / path.name)
        with Image.open(path) as picture:
            grey = ImageOps.exif_transpose(picture).convert("L")
        grey.save(tmp_path / f"b/{path.stem}.png")
    prepare(
        {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")},
        tmp_path / "out",
        PrepareOptions(resolution=1024, crop="tiles"),
    )
    shards = ShardSet(tmp_path / "out")
    assert len(shards) >= 2
    for row in range(0, len(shards), 3):
        colour, grey = (Image.fromarray(decode(shards.read(row, column))).convert("L") for column in "ab")
        difference = np.abs(np.asarray(colour, np.int16) - np.asarray(grey, np.int16))
        assert difference.mean() < 3
