"""Whole runs over a data set with corrupt samples: exact resume holds, and what was skipped is shown."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from hires_gan import checkpoint
from hires_gan.config import Configuration, to_yaml
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError
from hires_gan.training.run import train

BAD = (0, 7, 8, 39)


def run(settings: dict[str, Any], **blocks: dict[str, Any]) -> bool:
    changed = copy.deepcopy(settings)
    for block, values in blocks.items():
        changed[block].update(values)
    configuration = Configuration.model_validate(changed)
    return train(configuration, to_yaml(configuration))


def weights(folder: Path) -> dict[str, str]:
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None
    return saved.state["files"]  # type: ignore[no-any-return]


def values(run_dir: Path, key: str) -> list[float]:
    with sqlite3.connect(run_dir / "mlflow.db") as store:
        return [row[0] for row in store.execute("select value from metrics where key = ? order by step", (key,))]


@pytest.fixture
def corrupt(settings, shards, tmp_path) -> dict[str, Any]:
    """The small configuration, over a set with four corrupt samples of 40, labels used."""
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    for row in BAD:
        path, offset, size, _ = ShardSet(folder).locate(row)
        data = bytearray(path.read_bytes())
        data[offset + size // 2] ^= 1
        path.write_bytes(data)
    settings["data"] |= {"shards": str(folder), "max_corrupt": 0.1}
    settings["recipe"]["labels"] = True
    return settings


@pytest.mark.slow
def test_a_run_around_corrupt_samples_resumes_exactly_and_counts_them(corrupt, tmp_path, capfd):
    runs = tmp_path / "runs"
    assert run(corrupt)
    whole = weights(runs / "small")
    assert values(runs, "data/skipped")[-1] == len(BAD)
    said = capfd.readouterr().err
    assert said.count("skipped a corrupt sample: ") == len(BAD)
    assert all(f"sample {row:09d}, column 'image': its crc32" in said for row in BAD)
    assert f" | {len(BAD)} corrupt samples skipped" in said
    for name, first, other in (("early", 0.064, {"workers": 2}), ("late", 0.272, {"workers": 0, "max_corrupt": 0.2})):
        assert run(corrupt, run={"name": name, "total_kimg": first})
        assert run(corrupt, run={"name": name}, data=other)
        assert weights(runs / name) == whole


def test_dali_on_the_cpu_trains_the_same_weights(corrupt, tmp_path, capfd):
    pytest.importorskip("nvidia.dali")
    for name, data in (("torchvision", {}), ("dali", {"decoder": "dali-cpu"})):
        assert run(corrupt, run={"name": name, "total_kimg": 0.24}, data=data)
    assert weights(tmp_path / "runs" / "dali") == weights(tmp_path / "runs" / "torchvision")
    assert "decodes on the CPU" in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"decoder is dali, .* but this run trains on the CPU: set .* to dali-cpu, or"):
        run(corrupt, run={"name": "other"}, data={"decoder": "dali"})
    assert not (tmp_path / "runs" / "other").exists()


def test_what_was_skipped_counts_on_behind_a_resume_and_is_not_said_again(corrupt, tmp_path, capfd):
    quiet = {"evaluation": {"every_kimg": None}}
    assert run(corrupt, **quiet)
    assert capfd.readouterr().err.count("skipped a corrupt sample: ") == len(BAD)
    moved = tmp_path / "moved"
    shutil.move(corrupt["data"]["shards"], moved)
    for total, location in ((0.496, moved), (0.512, moved)):
        assert run(corrupt, run={"total_kimg": total}, data={"shards": str(location)}, **quiet)
        assert values(tmp_path / "runs", "data/skipped")[-1] == len(BAD)
        assert "skipped a corrupt sample" not in capfd.readouterr().err
    with pytest.raises(Failure, match=r"4 of the 40 samples in .*moved have turned out corrupt"):
        run(corrupt, run={"total_kimg": 0.528}, data={"shards": str(moved), "max_corrupt": 0.05}, **quiet)


def test_too_many_corrupt_samples_stop_the_run(corrupt, tmp_path):
    with pytest.raises(Failure, match=r"3 of the 40 samples in .* corrupt, a share of 0\.075, and .* allows 0\.05"):
        run(corrupt, data={"max_corrupt": 0.05}, evaluation={"every_kimg": None})
    status = json.loads((tmp_path / "runs" / "small" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "shards check" in json.dumps(status)


def test_a_run_that_was_stopped_goes_on_once_more_are_allowed(corrupt, tmp_path):
    assert run(corrupt)
    whole = weights(tmp_path / "runs" / "small")
    with pytest.raises(Failure, match="have turned out corrupt"):
        run(corrupt, run={"name": "again"}, data={"max_corrupt": 0.05}, evaluation={"every_kimg": None})
    assert run(corrupt, run={"name": "again"})
    assert weights(tmp_path / "runs" / "again") == whole
