"""A small shard set for the tests of check and repair, ways to damage it, and what a good repair is."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from hires_gan.data.check import CheckReport, check_shards
from hires_gan.data.manifest import INDEX_ROW, read_manifest
from hires_gan.data.prepare import PrepareOptions, prepare
from hires_gan.data.repair import RepairReport, repair_folder, repair_shards
from hires_gan.data.shards import ShardSet

BIN = Path(sys.executable).parent
COLUMNS = ("image", "image.8")
COUNT, PER_SHARD = 14, 4  # shards of 4, 4, 4 and 2


def make_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def damage(folder: Path) -> set[str]:
    """Something of everything: a bad sample, a lost shard, a lost index, a manifest that is wrong."""
    gone = {flip_sample(folder, 1)} | {f"{row:09d}" for row in range(8, 12)}
    (folder / "shard-000001.index").unlink()
    (folder / "shard-000002.tar").unlink()
    return gone
