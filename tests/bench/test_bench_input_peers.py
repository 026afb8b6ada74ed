"""What the loader is compared with: every peer reads the same images, and each limit does what it says."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_shards import jpegs, pngs, write_shards
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from hires_gan.bench import input_limits, input_peers
from hires_gan.bench.input_contestants import Task
from hires_gan.bench.input_images import in_every_form, sample_of
from hires_gan.bench.input_loaders import loader
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure

TASK = Task(16, 1, 4, 0.02)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("set"), jpegs(5, 16) + pngs(4, 16), 16, per_shard=4)


@pytest.fixture(scope="module")
def forms(source, tmp_path_factory):
    return in_every_form(ShardSet(source), tmp_path_factory.mktemp("forms"))


def test_every_form_holds_the_same_files(source, forms):
    shards = ShardSet(source)
    files = [shards.read(row) for row in range(9)]
    assert [Path(path).read_bytes() for path in forms.files] == files
    with zipfile.ZipFile(forms.zip) as packed:
        assert [packed.read(name) for name in packed.namelist()] == files
        assert {one.compress_type for one in packed.infolist()} == {zipfile.ZIP_STORED}
    assert [Path(path).suffix for path in forms.files] == [".jpg"] * 5 + [".png"] * 4
    assert forms.tars == tuple(str(source / f"shard-00000{number}.tar") for number in range(3))


def test_dalis_own_tool_writes_the_same_index(forms, tmp_path):
    tool = Path(sys.executable).parent / "wds2idx"
    if not tool.exists():
        pytest.skip("needs DALI's wds2idx")
    for tar, index in zip(forms.tars, forms.indexes, strict=True):
        subprocess.run([tool, tar, tmp_path / "it.idx"], check=True, capture_output=True)
        assert (tmp_path / "it.idx").read_text() == Path(index).read_text()


def test_a_sample_is_spread_evenly(source, tmp_path):
    shards = ShardSet(source)
    copied = ShardSet(sample_of(shards, "image", 16, 3, tmp_path))
    assert [copied.read(row) for row in range(len(copied))] == [shards.read(row) for row in (0, 3, 6)]
    assert copied.resolution == 16


NAMES = list(input_peers.inputs(dali=True))


def give(name: str):
    if name == input_peers.DALI_READER:
        pytest.importorskip("nvidia.dali")
    return input_peers.inputs(dali=True)[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_peer_shows_all_images_of_the_set_and_no_other(name, forms):
    """Batch by batch without an end: some forty times around a set of nine."""
    expected = {contents(decoded(name, Path(path).read_bytes())) for path in forms.files}
    assert len(expected) == 9
    seen: set[bytes] = set()
    for batch in itertools.islice(give(name)(forms, TASK), 100):
        assert batch.shape == (4, 3, 16, 16)
        whole = batch if batch.dtype == torch.uint8 else (batch * 255).round().to(torch.uint8)
        seen |= {contents(image) for image in whole}
    assert seen == expected


def decoded(name: str, data: bytes) -> torch.Tensor:
    """uint8 `[3, h, w]` by the library that the peer uses; DALI's decoder gives what torchvision's does."""
    if "PIL" in name:
        return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def contents(image: torch.Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def test_float_or_bytes(forms):
    first = {name: next(give(name)(forms, TASK)) for name in NAMES[:3]}
    assert first[NAMES[0]].dtype == torch.float32
    assert first[NAMES[0]].max() <= 1
    for name in NAMES[1:3]:
        assert first[name].dtype == torch.uint8
        assert first[name].is_contiguous(memory_format=torch.channels_last)


def test_workers_that_make_whole_batches_are_measured_by_whole_cycles(forms):
    pytest.importorskip("nvidia.dali")
    three = Task(16, 3, 4, 0.02)
    found = {}
    for contestant in input_peers.peers(forms, dali=True):
        (opened,) = contestant.measure.args
        with opened(three) as batches:
            found[contestant.name] = (batches.ahead, batches.cycle)
    assert found.pop(input_peers.DALI_READER) == (2, 1)
    assert set(found.values()) == {(6, 3)}
    assert [contestant.name for contestant in input_peers.peers(forms, dali=False)] == NAMES[:-1]


def test_the_loader_gives_batches(source):
    with loader("torchvision", source, TASK) as batches:
        assert [next(batches.counts) for _ in range(5)] == [4] * 5


# --- the limits ---


def ready() -> None:
    pass


@pytest.mark.parametrize("work", [input_limits._decode, input_limits._read_warm])
def test_what_one_process_of_a_limit_does(work, source):
    found = work(ShardSet(source), TASK, 0, ready)
    assert found.images >= 1
    assert found.wall > 0
    assert found.cpu > 0


def test_processes_of_a_limit_share_the_rows(source):
    shards, task = ShardSet(source), Task(16, 4, 8, 0.1)
    shares = [input_limits._rows(shards, task, number, 100) for number in range(4)]
    assert sorted(row for share in shares for row in share) == list(range(9))
    many = Task(16, 16, 8, 0.1)
    assert all(len(input_limits._rows(shards, many, number, 100)) == 1 for number in range(16))


def test_reading_from_the_disk_is_measured_or_refused(source, monkeypatch):
    """What the system says that it fetched decides; a cache that forgets nothing must not pass for a disk."""
    monkeypatch.setattr(input_limits, "_fetched", lambda: 0)
    with pytest.raises(Failure, match="the page cache does not forget these files"):
        input_limits._read_cold(ShardSet(source), TASK, 0, ready)
    total = itertools.count(0, 10**9)
    monkeypatch.setattr(input_limits, "_fetched", lambda: next(total))
    assert input_limits._read_cold(ShardSet(source), Task(16, 1, 4, 1.0), 0, ready).images >= 9


def test_dali_alone(source):
    pytest.importorskip("nvidia.dali")
    found = input_limits.dali_alone(None, source, TASK)
    assert found.images_per_second > 0
    assert found.first_batch_seconds is None
