"""`hires-gan bench input`: small and short here; what it measures is told, and how."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from hires_gan.bench.input import ROUNDS, bench_input, describe, make_shards, table
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("made"), 64)


def test_without_shards_it_makes_its_own_and_writes_what_was_measured(tmp_path, capfd):
    out = tmp_path / "input.json"
    limit, loader = rows = bench_input(None, 128, 2, 1.4, out)
    assert (limit.name, limit.share, limit.first_batch_seconds) == ("decoder alone", 1.0, None)
    assert 0 < loader.share < 2
    assert loader.first_batch_seconds > 0
    assert all(row.images_per_second > 10 and 0 < row.cpu_seconds_per_image < 1 and row.memory_mib > 10 for row in rows)
    record = json.loads(out.read_text())
    assert record["rows"][1]["images_per_second"] == loader.images_per_second
    assert (record["resolution"], record["workers"], record["rounds"]) == (128, 2, ROUNDS)
    assert {"date", "version.torch", "version.torchvision", "version.python", "cpu.model", "cpu.count"} <= set(record)
    assert not {"host", "mlflow.user"} & set(record)
    assert "enlarged, JPEG of quality 95 with 4:4:4 chroma, 128x128" in capfd.readouterr().err
    assert multiprocessing.active_children() == []


def test_measures_the_shards_that_are_named_at_a_smaller_resolution(made):
    rows = bench_input(made, 16, 1, 0.7, None)
    assert len(table(rows)) == 3
    assert table(rows)[1].startswith("decoder alone")
    assert "100.0%" in table(rows)[1]
    assert str(made) in describe(ShardSet(made), made=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 48}, "--resolution is 48; a power of two from 4 up"),
        ({"resolution": 2}, "--resolution is 2; a power of two from 4 up"),
        ({"workers": 0}, "--workers is 0; 1 to 256 are allowed"),
        ({"workers": 257}, "--workers is 257; 1 to 256 are allowed"),
        ({"seconds": 0.0}, "--seconds is 0; a positive number"),
        ({"seconds": float("nan")}, "--seconds is nan; a positive number"),
        ({"resolution": 128}, "--resolution is 128, but the images in .* have 64"),
    ],
)
def test_wrong_arguments(made, changes, message):
    arguments = {"shards": made, "resolution": 64, "workers": 1, "seconds": 0.1, "out": None} | changes
    with pytest.raises(UsageError, match=message):
        bench_input(**arguments)


def test_a_place_for_the_result_that_is_not_there(made, tmp_path):
    with pytest.raises(Failure, match=r"nowhere/input\.json cannot be written: No such file"):
        bench_input(made, 16, 1, 0.1, tmp_path / "nowhere" / "input.json")
