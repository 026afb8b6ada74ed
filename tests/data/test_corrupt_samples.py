"""Corrupt samples, in every decoder: what is shown instead, what is said, when it is too much, and what passes."""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from input_definition import Definition, noise_files, write_shards
from PIL import Image

from hires_gan.data import stream_reader
from hires_gan.data.loader import Loader, Request
from hires_gan.data.replacement import CorruptRows, allowed_rows
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure

COUNT, SIDE, SEED = 37, 16, 5
FILES = noise_files(COUNT, SIDE)
LABELS = [row * 7 % 3 for row in range(COUNT)]
DECODERS: dict[str, dict[str, Any]] = {
    "in this process": {"workers": 0},
    "workers": {"workers": 2},
    "dali-cpu": {"decoder": "dali-cpu", "threads": 2},
}


@pytest.fixture(params=DECODERS)
def decoder(request) -> dict[str, Any]:
    if request.param == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    return DECODERS[request.param]


def loader_of(folder: Path, decoder: dict[str, Any], **settings: Any) -> Loader:
    data = DataSettings(**{"shards": str(folder), "max_corrupt": 0.5, "mirror": True, **decoder, **settings})
    return Loader(ShardSet(folder), data, SEED, 60 * SIDE * SIDE * 3)


def flip_a_bit(folder: Path, row: int, column: str = "image") -> None:
    path, offset, size, _ = ShardSet(folder).locate(row, column)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, subsampling: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=subsampling)
    return buffer.getvalue()


def defined(bad: set[int], mirror: bool = True) -> Definition:
    """The input with the bad rows replaced as promised: the first good one of row + 1, row + 2, ..."""
    shown = [next(r % COUNT for r in range(row, row + COUNT) if r % COUNT not in bad) for row in range(COUNT)]
    return Definition([FILES[row] for row in shown], [LABELS[row] for row in shown], SEED, mirror)


def check(loader: Loader, wanted: list[Request], definition: Definition) -> None:
    for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
        assert np.array_equal(batch.images.numpy(), definition.images(request.samples, request.resolution))
        assert batch.labels.tolist() == definition.classes(request.samples)


def requests(start: int = 0, count: int = 8, step: int = 15, resolution: int = SIDE) -> list[Request]:
    return [Request(range(k, k + step), resolution) for k in range(start, start + count * step, step)]


# --- what is shown instead --------------------------------------------------------------------------------------------

BAD = {3, 11, 12, 13, 20, 36}
"""One of each kind, three in a row, and the last one of the set, which the first one replaces."""


