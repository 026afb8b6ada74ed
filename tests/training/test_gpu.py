"""What only a GPU can show: whole runs on it, batches copied ahead, and checkpoints that cross between devices."""

from __future__ import annotations

import copy
import math
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hires_gan import checkpoint
from hires_gan.config import Configuration, to_yaml
from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.inference.generate import generate
from hires_gan.inference.images import to_uint8
from hires_gan.training.feed import Feed
from hires_gan.training.run import train
from hires_gan.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def run(settings: dict[str, Any]) -> bool:
    configuration = Configuration.model_validate(settings)
    return train(configuration, to_yaml(configuration))


def weights(folder: Path) -> dict[str, str]:
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None
    return saved.state["files"]  # type: ignore[no-any-return]


def test_n_and_on_to_2n_is_2n_on_a_gpu(settings, write_config, tmp_path):
    """Promise 1, in real processes: determinism is set for a whole process, before CUDA begins."""
    settings["run"]["deterministic"] = True
    config = write_config(settings)

    def process(name: str, kimg: float) -> dict[str, str]:
        command = [
            sys.executable,
            "-m",
            "hires_gan",
            "train",
            str(config),
            f"run.name={name}",
            f"run.total_kimg={kimg}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return weights(tmp_path / "runs" / name)

    whole = process("whole", 0.48)
    assert process("again", 0.48) == whole
    for name, first in (("border", 0.192), ("fade", 0.144)):
        assert process(name, first) != whole
        assert process(name, 0.48) == whole


def test_batches_are_those_of_the_cpu_with_their_labels(shards):
    """More batches than are copied ahead, of two resolutions, so that memory is used again in between."""
    opened = ShardSet(shards)
    requests = [Request(range(16 * i, 16 * (i + 1)), 8 if i < 6 else 16) for i in range(12)]
    data = DataSettings(shards=str(shards), workers=2, mirror=True)

    def taken(device: str) -> Iterator[tuple[Tensor, Tensor]]:
        with Loader(opened, data, 0, max(request.size for request in requests)) as loader:
            feed = Feed(loader.batches(iter(requests)), torch.device(device), torch.float32)
            for _ in requests:
                batch = feed.take()
                assert batch.images.device.type == batch.labels.device.type == device
                yield batch.images.cpu().clone(), batch.labels.cpu().clone()
            with pytest.raises(StopIteration):
                feed.take()

    pairs = list(zip(taken("cpu"), taken(DEVICE), strict=True))
    assert len(pairs) == 12
    assert {int(label) for (_, labels), _ in pairs for label in labels} == {0, 1}
    for (images, labels), (moved, moved_labels) in pairs:
        assert torch.equal(moved_labels, labels)
        assert torch.equal(to_uint8(moved), to_uint8(images))
        # A GPU multiplies by the reciprocal where the CPU divides: the last bit may differ.
        torch.testing.assert_close(moved, images, rtol=0, atol=1e-6)


def test_dali_on_the_gpu_shows_the_same_images(shards):
    """These are PNG files, which DALI decodes to the very same pixels; through the feed, onto the device."""
    pytest.importorskip("nvidia.dali")
    opened, device = ShardSet(shards), torch.device(DEVICE)
    requests = [Request(range(16 * i, 16 * (i + 1)), 8 if i < 6 else 16) for i in range(12)]

    def taken(decoder: str) -> Iterator[Tensor]:
        data = DataSettings(shards=str(shards), decoder=decoder, mirror=True)
        with Loader(opened, data, 0, max(request.size for request in requests), device=device) as loader:
            feed = Feed(loader.batches(iter(requests)), device, torch.float32)
            for _ in requests:
                yield feed.take().images.clone()
                feed.copy_ahead()

    for one, other in zip(taken("dali"), taken("torchvision"), strict=True):
        assert torch.equal(one, other)


def test_a_run_whose_images_dali_decodes_on_the_gpu(settings, tmp_path, capfd):
    pytest.importorskip("nvidia.dali")
    settings["data"]["decoder"] = "dali"
    assert run(settings)
    assert "decodes on cuda" in capfd.readouterr().err
    saved = checkpoint.latest(tmp_path / "runs" / "small" / "checkpoints")
    assert saved.nimg == 480
    assert saved.state["progress"]["nonfinite"] == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_with_finite_losses(settings, tmp_path, precision):
    settings["precision"] = precision
    assert run(settings)
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        losses = store.execute("select value, is_nan from metrics where key like 'loss/%'").fetchall()
        assert store.execute("select count(*) from metrics where key = 'loss/generator'").fetchone()[0] == 15
    assert all(math.isfinite(value) and not is_nan for value, is_nan in losses)
    saved = checkpoint.latest(tmp_path / "runs" / "small" / "checkpoints")
    assert saved.state["progress"]["nonfinite"] == 0
    assert all(value.isfinite().all() for value in saved.tensors("generator.average").values())


@pytest.mark.parametrize("performance", ["fast", "reference"])
def test_between_logs_a_run_waits_for_nothing(settings, performance, monkeypatch):
    """Steps of a run as they are: batches copied ahead, all phases, the average, the sums of what is logged."""
    small, step, checked = {"fmap_base": 64, "fmap_max": 8}, Trainer._step, list[int]()
    generator = {"latent_size": 8, "w_size": 8, "mapping_layers": 2, **small}
    settings |= {"performance": performance, "precision": "bf16"}
    settings["recipe"] = {"name": "stylegan2", "resolution": 16, "generator": generator, "discriminator": small}
    settings["run"]["total_kimg"] = 0.784  # 49 steps of 16

    def watched(self, planned, feed):
        warm = planned.nimg >= 33 * 16  # what is made on first use is made, and phases are recorded
        torch.cuda.set_sync_debug_mode("error" if warm else "default")
        try:
            step(self, planned, feed)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        checked.extend([planned.nimg] * warm)

    monkeypatch.setattr(Trainer, "_step", watched)
    assert run(settings)
    assert len(checked) == 16  # path lengths and R1 among them


def test_images_are_those_of_the_cpu(settings, tmp_path):
    settings["run"]["total_kimg"] = 0.24
    run(settings)
    folder = str(tmp_path / "runs" / "small")
    here = generate(folder, range(8), tmp_path / "cpu", device="cpu")
    there = generate(folder, range(8), tmp_path / DEVICE, device=DEVICE)
    assert [path.name for path in here] == [path.name for path in there]
    for one, other in zip(here, there, strict=True):
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (one, other))
        # TF32, which is torch's default for convolutions, keeps 10 bits of the mantissa.
        assert np.abs(a - b).max() <= 2
        assert np.abs(a - b).mean() < 0.2


