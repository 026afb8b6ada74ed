from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hires_gan.data.archives import Reference, read_bytes
from hires_gan.data.manifest import Manifest
from hires_gan.data.pairs import Inputs
from hires_gan.data.rejection import Rejected
from hires_gan.data.sources import Listing, list_sources
from hires_gan.data.writer import Encoded, ShardWriter, write_manifest
from hires_gan.errors import Failure, UsageError


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"{folder}/{number}.png": png(10 * place + number) for place, folder in enumerate("ab") for number in range(3)}


def make_folder(path: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in reversed(files.items()):
            archive.writestr(name, data)
    return str(path)


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for name, data in reversed(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def listing(tmp_path: Path, *sources: str, labels: str = "none") -> Listing:
    return list_sources(Inputs.of(sources), labels, tmp_path / "scratch")


def references(listed: Listing) -> list[Reference]:
    """The single images."""
    return [reference for (reference,) in listed.items]


def contents(listed: Listing) -> dict[str, bytes]:
    return {reference.name: read_bytes(reference) for reference in references(listed)}


# --- kinds of sources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "stored zip", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_kind_gives_the_same_images_in_the_same_order(tmp_path, kind):
    if kind == "folder":
        source = make_folder(tmp_path / "images", FILES)
    elif kind.endswith("zip"):
        source = make_zip(tmp_path / "i.zip", FILES, zipfile.ZIP_DEFLATED if kind == "zip" else zipfile.ZIP_STORED)
    else:
        source = make_tar(tmp_path / f"i.{kind}", FILES, "w:" + kind[4:])
    listed = listing(tmp_path, source)
    assert list(contents(listed).items()) == sorted(FILES.items())
    assert references(listed)[0].shown == f"{source}/a/0.png"
    assert listed.fingerprint() == listing(tmp_path, make_folder(tmp_path / "again", FILES)).fingerprint()


def test_fingerprint_sees_names_sizes_and_labels(tmp_path):
    folder = make_folder(tmp_path / "i", FILES)
    before = listing(tmp_path, folder).fingerprint()
    assert listing(tmp_path, folder, labels="folders").fingerprint() != before
    (tmp_path / "i/a/0.png").write_bytes(FILES["a/0.png"] + b" ")
    assert listing(tmp_path, folder).fingerprint() != before


def test_compressed_tar_is_unpacked_once(tmp_path):
    source = make_tar(tmp_path / "i.tgz", FILES, "w:gz")
    listing(tmp_path, source)
    (copy,) = (tmp_path / "scratch").iterdir()
    before = copy.stat().st_mtime_ns
    assert len(listing(tmp_path, source).items) == 6
    assert copy.stat().st_mtime_ns == before


def webdataset(folder: Path) -> dict[str, bytes]:
    """Two tars with a label and a smaller copy beside each image."""
    folder.mkdir()
    images = {}
    for shard in range(2):
        files = {}
        for number in range(3):
            key = f"{shard}{number}"
            images[f"{key}.png"] = files[f"{key}.png"] = png(10 * shard + number)
            files |= {f"{key}.64.png": png(99), f"{key}.cls": str(5 * shard).encode(), f"{key}.json": b"{}"}
        make_tar(folder / f"s-{shard:03d}.tar", files)
    return images


@pytest.mark.parametrize("form", ["folder", "braces", "single tars"])
def test_webdatasets(tmp_path, form):
    images = webdataset(tmp_path / "w")
    tars = [str(tmp_path / f"w/s-00{number}.tar") for number in range(2)]
    sources = {"folder": [str(tmp_path / "w")], "braces": [str(tmp_path / "w/s-{000..001}.tar")], "single tars": tars}
    listed = listing(tmp_path, *sources[form], labels="own")
    assert list(contents(listed).items()) == list(images.items())
    assert listed.labels == [0, 0, 0, 5, 5, 5]
    assert listed.label_names == ("0", "1", "2", "3", "4", "5")
    assert listed.passed_over == {"other columns": 6, ".json": 6}


def test_brace_pattern_with_a_missing_tar(tmp_path):
    webdataset(tmp_path / "w")
    with pytest.raises(UsageError, match=r"there is no .*s-002\.tar, which .*\{000\.\.002\}"):
        listing(tmp_path, str(tmp_path / "w/s-{000..002}.tar"))


def test_own_shards_are_a_source_by_their_full_images(tmp_path):
    with ShardWriter(tmp_path, 0, ("image", "image.8"), True, 0) as writer:
        for number in range(3):
            files = {"image": Encoded("png", png(number)), "image.8": Encoded("png", png(50))}
            writer.write(files, number % 2)
        entry = writer.finish()
    names = ("ant", "bee")
    manifest = Manifest(
        resolution=16, count=3, columns=("image", "image.8"), filter="box", label_names=names, shards=(entry,)
    )
    write_manifest(tmp_path, manifest)
    listed = listing(tmp_path, str(tmp_path), labels="own")
    assert list(contents(listed).values()) == [png(0), png(1), png(2)]
    assert (listed.labels, listed.label_names) == ([0, 1, 0], names)


def test_hidden_and_other_files_are_passed_over_and_counted(tmp_path):
    more = {"notes.txt": b"", "a/README": b"", ".hidden.png": b"", "__MACOSX/._0.png": b"", "c.JPG": png(0)}
    listed = listing(tmp_path, make_zip(tmp_path / "i.zip", FILES | more))
    assert set(contents(listed)) == {*FILES, "c.JPG"}
    assert listed.passed_over == {".txt": 1, "without an ending": 1, "hidden": 2}


def test_links_are_followed_but_not_in_circles(tmp_path):
    source = make_folder(tmp_path / "i", FILES)
    other = make_folder(tmp_path / "other", {"x.png": png(3)})
    os.symlink(other, tmp_path / "i/linked")
    os.symlink(source, tmp_path / "i/a/circle")
    assert set(contents(listing(tmp_path, source))) == {*FILES, "linked/x.png"}


def test_of_two_members_with_one_name_the_last_counts(tmp_path):
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        for seed in range(2):
            member = tarfile.TarInfo("x.png")
            member.size = len(png(seed))
            archive.addfile(member, io.BytesIO(png(seed)))
    assert contents(listing(tmp_path, str(tmp_path / "i.tar"))) == {"x.png": png(1)}


# --- bad sources ------------------------------------------------------------------------------------------------------


def test_sources_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match=r"no folder or archive .*/nowhere"):
        listing(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"holds no images \(2 \.txt\): what counts is .*\.png"):
        listing(tmp_path, make_folder(tmp_path / "texts", {"a.txt": b"", "b.txt": b""}))
    with pytest.raises(UsageError, match="holds no images"):
        listing(tmp_path, make_zip(tmp_path / "empty.zip", {}))
    (tmp_path / "text").write_text("neither this nor that")
    with pytest.raises(UsageError, match="neither a folder nor a zip nor a tar"):
        listing(tmp_path, str(tmp_path / "text"))


def test_damaged_archives_are_one_sentence(tmp_path):
    whole = Path(make_tar(tmp_path / "i.tar", FILES)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    with pytest.raises(Failure, match=r"cut\.tar cannot be read as a tar .*fetch it again"):
        listing(tmp_path, str(tmp_path / "cut.tar"))
    second = whole.index(b"b/1.png")  # tarfile alone would take this for the end
    (tmp_path / "hole.tar").write_bytes(whole[:second] + b"\x07" * 512 + whole[second + 512 :])
    with pytest.raises(Failure, match=r"hole\.tar is damaged at byte \d+"):
        listing(tmp_path, str(tmp_path / "hole.tar"))
    packed = Path(make_tar(tmp_path / "i.tgz", FILES, "w:gz")).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(packed[:200])
    with pytest.raises(Failure, match=r"cut\.tgz cannot be decompressed .*fetch it again"):
        listing(tmp_path, str(tmp_path / "cut.tgz"))
    zipped = Path(make_zip(tmp_path / "i.zip", FILES)).read_bytes()
    (tmp_path / "bad.zip").write_bytes(zipped.replace(b"PK\x01\x02", b"PK\x09\x09"))
    with pytest.raises(Failure, match=r"bad\.zip cannot be read as a zip .*fetch it again"):
        listing(tmp_path, str(tmp_path / "bad.zip"))


def test_names_that_point_elsewhere_are_only_names(tmp_path):
    files = {"../../escape.png": png(1), "/tmp/absolute.png": png(2)}
    before = set(tmp_path.rglob("*"))
    assert contents(listing(tmp_path, make_zip(tmp_path / "i.zip", files))) == files
    assert contents(listing(tmp_path, make_tar(tmp_path / "i.tar", files))) == files
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "i.zip", tmp_path / "i.tar"}


def zip_with_claim(path: Path, size: int) -> str:
    """A zip whose directory claims another uncompressed size for its member."""
    data = bytearray(Path(make_zip(path, {"x.png": b"\0" * 100_000})).read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", size)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(("size", "reason"), [(4_000_000_000, "claims to have 4000000000 bytes"), (5_000, "5001")])
def test_zip_members_of_absurd_size_are_rejected(tmp_path, size, reason):
    ((reference,),) = listing(tmp_path, zip_with_claim(tmp_path / "i.zip", size)).items
    with pytest.raises(Rejected, match=reason):
        read_bytes(reference)


def test_damaged_members_are_rejected(tmp_path):
    path = Path(make_zip(tmp_path / "i.zip", {"x.png": png(0)}, zipfile.ZIP_STORED))
    data = path.read_bytes()
    path.write_bytes(data.replace(png(0), png(0)[:-1] + b"?"))
    ((reference,),) = listing(tmp_path, str(path)).items
    with pytest.raises(Rejected, match="checksum"):
        read_bytes(reference)
    path = Path(make_zip(tmp_path / "l.zip", {"x.png": png(0)}, zipfile.ZIP_LZMA))
    ((reference,),) = listing(tmp_path, str(path)).items
    with pytest.raises(Rejected, match="method 14 inside the zip"):
        read_bytes(reference)


def test_files_that_vanish_or_change_are_rejected(tmp_path):
    (tmp_path / "x.png").write_bytes(png(0))
    reference = Reference(str(tmp_path / "x.png"), "x.png", "x.png", len(png(0)))
    (tmp_path / "x.png").write_bytes(png(0)[:-5])
    with pytest.raises(Rejected, match="cut short or changed"):
        read_bytes(reference)
    (tmp_path / "x.png").unlink()
    with pytest.raises(Rejected, match="cannot be read: No such file"):
        read_bytes(reference)


def test_encrypted_zip_members_are_rejected(tmp_path):
    path = Path(make_zip(tmp_path / "i.zip", {"x.png": png(0)}))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    ((reference,),) = listing(tmp_path, str(path)).items
    with pytest.raises(Rejected, match="is encrypted inside the zip"):
        read_bytes(reference)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_no_labels(tmp_path):
    listed = listing(tmp_path, make_folder(tmp_path / "i", FILES))
    assert listed.labels is None
    assert listed.label_names is None


def test_labels_from_top_level_folders(tmp_path):
    files = {"10/deep/x.png": png(0), "9/x.png": png(1), "cat/x.png": png(2)}
    for source in (make_folder(tmp_path / "i", files), make_zip(tmp_path / "i.zip", files)):
        listed = listing(tmp_path, source, labels="folders")
        assert listed.label_names == ("9", "10", "cat")
        assert listed.labels == [1, 0, 2]


def test_labels_from_the_sources_themselves(tmp_path):
    dogs = make_folder(tmp_path / "dogs", {"x.png": png(0)})
    cats = make_zip(tmp_path / "cats.zip", {"x.png": png(1)})
    listed = listing(tmp_path, dogs, cats, labels="folders")
    assert (listed.labels, listed.label_names) == ([1, 0], ("cats", "dogs"))
    with pytest.raises(UsageError, match="found a single class, 'dogs'"):
        listing(tmp_path, dogs, labels="folders")


@pytest.mark.parametrize("make", [make_zip, make_folder])
def test_labels_of_nvlabs_archives(tmp_path, make):
    labels = [[name, 2 * place] for place, name in enumerate(FILES)]
    source = make(tmp_path / "i.zip", FILES | {"dataset.json": json.dumps({"labels": labels}).encode()})
    listed = listing(tmp_path, source, labels="own")
    assert listed.labels == [0, 2, 4, 6, 8, 10]
    assert listed.label_names == tuple(map(str, range(11)))
    assert listing(tmp_path, source).passed_over == Counter({".json": 1})


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b'{"labels": null}', UsageError, "has no labels of its own"),
        (b'{"labels": [["a/0.png", 1]]}', UsageError, r"no label for .*a/1\.png, .*a/2\.png, .*b/0\.png and 2 more"),
        (b'{"labels": [["a/0.png", 1.5]]}', Failure, r"a label is 1\.5, only whole numbers"),
        (b'{"labels": [["a/0.png", -1]]}', Failure, "a label is -1, only whole numbers"),
        (b'{"images": []}', Failure, "is not of the form"),
        (b"[", Failure, "is not of the form"),
    ],
)
def test_bad_labels_of_nvlabs_archives(tmp_path, content, error, message):
    source = make_zip(tmp_path / "i.zip", FILES | {"dataset.json": content})
    with pytest.raises(error, match=message):
        listing(tmp_path, source, labels="own")
    assert len(listing(tmp_path, source).items) == 6


