"""Small shard sets of noise for the tests of `bench input`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hires_gan.data.manifest import Manifest
from hires_gan.data.pictures import encode
from hires_gan.data.writer import Encoded, ShardWriter, write_manifest


def pngs(count: int, side: int, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    return [encode(random.integers(0, 256, (side, side, 3), np.uint8), "png").data for _ in range(count)]


def jpegs(count: int, side: int, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    return [encode(random.integers(0, 256, (side, side, 3), np.uint8), "jpeg").data for _ in range(count)]


def write_shards(
    folder: Path,
    files: Sequence[bytes],
    side: int,
    per_shard: int = 10,
    column: str = "image",
    levels: dict[int, Sequence[bytes]] | None = None,
) -> Path:
    """A set of these files; `levels` holds smaller PNG copies of all of them by their side."""
    folder.mkdir(parents=True, exist_ok=True)
    levels = levels or {}
    columns = (column, *(f"{column}.{level}" for level in levels))
    entries = []
    for number, first in enumerate(range(0, len(files), per_shard)):
        with ShardWriter(folder, number, columns, False, first) as writer:
            for row in range(first, min(first + per_shard, len(files))):
                sample = {column: Encoded("png" if files[row].startswith(b"\x89PNG") else "jpg", files[row])}
                sample |= {f"{column}.{level}": Encoded("png", copies[row]) for level, copies in levels.items()}
                writer.write(sample, None)
            entries.append(writer.finish())
    write_manifest(
        folder,
        Manifest(resolution=side, count=len(files), columns=columns, filter="box", shards=tuple(entries)),
    )
    return folder
