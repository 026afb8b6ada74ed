"""Domains whose shards are fetched: in the order of their lanes, beside others that are read where they lie."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from input_definition import Definition, noise_files, write_columns, write_shards

from hires_gan.data.domains import open_data
from hires_gan.data.lanes import LaneOrder
from hires_gan.data.loader import Loader, Request
from hires_gan.data.order import Order
from hires_gan.data.settings import DataSettings
from hires_gan.errors import Failure, UsageError

SIDE, SEED, LANES = 16, 5, 6
FAR, NEAR = noise_files(23, SIDE, 1), noise_files(9, SIDE, 2)
DECODERS: dict[str, dict[str, Any]] = {
    "in this process": {"workers": 0},
    "three workers": {"workers": 3},
    "dali-cpu": {"decoder": "dali-cpu", "threads": 2},
}


pytestmark = pytest.mark.usefixtures("fresh_server")


@pytest.fixture(params=DECODERS)
def decoder(request) -> dict[str, Any]:
    if request.param == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    return DECODERS[request.param]


class InLanes(Definition):
    """The same in the order of a streamed set."""

    def row(self, sample: int) -> int:
        counts = [5] * (len(self.files) // 5) + [len(self.files) % 5]
        return LaneOrder(SEED, counts, LANES, self.stream).row(sample)


def loader_of(data: dict[str, Any], tmp_path: Path, **more: Any) -> Loader:
    stream = {"cache": str(tmp_path / "cache"), "lanes": LANES, "patience": 1}
    block = DataSettings(**({"mirror": True, "stream": stream} | data | more))
    return Loader(open_data(block), block, SEED, 12 * SIDE * SIDE * 3)


def check(loader: Loader, domains: dict[str, Definition], start: int = 0) -> None:
    wanted = [Request(range(k, k + 12), SIDE) for k in range(start, start + 72, 12)]
    for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
        assert batch.domains == tuple(domains)
        expected = np.concatenate([one.images(request.samples, SIDE) for one in domains.values()])
        assert np.array_equal(batch.images.numpy(), expected)


def test_a_streamed_domain_beside_a_folder(tmp_path, decoder):
    far = write_shards(tmp_path / "far", FAR, SIDE, per_shard=5)
    near = write_shards(tmp_path / "near", NEAR, SIDE)
    for start, names in ((0, "ab"), (31, "ba")):
        domains = {name: {"a": f"file://{far}", "b": str(near)}[name] for name in names}
        files = {"a": (InLanes, FAR), "b": (Definition, NEAR)}
        defined = {name: files[name][0](files[name][1], [], SEED, True, stream) for stream, name in enumerate(domains)}
        with loader_of({"domains": domains}, tmp_path, **decoder) as loader:
            check(loader, defined, start)
            orders = {stream.source.domains[0]: type(stream.order) for stream in loader.reader.streams}
            assert orders == {"a": LaneOrder, "b": Order}


def test_streamed_pairs(tmp_path, decoder):
    right = noise_files(23, SIDE, 3)
    folder = write_columns(tmp_path / "set", {"left": FAR, "right": right}, SIDE, per_shard=5)
    with loader_of({"shards": f"file://{folder}"}, tmp_path, **decoder) as loader:
        check(loader, {name: InLanes(files, [], SEED, True) for name, files in (("left", FAR), ("right", right))})


def test_what_fetches_ends_with_the_loader_and_is_named_when_it_dies(tmp_path):
    far = write_shards(tmp_path / "far", FAR, SIDE, per_shard=5)
    with loader_of({"shards": f"file://{far}"}, tmp_path, workers=0) as loader:
        ((_, fetcher),) = loader._fetchers
        assert psutil.pid_exists(fetcher.pid)
        batches = loader.batches(iter([Request(range(k, k + 2), SIDE) for k in range(40)]))
        next(batches)
        os.kill(fetcher.pid, signal.SIGKILL)
        fetcher._process.join(60)
        with pytest.raises(
            Failure, match=rf"the process that fetches shards \(process {fetcher.pid}\) was killed by S"
        ):
            list(batches)
    with loader_of({"shards": f"file://{far}"}, tmp_path, workers=0) as loader:
        pid = loader._fetchers[0][1].pid
        next(loader.batches(iter([Request(range(2), SIDE)])))
    assert not psutil.pid_exists(pid)


def test_what_is_wrong_with_a_domain_names_its_own_key(tmp_path):
    for location, named in (
        ("s3://", r"data\.domains\.a is s3:// and nothing more"),
        ("pipe:x", r"domains\.a is a pipe"),
    ):
        with pytest.raises(UsageError, match=named) as caught:
            open_data(DataSettings(domains={"a": location, "b": str(tmp_path)}))
        assert "data.shards" not in str(caught.value)


def test_batches_on_their_way_keep_what_they_need_on_the_list(tmp_path, monkeypatch):
    """Each new list replaces the one before: it names the shards of every batch that is begun, the oldest first."""
    far = write_shards(tmp_path / "far", FAR, SIDE, per_shard=5)
    with loader_of({"shards": f"file://{far}"}, tmp_path, workers=0, prefetch=3) as loader:
        ((order, fetcher),) = loader._fetchers
        lists: list[list[int]] = []
        monkeypatch.setattr(type(fetcher), "want", lambda self, numbers: lists.append(list(numbers)))
        next(loader.batches(iter([Request(range(k, k + 1), SIDE) for k in range(10)])))
    shard_of = [order.row(k) // 5 for k in range(10)]
    assert len(lists) == 4
    for begun, wanted in enumerate(lists):
        assert wanted[0] == shard_of[0]
        assert set(shard_of[: begun + 1]) <= set(wanted)
        assert len(set(wanted)) == len(wanted)