def test_class_files_with_names(tmp_path):
    files = {"x.png": png(0), "x.cls": b"dog\n", "y.png": png(1), "y.cls": b"cat"}
    listed = listing(tmp_path, make_tar(tmp_path / "i.tar", files), labels="own")
    assert (listed.labels, listed.label_names) == ([1, 0], ("cat", "dog"))
    files.pop("y.cls")
    with pytest.raises(UsageError, match=r"no label for .*y\.png"):
        listing(tmp_path, make_tar(tmp_path / "j.tar", files), labels="own")


def test_labels_from_csv(tmp_path):
    source = make_folder(tmp_path / "i", FILES)
    rows = [f'"{name}",{"even" if int(name[2]) % 2 == 0 else "odd"}' for name in FILES]
    (tmp_path / "l.csv").write_text("\ufeffpath,label\r\n" + "\r\n".join(rows) + "\r\n\r\n", encoding="utf-8")
    listed = listing(tmp_path, source, labels=str(tmp_path / "l.csv"))
    assert (listed.labels, listed.label_names) == ([0, 1, 0, 0, 1, 0], ("even", "odd"))
    (tmp_path / "n.csv").write_text("path,label\n" + "".join(f"{name},{int(name[2]) * 5}\n" for name in FILES))
    assert listing(tmp_path, source, labels=str(tmp_path / "n.csv")).labels == [0, 5, 10, 0, 5, 10]


