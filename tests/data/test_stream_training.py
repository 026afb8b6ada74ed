"""Whole runs over a streamed set: the order is said and kept; kill -9 and a store that is away change no weight."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from input_definition import noise_files, write_shards

from hires_gan import checkpoint
from hires_gan.config import Configuration, to_yaml
from hires_gan.data.cache_folder import drop_leftovers, kept_shards
from hires_gan.data.lanes import LaneOrder
from hires_gan.data.manifest import sizes_of
from hires_gan.data.shards import ShardSet
from hires_gan.errors import UsageError
from hires_gan.training.run import train

RESOLUTION, COUNT, EACH = 16, 120, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty shards of images in two classes."""
    files, labels = noise_files(COUNT, RESOLUTION), [row % 2 for row in range(COUNT)]
    return write_shards(tmp_path_factory.mktemp("served") / "set", files, RESOLUTION, labels, per_shard=EACH)


@pytest.fixture
def settings(server, tmp_path) -> dict[str, Any]:
    """Grows from 4 to 16 within 480 images; the cache holds no more than it must, so that shards come and go."""
    manifest = ShardSet(server.served).manifest
    room = 16 * sum(sizes_of(manifest, manifest.shards[0]).values()) / 1e9
    return {
        "run": {"name": "small", "dir": str(tmp_path / "runs"), "total_kimg": 0.48},
        "data": {
            "shards": server.url,
            "workers": 0,
            "mirror": True,
            "stream": {
                "cache": str(tmp_path / "cache"),
                "cache_gb": room,
                "lanes": 8,
                "downloads": 3,
                "patience": 60,
            },
        },
        "recipe": {
            "name": "progressive",
            "resolution": RESOLUTION,
            "labels": True,
            "generator": {"latent_size": 8, "fmap_base": 64, "fmap_max": 8},
            "discriminator": {"fmap_base": 64, "fmap_max": 8},
            "schedule": {"stable_kimg": 0.096, "fade_kimg": 0.096},
        },
        "batch": {"size": 16, "per_device": 8},
        "precision": "fp32",
        "checkpoint": {"every_kimg": 0.1, "keep": 2},
        "samples": {"every_kimg": 0.2, "count": 4},
        "ema": {"half_life_batches": 5},
        "evaluation": {"every_kimg": 0.24, "count": 16},
        "tracking": {"every_kimg": 0.032},
    }


def run(settings: dict[str, Any], **blocks: dict[str, Any]) -> bool:
    changed = copy.deepcopy(settings)
    for block, values in blocks.items():
        changed[block].update(values)
    configuration = Configuration.model_validate(changed)
    return train(configuration, to_yaml(configuration))


def latest(tmp_path: Path, name: str = "small") -> checkpoint.Checkpoint:
    saved = checkpoint.latest(tmp_path / "runs" / name / "checkpoints")
    assert saved is not None
    return saved


def test_the_order_is_said_recorded_and_kept(settings, tmp_path, folder, capfd):
    assert run(settings, run={"total_kimg": 0.112})
    assert "sample order: 8 lanes of streamed shards" in capfd.readouterr().err
    assert latest(tmp_path).state["order"] == {"kind": "lanes", "lanes": 8}
    other = settings["data"]["stream"] | {"lanes": 4}
    with pytest.raises(UsageError, match=r"'8 lanes of streamed shards', and now it is '4 lanes of streamed shards'"):
        run(settings, data={"stream": other})
    with pytest.raises(UsageError, match=r"'8 lanes of streamed shards', and now it is 'by offset'"):
        run(settings, data={"shards": str(folder)})
    assert run(settings, run={"total_kimg": 0.128}, data={"stream": settings["data"]["stream"] | {"downloads": 2}})


def test_a_checkpoint_from_before_orders_were_recorded_was_read_by_offset(settings, tmp_path, folder, capfd):
    assert run(settings, run={"total_kimg": 0.112}, data={"shards": str(folder)})
    assert "sample order: by offset" in capfd.readouterr().err
    state = latest(tmp_path).folder / "state.json"
    content = json.loads(state.read_text())
    assert content.pop("order") == {"kind": "offset"}
    state.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"'by offset', and now it is '8 lanes of streamed shards'"):
        run(settings)
    assert run(settings, run={"total_kimg": 0.128}, data={"shards": str(folder)})


def test_automatic_lanes_follow_the_batch_at_full_resolution(settings, tmp_path):
    stream = {"cache": str(tmp_path / "cache")}
    assert run(
        settings, run={"total_kimg": 0.048}, data={"stream": stream}, batch={"size": {4: 24, 16: 20}, "per_device": 4}
    )
    assert latest(tmp_path).state["order"] == {"kind": "lanes", "lanes": 40}


