"""Pictures that belong together, in sources of every kind, for the tests of pairs."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.prepare import PrepareOptions, PrepareReport, prepare

COUNT, PER_SHARD = 10, 4
NAMES = [f"{'xy'[number % 2]}/{number:02d}" for number in range(COUNT)]
ROWS = sorted(NAMES)


def noise(seed: int, width: int = 24, height: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(array: np.ndarray, kind: str = "PNG", **extra: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **extra)
    return buffer.getvalue()


def photos() -> dict[str, bytes]:
    """Pictures `a`: PNG."""
    return {f"{name}.png": saved(noise(number)) for number, name in enumerate(NAMES)}


def maps() -> dict[str, bytes]:
    """Pictures `b`: their negatives, as JPEG."""
    return {f"{name}.jpeg": saved(255 - noise(number), "JPEG") for number, name in enumerate(NAMES)}


def folder_of(path: Path, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def zip_of(path: Path, files: Mapping[str, bytes]) -> str:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path.with_suffix(".zip"))


def tar_of(path: Path, files: Mapping[str, bytes]) -> str:
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path.with_suffix(".tar"))


def together(files: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """`{"a": {"1.png": ...}}` -> `{"1.a.png": ...}`."""
    return {
        f"{Path(path).with_suffix('')}.{name}{Path(path).suffix}": data
        for name, one in files.items()
        for path, data in one.items()
    }


def options(**changes) -> PrepareOptions:
    return PrepareOptions(**{"resolution": 16, "processes": 1, "shard_images": PER_SHARD} | changes)


def pair(tmp_path: Path, a: Mapping[str, bytes], b: Mapping[str, bytes], **changes) -> PrepareReport:
    sources = {"a": folder_of(tmp_path / "a", a), "b": folder_of(tmp_path / "b", b)}
    return prepare(sources, tmp_path / "out", options(**changes))


def shards_of(out: Path) -> dict[str, bytes]:
    """Everything in a folder but the record of the command, which names the sources' places."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "prepare.json"}


def rejected(out: Path) -> list[tuple[str, str]]:
    with (out / "rejected.csv").open(newline="") as file:
        return [(Path(path).relative_to(out.parent).as_posix(), reason) for path, reason in list(csv.reader(file))[1:]]


def without(files: dict[str, bytes], *stems: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if str(Path(name).with_suffix("")) not in stems}