@pytest.fixture
def damaged(tmp_path) -> Path:
    files = list(FILES)
    files[3] = b"\xff\xd8\xff but not a JPEG"
    files[11] = FILES[11][: len(FILES[11]) // 2]  # cut before its crc32 was taken
    files[13] = png(np.zeros((12, 12, 3), np.uint8))
    files[20] = png(np.full((SIDE, SIDE), 300, np.uint16))
    write_shards(tmp_path / "set", files, SIDE, LABELS)
    for row in (12, 36):
        flip_a_bit(tmp_path / "set", row)
    return tmp_path / "set"


def test_the_next_good_row_is_shown_with_its_label(damaged, decoder, capfd):
    with loader_of(damaged, decoder) as loader:
        check(loader, requests(), defined(BAD))  # more than three epochs
        assert len(loader.corrupt) == len(BAD)
    # Ours are whole, but DALI's own words go to standard error in pieces, and may stand before them in a line.
    lines = re.findall("skipped a corrupt sample: .*", capfd.readouterr().err)
    assert len(lines) == len(BAD)
    for row, why in {3: "cannot decode", 12: "its crc32 is", 13: "12x12 pixels stands where one of 16x16 must"}.items():
        named = f"skipped a corrupt sample: {damaged}/shard-{row // 10:06d}.tar, sample {row:09d}, column 'image': "
        assert sum(line.startswith(named) and why in line for line in lines) == 1


@pytest.mark.parametrize("subsampling", [0, 2])
def test_half_a_jpeg_is_replaced_whole(tmp_path, decoder, capfd, subsampling):
    """A decoder that is lenient makes half an image of it, the rest of it grey."""
    random = np.random.default_rng(1)
    files = [jpeg(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8), subsampling) for _ in range(COUNT)]
    whole = write_shards(tmp_path / "whole", [*files[:5], files[6], *files[6:]], SIDE, LABELS)
    half = files[5][: len(files[5]) // 2]
    cut = write_shards(tmp_path / "cut", [*files[:5], half, *files[6:]], SIDE, LABELS)
    found = []
    for folder in (whole, cut):
        with loader_of(folder, decoder) as loader:
            found.append([batch.images.clone() for batch in loader.batches(iter(requests()))])
            assert len(loader.corrupt) == (folder == cut)
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
    assert f"{cut}/shard-000000.tar, sample 000000005, column 'image': cannot decode" in capfd.readouterr().err


def test_ranks_and_resolutions_see_the_same(damaged, decoder):
    for rank in range(3):
        with loader_of(damaged, decoder) as loader:
            wanted = [
                Request(r.samples[rank * 5 : rank * 5 + 5], 8 if k < 4 else SIDE) for k, r in enumerate(requests())
            ]
            check(loader, wanted, defined(BAD))


def test_going_on_from_anywhere_is_the_continuation(damaged, decoder):
    """A process that begins late has not met what the first one met."""
    for start in (1, 17, 31, 50, 74):
        with loader_of(damaged, decoder, prefetch=1) as loader:
            check(loader, requests(start, 2), defined(BAD))


def test_a_shard_that_was_cut_short_while_it_is_read(tmp_path, decoder):
    folder = write_shards(tmp_path / "set", FILES, SIDE, LABELS)
    with loader_of(folder, decoder) as loader:
        path, offset, size, _ = ShardSet(folder).locate(17)
        os.truncate(path, offset + size // 2)
        check(loader, requests(), defined({17, 18, 19}))
        assert len(loader.corrupt) == 3


def test_a_bad_level_is_replaced_where_it_is_read_and_nowhere_else(tmp_path, decoder):
    small = noise_files(COUNT, 8, seed=8)
    folder = write_shards(tmp_path / "set", FILES, SIDE, LABELS, levels=[{8: file} for file in small])
    flip_a_bit(folder, 5, "image.8")
    levels = Definition(
        [small[6 if row == 5 else row] for row in range(COUNT)],
        [LABELS[6 if row == 5 else row] for row in range(COUNT)],
        SEED,
        True,
    )
    with loader_of(folder, decoder) as loader:
        check(loader, requests(count=3, resolution=8), levels)
        check(loader, requests(count=3), defined(set()))
        check(loader, requests(count=3, resolution=4), levels)


def test_what_was_found_corrupt_is_not_read_again(damaged, monkeypatch):
    read, rows = ShardSet.read, []
    monkeypatch.setattr(ShardSet, "read", lambda self, row, column: rows.append(row) or read(self, row, column))
    with loader_of(damaged, DECODERS["in this process"]) as loader:
        check(loader, requests(), defined(BAD))
    assert all(rows.count(row) == 1 for row in BAD)


def test_all_but_one_row_may_be_corrupt_and_not_that_one(tmp_path, decoder):
    folder = write_shards(tmp_path / "set", FILES, SIDE, LABELS)
    for row in range(1, COUNT):
        flip_a_bit(folder, row)
    with loader_of(folder, decoder, max_corrupt=1) as loader:
        check(loader, requests(count=2), defined(set(range(1, COUNT))))
    flip_a_bit(folder, 0)
    none = rf"no sample in {folder} can be shown; the last of them: .*crc32"
    with loader_of(folder, decoder, max_corrupt=1) as loader, pytest.raises(Failure, match=none):
        next(loader.batches(iter(requests())))


# --- too many ---------------------------------------------------------------------------------------------------------


def test_as_many_as_are_allowed_and_not_one_more(damaged, decoder):
    with loader_of(damaged, decoder, max_corrupt=6 / COUNT) as loader:
        check(loader, requests(), defined(BAD))
    with loader_of(damaged, decoder, max_corrupt=5.9 / COUNT) as loader:
        with pytest.raises(Failure) as caught:
            list(loader.batches(iter(requests())))
        assert len(loader.corrupt) == 6
    said = str(caught.value)
    assert said.startswith(
        f"6 of the {COUNT} samples in {damaged} have turned out corrupt, a share of 0.16, and data.max_corrupt "
    )
    assert said.count("shard-00000") == 3
    assert "; ...." in said
    assert f"`hires-gan shards check {damaged} --repair`" in said
    assert "raise data.max_corrupt" in said


def test_zero_stops_at_the_first_one_and_so_does_the_default_here(damaged, decoder):
    for settings in ({"max_corrupt": 0.0}, {"max_corrupt": 0.001}):
        with loader_of(damaged, decoder, **settings) as loader:
            batches = loader.batches(Request(range(k, k + 1), SIDE) for k in range(COUNT))
            first = next(k for k in range(COUNT) if defined(set()).row(k) in BAD)
            for _ in range(first):
                next(batches)
            key = rf"shard-00000\d\.tar, sample {defined(set()).row(first):09d}\. To go on"
            with pytest.raises(Failure, match=rf"^1 of the {COUNT} samples .* allows 0(\.001)?: {key}"):
                next(batches)


def test_what_an_iteration_that_was_left_has_found_is_not_lost(damaged, decoder):
    """The reader that gives up tells all that it knows, so that the stop never goes by."""
    with loader_of(damaged, decoder, max_corrupt=5.9 / COUNT) as loader:
        for _ in range(4):
            stream = loader.batches(iter(requests()))
            with pytest.raises(Failure, match="have turned out corrupt, a share of"):
                while True:
                    next(stream)
        fresh = loader.batches(iter(requests(count=2)))
        with pytest.raises(Failure, match="have turned out corrupt, a share of"):
            list(fresh)


def test_loaders_of_one_process_count_together(damaged, capfd):
    shards, data = ShardSet(damaged), DataSettings(shards=str(damaged), workers=0, max_corrupt=0.5)
    corrupt = CorruptRows(0.5)
    for _ in range(2):
        with Loader(shards, data, SEED, 60 * SIDE * SIDE * 3, corrupt=corrupt) as loader:
            check(loader, requests(), defined(BAD, mirror=False))
        assert len(corrupt) == len(BAD)
    assert capfd.readouterr().err.count("skipped a corrupt sample") == len(BAD)


@pytest.mark.parametrize(
    ("share", "count", "allowed"), [(0, 10**9, 0), (0.001, 999, 0), (0.001, 3000, 3), (0.1, 30, 3), (1, 7, 7)]
)
def test_a_share_of_a_set_is_whole_rows(share, count, allowed):
    assert allowed_rows(share, count) == allowed


# --- faults of the file system ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_shards(tmp_path / "set", FILES, SIDE, LABELS)


@pytest.fixture(params=["in this process", "dali-cpu"])
def here(request, monkeypatch) -> dict[str, Any]:
    """The decoders that read in this process, where faults can be injected; without pauses."""
    if request.param == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(stream_reader, "_PAUSES", (0.0, 0.0, 0.0))
    return DECODERS[request.param]


def failing(monkeypatch, faults: Iterator[int]) -> None:
    """Let reads fail with these error numbers, one after the other, and then no more."""
    read = os.pread

    def pread(*arguments: int) -> bytes:
        number = next(faults, None)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return read(*arguments)

    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_faults_that_pass_change_nothing_and_are_said(folder, here, number, monkeypatch, capfd):
    failing(monkeypatch, iter([number] * 3))
    with loader_of(folder, here) as loader:
        check(loader, requests(), defined(set()))
        assert (len(loader.corrupt), loader.corrupt.retries) == (0, 3)
    said = capfd.readouterr().err
    assert "row " in said
    assert f".tar could not be read ({os.strerror(number)}); trying again" in said


def test_a_stale_handle_is_opened_again(folder, here, monkeypatch):
    opened, real = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **named: opened.append(path) or real(path, *rest, **named))
    failing(monkeypatch, iter([errno.ESTALE]))
    with loader_of(folder, here) as loader:
        check(loader, requests(count=1, step=1), defined(set()))
    assert len([path for path in opened if str(path).endswith(".tar")]) == 2


def test_a_fault_while_a_shard_is_opened_may_pass_too(folder, here, monkeypatch):
    real, faults = os.open, iter([errno.EIO, errno.ESTALE])

    def opened(path, *rest, **named):
        if str(path).endswith(".tar") and (number := next(faults, None)) is not None:
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", opened)
    with loader_of(folder, here) as loader:
        check(loader, requests(count=1, step=1), defined(set()))
        assert loader.corrupt.retries == 2


@pytest.mark.parametrize(("number", "times"), [(errno.EIO, 4), (errno.EACCES, 1), (errno.ENOMEM, 1)])
def test_faults_that_stay_or_are_of_another_kind_end_the_run(folder, here, number, times, monkeypatch):
    failing(monkeypatch, iter([number] * times))
    named = rf"sample 0 of the run \(row \d+, in .*\.tar\): .*{os.strerror(number)}"
    with loader_of(folder, here) as loader, pytest.raises(Failure, match=named):
        next(loader.batches(iter(requests(count=1, step=1))))


def test_a_vanished_shard_is_no_corrupt_sample(folder, decoder):
    with loader_of(folder, decoder) as loader:
        for path in folder.glob("*.tar"):
            path.unlink()
        with pytest.raises(Failure, match=r"sample \d+ of the run .*belongs to the shard set but cannot be opened"):
            next(loader.batches(iter(requests())))


def test_a_read_that_hangs_is_named_with_its_shard(folder, monkeypatch):
    pytest.importorskip("nvidia.dali")
    released = threading.Event()

    def hang(*_: Any) -> bytes:
        released.wait(60)
        raise OSError(errno.EACCES, "too late")

    monkeypatch.setattr(ShardSet, "read", hang)
    named = r"no image was decoded for 3 s, while reading row \d+, in .*/shard-00000\d\.tar; look at the disk"
    try:
        with loader_of(folder, DECODERS["dali-cpu"], timeout=3) as loader, pytest.raises(Failure, match=named):
            next(loader.batches(iter(requests())))
    finally:
        released.set()


def test_the_order_of_the_threads_does_not_matter(damaged, monkeypatch):
    """Reads that take their time, each another one."""
    pytest.importorskip("nvidia.dali")
    read = ShardSet.read

    def slowly(self: ShardSet, row: int, column: str) -> bytes:
        time.sleep(row % 5 * 0.002)
        return read(self, row, column)

    monkeypatch.setattr(ShardSet, "read", slowly)
    with loader_of(damaged, DECODERS["dali-cpu"]) as loader:
        check(loader, requests(), defined(BAD))
