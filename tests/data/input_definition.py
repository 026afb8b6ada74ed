"""What the input promises, written a second time: slowly, literally, in plain integers, with Pillow and numpy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from hires_gan.data.manifest import Manifest
from hires_gan.data.pictures import encode
from hires_gan.data.writer import Encoded, ShardWriter, write_manifest

MIRROR = 1
"""The purpose of the number that decides whether an image is flipped."""


def splitmix(state: int) -> int:
    """Steele, Lea and Flood 2014: the finalizer of SplitMix64, after its increment."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z // 2**31)


def row_of(seed: int, count: int, sample: int, stream: int = 0) -> int:
    """The row that sample number `sample` of a run shows: a Feistel network of six rounds, walked until it fits."""
    epoch, place = sample // count, sample % count
    side = 16  # values of one half: a power of two, at least 16, whose square holds all rows
    while side * side < count:
        side *= 2
    epoch_key = splitmix(splitmix(splitmix(seed) ^ stream) ^ epoch)
    while True:
        left, right = place // side, place % side
        for number in (1, 2, 3, 4, 5, 6):
            left, right = right, left ^ (splitmix(splitmix(epoch_key ^ number) ^ right) % side)
        place = left * side + right
        if place < count:
            return place


def philox_word(seed: int, purpose: int, sample: int, number: int = 0) -> int:
    """A word of Philox4x32-10 under the key (seed, purpose), of those at the counters (sample, 0), (sample, 1), ..."""
    x0, x1, x2, x3 = sample % 2**32, sample // 2**32, number // 4, 0
    k0, k1 = seed, purpose
    for _ in range(10):
        one, two = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = two // 2**32 ^ x1 ^ k0, two % 2**32, one // 2**32 ^ x3 ^ k1, one % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return (x0, x1, x2, x3)[number % 4]


def halved(image: np.ndarray) -> np.ndarray:
    """The mean of each 2x2 block as an exact fraction, which Python rounds to nearest, ties to even."""
    height, width, channels = image.shape
    result = np.empty((height // 2, width // 2, channels), np.uint8)
    for y, x, c in np.ndindex(result.shape):
        block = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c]
        result[y, x, c] = round(Fraction(int(block.sum(dtype=np.int64)), 4))
    return result


def pixels(data: bytes, resolution: int, flip: bool) -> np.ndarray:
    """A file as uint8 `[r, r, 3]`, decoded by Pillow."""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    while len(image) > resolution:
        image = halved(image)
    return image[:, ::-1] if flip else image


class Definition:
    """The input of a run, sample by sample.

    Args:
        files: The encoded images, by row.
        labels: Their classes, by row.
        seed: The run's seed.
        mirror: Whether every other image is flipped.
        stream: Which of several sets it is, each in its own order and with its own flips.
    """

    def __init__(self, files: Sequence[bytes], labels: Sequence[int], seed: int, mirror: bool, stream: int = 0) -> None:
        self.files, self.labels, self.seed, self.mirror, self.stream = files, labels, seed, mirror, stream
        self._known: dict[tuple[int, int, bool], np.ndarray] = {}

    def row(self, sample: int) -> int:
        return row_of(self.seed, len(self.files), sample, self.stream)

    def image(self, sample: int, resolution: int) -> np.ndarray:
        """uint8 `[3, r, r]`."""
        flip = self.mirror and philox_word(self.seed, MIRROR, sample, self.stream) >= 2**31
        wanted = (self.row(sample), resolution, flip)
        if wanted not in self._known:
            self._known[wanted] = pixels(self.files[wanted[0]], resolution, flip).transpose(2, 0, 1)
        return self._known[wanted]

    def images(self, samples: range, resolution: int) -> np.ndarray:
        """uint8 `[n, 3, r, r]`."""
        batch = [self.image(sample, resolution) for sample in samples]
        return np.stack(batch) if batch else np.empty((0, 3, resolution, resolution), np.uint8)

    def classes(self, samples: range) -> list[int]:
        return [self.labels[self.row(sample)] for sample in samples]


def noise_files(count: int, side: int, seed: int = 0) -> list[bytes]:
    """PNG files of noise, every one different."""
    random = np.random.default_rng(seed)
    return [encode(random.integers(0, 256, (side, side, 3), np.uint8), "png").data for _ in range(count)]


def write_shards(
    folder: Path,
    files: Sequence[bytes],
    resolution: int,
    labels: Sequence[int] | None = None,
    per_shard: int = 10,
    levels: Sequence[dict[int, bytes]] | None = None,
) -> Path:
    """Make a shard set of encoded images; `levels` holds each one's smaller copies by their side."""
    columns = {"image": files}
    columns |= {
        f"image.{side}": [copies[side] for copies in levels or ()] for side in sorted(levels[0] if levels else ())
    }
    return write_columns(folder, columns, resolution, labels, per_shard)


def write_columns(
    folder: Path,
    columns: Mapping[str, Sequence[bytes]],
    resolution: int,
    labels: Sequence[int] | None = None,
    per_shard: int = 10,
) -> Path:
    """Make a shard set of any columns: a pair's `a` and `b`, or `a.8` for smaller copies; each holds a file per row."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, count = [], len(next(iter(columns.values())))
    for number, first in enumerate(range(0, count, per_shard)):
        with ShardWriter(folder, number, tuple(columns), labels is not None, first) as writer:
            for row in range(first, min(first + per_shard, count)):
                files = {name: files[row] for name, files in columns.items()}
                sample = {
                    name: Encoded("png" if file.startswith(b"\x89PNG") else "jpg", file) for name, file in files.items()
                }
                writer.write(sample, None if labels is None else labels[row])
            entries.append(writer.finish())
    names = None if labels is None else tuple(f"class {label}" for label in range(max(labels) + 1))
    write_manifest(
        folder,
        Manifest(
            resolution=resolution,
            count=count,
            columns=tuple(columns),
            filter="box",
            label_names=names,
            shards=tuple(entries),
        ),
    )
    return folder