def test_csv_tells_sources_apart(tmp_path):
    one, two = (make_folder(tmp_path / name, {"x.png": png(0)}) for name in ("one", "two"))
    (tmp_path / "l.csv").write_text(f"path,label\n{one}/x.png,a\n{two}/x.png,b\n")
    assert listing(tmp_path, one, two, labels=str(tmp_path / "l.csv")).labels == [0, 1]
    (tmp_path / "l.csv").write_text("path,label\nx.png,a\n")
    with pytest.raises(UsageError, match="several sources hold"):
        listing(tmp_path, one, two, labels=str(tmp_path / "l.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na/0.png,1\n", r"no label for .*a/1\.png"),
        ("path,label\nz.png,1\n", r"names z\.png, which no source holds"),
        ("file,class\n", "must begin with the header path,label"),
        ("", "must begin with the header path,label"),
        ("path,label\na/0.png\n", "line 2: a path and a label are needed"),
        ("path,label\na/0.png,1\na/0.png,2\n", r"line 3: a/0\.png is 2 here, 1 above"),
        ("path,label\na/0.png,123456789\n", "no label for"),
    ],
)
def test_bad_csv_files(tmp_path, text, message):
    source = make_folder(tmp_path / "i", FILES)
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        listing(tmp_path, source, labels=str(tmp_path / "l.csv"))


def test_absurd_class_numbers_and_missing_csv(tmp_path):
    source = make_folder(tmp_path / "i", {"x.png": png(0)})
    (tmp_path / "l.csv").write_text("path,label\nx.png,123456789\n")
    with pytest.raises(UsageError, match="a label is 123456789: numbers must be classes from 0 on"):
        listing(tmp_path, source, labels=str(tmp_path / "l.csv"))
    with pytest.raises(UsageError, match=r"--labels folder cannot be read .*use none, folders, own"):
        listing(tmp_path, source, labels="folder")


def test_tar_command_archives_are_read(tmp_path):
    source = make_folder(tmp_path / "i", FILES)
    subprocess.run(["tar", "-C", source, "-cf", tmp_path / "gnu.tar", "."], check=True)
    listed = listing(tmp_path, str(tmp_path / "gnu.tar"))
    assert list(contents(listed).items()) == sorted(FILES.items())