def test_an_interrupted_run_goes_on_with_the_very_state_that_was_saved(settings, tmp_path, monkeypatch):
    step, restore = Trainer._step, Trainer.restore
    restored: dict[str, dict[str, Tensor]] = {}
    before: dict[str, dict[str, Tensor]] = {}

    def step_and_signal(self, planned, feed):
        if planned.nimg == 224:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        step(self, planned, feed)

    def restore_and_look(self, saved):
        restore(self, saved)
        assert saved.nimg == 240
        restored.update(copy.deepcopy(self.backend.tensors()))
        before.update({name: saved.tensors(name) for name in restored})

    monkeypatch.setattr(Trainer, "_step", step_and_signal)
    assert not run(settings)
    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(Trainer, "restore", restore_and_look)
    assert run(settings)
    assert {"generator.optimizer", "discriminator.optimizer"} <= restored.keys()
    for part, tensors in restored.items():
        assert tensors.keys() == before[part].keys()
        for name, value in tensors.items():
            on_device = value.device.type == DEVICE
            assert on_device or name.endswith(".step"), f"{part}: {name}"
            assert torch.equal(value.cpu(), before[part][name]), f"{part}: {name}"
    assert any(value.any() for name, value in restored["generator.optimizer"].items() if name.endswith("exp_avg_sq"))
