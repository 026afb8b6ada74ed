"""Corrupt images of pairs and of unpaired domains: what is shown in their place, what is counted, and who is named."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from domain_sets import LEFT, PAIRS, RIGHT, SEED, SIDE, check, loader_of
from input_definition import Definition, noise_files, write_columns, write_shards

from hires_gan.data.domains import open_data
from hires_gan.data.loader import Request
from hires_gan.data.reader import SampleReader
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure

pytestmark = pytest.mark.usefixtures("fresh_server")


def damage(folder: Path, row: int, column: str) -> None:
    path, offset, size, _ = ShardSet(folder).locate(row, column)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)


def replaced(files: list[bytes], bad: set[int]) -> list[bytes]:
    count = len(files)
    return [next(files[r % count] for r in range(row, row + count) if r % count not in bad) for row in range(count)]


def test_a_corrupt_half_takes_its_pair_along(tmp_path, decoder, capfd):
    """Bytes that changed, a file that was cut before its crc32 was taken, and one in each half of neighbouring rows."""
    right = list(RIGHT)
    right[10] = RIGHT[10][: len(RIGHT[10]) // 2]
    folder = write_columns(tmp_path / "set", {"left": LEFT, "right": right}, SIDE, per_shard=4)
    for row, column in ((2, "right"), (5, "left"), (6, "right")):
        damage(folder, row, column)
    bad = {2, 5, 6, 10}
    domains = {name: Definition(replaced(files, bad), [], SEED, True) for name, files in (("l", LEFT), ("r", RIGHT))}
    domains = {"left": domains["l"], "right": domains["r"]}
    with loader_of({"shards": str(folder)}, max_corrupt=0.5, **decoder) as loader:
        check(loader, [Request(range(k, k + 9), SIDE) for k in range(0, 45, 9)], domains)
        assert len(loader.corrupt) == 4
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped a corrupt sample" in line]
    assert len(said) == 4
    for row, column in ((2, "right"), (5, "left"), (6, "right"), (10, "right")):
        assert sum(f"sample {row:09d}, column '{column}'" in line for line in said) == 1


def test_a_known_bad_half_is_not_read_again_and_neither_is_the_other(tmp_path, monkeypatch):
    folder = write_columns(tmp_path / "set", {"left": LEFT, "right": RIGHT}, SIDE)
    damage(folder, 4, "right")
    read, asked = ShardSet.read, []
    monkeypatch.setattr(
        ShardSet, "read", lambda self, row, column: asked.append((row, column)) or read(self, row, column)
    )
    with loader_of({"shards": str(folder)}, max_corrupt=0.5, workers=0) as loader:
        list(loader.batches(iter([Request(range(k, k + PAIRS), SIDE) for k in (0, PAIRS, 2 * PAIRS)])))
    assert (asked.count((4, "left")), asked.count((4, "right"))) == (1, 1)


def test_each_unpaired_set_replaces_and_counts_by_itself(tmp_path, decoder):
    sets = {"a": noise_files(10, SIDE, 1), "b": noise_files(20, SIDE, 2)}
    for name, files in sets.items():
        write_shards(tmp_path / name, files, SIDE)
    data = {"domains": {name: str(tmp_path / name) for name in sets}}
    for name, row in (("a", 3), ("b", 3), ("b", 19)):
        damage(tmp_path / name, row, "image")
    bad = {"a": {3}, "b": {3, 19}}
    domains = {
        name: Definition(replaced(files, bad[name]), [], SEED, True, stream)
        for stream, (name, files) in enumerate(sets.items())
    }
    wanted = [Request(range(k, k + 10), SIDE) for k in range(0, 40, 10)]
    with loader_of(data, max_corrupt=0.1, **decoder) as loader:
        check(loader, wanted, domains)
        assert len(loader.corrupt) == 3
    damage(tmp_path / "b", 7, "image")
    named = rf"^3 of the 20 samples in {tmp_path}/b have turned out corrupt, a share of 0\.15, and data\.max_corrupt al"
    with loader_of(data, max_corrupt=0.1, **decoder) as loader, pytest.raises(Failure, match=named):
        list(loader.batches(iter(wanted)))


def test_a_place_in_the_data_is_named_by_its_set(kinds):
    reader = SampleReader(open_data(DataSettings(**kinds["unpaired"])), SEED, False)
    folders = kinds["unpaired"]["domains"]
    assert reader.where(16) == f"row 16, in {folders['sun']}/shard-000003.tar"
    assert reader.where(17) == f"row 0, in {folders['rain']}/shard-000000.tar"
    assert reader.where(20) == f"row 0, in {folders['snow']}/shard-000000.tar"
    with pytest.raises(IndexError):
        reader.where(21)
    told: list[int] = []
    reader.fill(torch.empty(6, SIDE, SIDE, 3, dtype=torch.uint8), range(2), 0, 1, told.append)
    assert [reader.where(place).split("/")[-2] for place in told] == ["sun", "sun", "rain", "rain", "snow", "snow"]


def test_a_read_that_hangs_is_named_with_the_shard_of_its_domain(kinds, monkeypatch):
    pytest.importorskip("nvidia.dali")
    read, away, released = ShardSet.read, threading.Event(), threading.Event()

    def hang(self: ShardSet, row: int, column: str) -> bytes:
        if self.folder.name == "rain" and away.is_set():
            released.wait(60)
            raise PermissionError(13, "too late")
        return read(self, row, column)

    monkeypatch.setattr(ShardSet, "read", hang)
    named = r"no image was decoded for 2 s, while reading row \d, in .*/rain/shard-000000\.tar; look at the disk"
    try:
        with loader_of(kinds["unpaired"], decoder="dali-cpu", prefetch=1) as loader:
            batches = loader.batches(Request(range(k, k + 3), SIDE) for k in range(0, 30, 3))
            next(batches)  # DALI has started: what takes long from here on is the reading
            away.set()
            loader.decoder._timeout = 2
            with pytest.raises(Failure, match=named):
                list(batches)
    finally:
        released.set()