def test_a_cache_that_is_too_small_leaves_no_run_behind(settings, tmp_path):
    with pytest.raises(UsageError, match=r"but 9 lanes .* set data\.stream\.cache_gb to"):
        run(settings, data={"stream": settings["data"]["stream"] | {"lanes": 9}})
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_resumed_run_over_a_store_that_goes_away_ends_with_the_same_weights(settings, tmp_path, server):
    assert run(settings)
    assert run(settings, run={"name": "again", "total_kimg": 0.208}, data={"workers": 1})
    server.kill()
    threading.Timer(1.5, server.start).start()
    assert run(settings, run={"name": "again"}, data={"workers": 2})
    assert latest(tmp_path, "again").state["files"] == latest(tmp_path).state["files"]


# --- real processes ---------------------------------------------------------------------------------------------------

Process = subprocess.Popen[str]


def start(config: Path, *overrides: str) -> Process:
    command = [sys.executable, "-m", "hires_gan", "train", str(config), *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: Process) -> str:
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def nimg(folder: Path, process: Process) -> int:
    try:
        status = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return -1
    return status["nimg"] if status["process"] == process.pid else -1


def wait_for(condition: Callable[[], bool], process: Process) -> None:
    while not condition():
        assert process.poll() is None or condition(), "the run ended before it could be disturbed"
        time.sleep(0.001)


@pytest.mark.slow
def test_kill_9_and_a_killed_store_change_no_weight(settings, tmp_path, server):
    """Four kills of the run, at any moment of downloads and steps; the store dies twice, stutters and dribbles."""
    settings["run"]["total_kimg"] = 0.96
    settings["tracking"]["every_kimg"] = 0.016
    settings["data"]["workers"] = 1
    settings["data"]["stream"]["patience"] = 600  # longer than this waits for what must not wait for the store
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    said = finish(start(config, "run.name=whole", f"data.stream.cache={tmp_path / 'other'}"))
    assert "sample order: 8 lanes of streamed shards" in said
    folder = tmp_path / "runs" / "killed"
    for moment in (0, 150, 400, 700):
        server.fail(pause={"*": 0.01})
        process = start(config, "run.name=killed")
        wait_for(lambda moment=moment, process=process: nimg(folder, process) >= moment, process)
        if moment in (150, 400):
            server.kill()
            server.start()
        server.fail(status={"shard-000003.tar": 503}, cut={"shard-000004.tar": 5000})
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=240)  # its workers hold the other end, and do not wait for the store
        server.fail()
    finish(start(config, "run.name=killed"))
    whole, killed = latest(tmp_path, "whole"), latest(tmp_path, "killed")
    assert whole.nimg == killed.nimg == 960
    assert killed.state["files"] == whole.state["files"]
    # What is left half done belongs to nobody any more: whoever makes room next clears it away.
    for shard in kept_shards(tmp_path / "cache"):
        drop_leftovers(shard)
    assert list((tmp_path / "cache").rglob("*.partial")) == []


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [{"workers": 0}, {"workers": 1}, {"decoder": "dali-cpu", "threads": 1}])
def test_a_signal_while_the_store_hangs_leaves_a_checkpoint_that_goes_on_exactly(settings, tmp_path, server, decoder):
    if "decoder" in decoder:
        pytest.importorskip("nvidia.dali")
    settings["evaluation"]["every_kimg"] = None
    settings["checkpoint"]["every_kimg"] = 50
    settings["tracking"]["every_kimg"] = 0.016
    settings["data"] |= decoder
    stream = settings["data"]["stream"] | {"cache_gb": 1}
    settings["data"]["stream"] = stream
    assert run(settings, run={"name": "whole"}, data={"stream": stream | {"cache": str(tmp_path / "other")}})
    needed = [LaneOrder(0, [EACH] * (COUNT // EACH), 8).row(sample) // EACH for sample in range(COUNT)]
    stops = next(sample for sample in range(COUNT) if needed[sample] not in needed[:16]) // 16 * 16
    shards = enumerate(ShardSet(server.served).manifest.shards)
    late = [shard.name for number, shard in shards if number not in needed[:16]]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    server.fail(hang=dict.fromkeys(late, 600))
    process = start(config)
    wait_for(lambda: nimg(tmp_path / "runs" / "small", process) > 0, process)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 75, said
    assert latest(tmp_path).nimg == stops
    server.fail()
    assert run(settings)
    assert latest(tmp_path).state["files"] == latest(tmp_path, "whole").state["files"]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_with_a_checkpoint_and_leaves_no_process(settings, tmp_path, server):
    settings["run"]["total_kimg"] = 50
    settings["data"]["workers"] = 1
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "hires_gan", "train", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: nimg(tmp_path / "runs" / "small", process) > 60, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 75, said
    time.sleep(1)
    left = subprocess.run(
        ["ps", "-o", "pid=,cmd=", "-g", str(process.pid)], capture_output=True, text=True, check=False
    )
    assert "hires_gan" not in left.stdout
