"""Checkpoints are whole or not there, equal weights are equal files, and damage is named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hires_gan import checkpoint
from hires_gan.errors import Failure


def parts(seed: int = 0, size: int = 8) -> dict[str, checkpoint.Tensors]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "generator": {"weight": torch.randn(size, size, generator=generator), "count": torch.tensor(3)},
        "generator.optimizer": {"weight.step": torch.tensor(5.0)},
    }


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    values = {
        "bf16": torch.randn(5).bfloat16(),
        "fp64": torch.randn(3, 3, dtype=torch.float64),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    saved = checkpoint.write(tmp_path, 1000, {"generator": values}, {"note": "x"})
    assert saved.folder == tmp_path / "000000001000"
    again = checkpoint.latest(tmp_path)
    assert again.nimg == 1000
    assert again.state["note"] == "x"
    for name, tensor in again.tensors("generator").items():
        assert tensor.dtype == values[name].dtype
        assert torch.equal(tensor.contiguous().view(torch.uint8), values[name].contiguous().view(torch.uint8))


def test_equal_weights_are_equal_files(tmp_path):
    one = checkpoint.write(tmp_path / "a", 1, parts(), {})
    two = checkpoint.write(tmp_path / "b", 2, parts(), {"other": 1})
    other = checkpoint.write(tmp_path / "c", 1, parts(seed=1), {})
    assert one.state["files"] == two.state["files"]
    assert one.state["files"]["generator.safetensors"] != other.state["files"]["generator.safetensors"]


def test_latest_follows_the_pointer_and_survives_its_loss(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    for nimg in (100, 200):
        checkpoint.write(tmp_path, nimg, parts(nimg), {})
    assert (tmp_path / "latest").read_text() == "000000000200\n"
    (tmp_path / "latest").write_text("000000000100\n")
    assert checkpoint.latest(tmp_path).nimg == 100
    (tmp_path / "latest").unlink()
    assert checkpoint.latest(tmp_path).nimg == 200
    (tmp_path / "latest").write_text("000000000999\n")
    assert checkpoint.latest(tmp_path).nimg == 200


def test_the_same_nimg_may_be_written_again(tmp_path):
    checkpoint.write(tmp_path, 100, parts(0), {})
    checkpoint.write(tmp_path, 100, parts(1), {})
    assert torch.equal(checkpoint.latest(tmp_path).tensors("generator")["weight"], parts(1)["generator"]["weight"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000100", "latest"]


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for nimg in range(1, 7):
        checkpoint.write(tmp_path, nimg, parts(), {})
    checkpoint.point(tmp_path, checkpoint.BEST, "000000000002")
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["000000000002", "000000000005", "000000000006"]


def test_prune_after_going_back_keeps_what_was_just_written(tmp_path):
    for nimg in (1, 3):
        checkpoint.write(tmp_path, nimg, parts(), {})
    checkpoint.point(tmp_path, checkpoint.LATEST, "000000000001")
    checkpoint.write(tmp_path, 2, parts(), {})
    checkpoint.prune(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["000000000002", "000000000003"]
    assert checkpoint.latest(tmp_path).nimg == 2


def test_leftovers_of_a_kill_are_not_taken_for_checkpoints(tmp_path):
    checkpoint.write(tmp_path, 5, parts(), {})
    partial = tmp_path / ".000000000009.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    assert checkpoint.latest(tmp_path).nimg == 5
    checkpoint.prune(tmp_path, 1)
    assert not partial.exists()


@pytest.mark.parametrize("where", [0, 40, -1])
def test_a_changed_byte_is_found(tmp_path, where):
    saved = checkpoint.write(tmp_path, 1, parts(), {})
    path = saved.folder / "generator.safetensors"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(Failure, match="is not what was written"):
        checkpoint.latest(tmp_path).tensors("generator")


def test_damage_and_strangers_are_named(tmp_path):
    with pytest.raises(Failure, match="is no checkpoint: it has no state.json"):
        checkpoint.read(tmp_path)
    saved = checkpoint.write(tmp_path, 1, parts(), {})
    with pytest.raises(Failure, match="has no discriminator.safetensors; it holds generator"):
        saved.tensors("discriminator")
    state = json.loads((saved.folder / "state.json").read_text())
    (saved.folder / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(Failure, match="has format 99; this version reads format 1"):
        checkpoint.read(saved.folder)
    (saved.folder / "state.json").write_text('{"format": 1, "nimg"')
    with pytest.raises(Failure, match="is damaged"):
        checkpoint.read(saved.folder)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    saved = checkpoint.write(tmp_path, 1, parts(), {})
    assert sorted(p.suffix for p in saved.folder.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """A real full disk: a tmpfs of 2 MB, in a mount namespace of its own."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import torch
        from hires_gan import checkpoint
        from hires_gan.errors import Failure
        root = Path(sys.argv[1]) / "checkpoints"
        checkpoint.write(root, 1, {"generator": {"weight": torch.zeros(100_000)}}, {})
        try:
            checkpoint.write(root, 2, {"generator": {"weight": torch.zeros(1_000_000)}}, {})
        except Failure as failure:
            print(failure)
        assert sorted(p.name for p in root.iterdir()) == ["000000000001", "latest"], list(root.iterdir())
        assert checkpoint.latest(root).tensors("generator")["weight"].shape == (100_000,)
        """
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && exec {sys.executable} -c '{script}' {disk}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device. It needs 4 MB and" in done.stdout
    assert "are untouched" in done.stdout


def test_a_write_that_does_not_read_back_is_no_checkpoint(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, 1, parts(), {})
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(Failure, match="Input/output error"):
        checkpoint.write(tmp_path, 2, parts(), {})
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path).nimg == 1
    assert [p.name for p in Path(tmp_path).iterdir() if p.name.startswith(".")] == []
