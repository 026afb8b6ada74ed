"""Generating from a checkpoint: the same seed is the same image, and whatever does not fit is one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import hires_gan
from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.generate import generate
from hires_gan.inference.images import enlarge, from_uint8, grid, limit_side, save_png, to_uint8
from hires_gan.inference.loading import find
from hires_gan.inference.request import parse_seeds
from hires_gan.networks.growth import Growth, Width
from hires_gan.networks.progressive import Generator

RECIPE = {
    "name": "progressive",
    "resolution": 16,
    "generator": {"latent_size": 8, "fmap_base": 64, "fmap_max": 8},
}


@pytest.fixture
def make_checkpoint(tmp_path):
    def make(classes: int = 0, alpha: float = 1.0, name: str = "run", **recipe) -> checkpoint.Checkpoint:
        torch.manual_seed(0)
        network = Generator(16, 8, classes, Width(64, 8))
        state = {
            "configuration": {"recipe": RECIPE | recipe, "precision": "fp32"},
            "inference": {"resolution": 8, "alpha": alpha, "classes": classes},
        }
        return checkpoint.write(
            tmp_path / name / "checkpoints", 100, {"generator.average": dict(network.state_dict())}, state
        )

    return make


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_seed_gives_its_image_in_any_list(make_checkpoint, tmp_path):
    saved = make_checkpoint()
    files = generate(str(saved.folder), range(5), tmp_path / "five")
    assert [path.name for path in files] == [f"seed{n:010d}.png" for n in range(5)] + ["grid.png"]
    alone = generate(str(saved.folder.parent.parent), [3], tmp_path / "one")
    assert np.array_equal(pixels(files[3]), pixels(alone[0]))
    assert not np.array_equal(pixels(files[2]), pixels(files[3]))
    whole = pixels(files[-1])
    assert whole.shape == (2 * 8, 3 * 8, 3)
    assert np.array_equal(whole[8:, :8], pixels(files[3]))
    assert not whole[8:, 16:].any()


def test_the_image_is_the_averaged_generators(make_checkpoint, tmp_path):
    saved = make_checkpoint(alpha=0.25)
    network = hires_gan.load(saved.folder)
    assert not network.training
    assert network.growth == Growth(8, 0.25)
    torch.manual_seed(0)
    by_hand = Generator(16, 8, 0, Width(64, 8))
    latents = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(network(latents), by_hand(latents, None, Growth(8, 0.25)))


def test_truncation_is_refused_because_there_is_nothing_to_truncate(make_checkpoint, tmp_path):
    saved = make_checkpoint()
    with pytest.raises(UsageError, match=r"--truncation is 0\.7, but Progressive GAN has no space of styles"):
        generate(str(saved.folder), [0], tmp_path / "out", truncation=0.7)
    assert not (tmp_path / "out").exists()


def test_classes(make_checkpoint, tmp_path):
    saved = make_checkpoint(classes=3, name="classes", labels=True)
    one = generate(str(saved.folder), [0], tmp_path / "1", label=1)
    two = generate(str(saved.folder), [0], tmp_path / "2", label=2)
    assert not np.array_equal(pixels(one[0]), pixels(two[0]))
    with pytest.raises(UsageError, match=r"choose one of its 3 classes with --class 0\.\.2"):
        generate(str(saved.folder), [0], tmp_path / "x")
    with pytest.raises(UsageError, match="--class is 3; the generator has the classes 0 to 2"):
        generate(str(saved.folder), [0], tmp_path / "x", label=3)
    with pytest.raises(UsageError, match="--class is given, but the generator is unconditional"):
        generate(str(make_checkpoint().folder), [0], tmp_path / "x", label=0)
    assert not (tmp_path / "x").exists()


def test_best_and_latest_stand_for_what_they_name(make_checkpoint, tmp_path):
    first = make_checkpoint()
    root = first.folder.parent
    kept = {key: first.state[key] for key in ("configuration", "inference")}
    checkpoint.write(root, 200, {"generator.average": first.tensors("generator.average")}, kept)
    with pytest.raises(
        UsageError, match=r"checkpoints/best is not there; give another checkpoint, or the run's folder"
    ):
        find(root / "best")
    checkpoint.point(root, "best", first.folder.name)
    assert (find(root / "best").nimg, find(str(root / "latest")).nimg, find(root.parent).nimg) == (100, 200, 200)
    generate(str(root / "best"), [0], tmp_path / "out")
    assert (tmp_path / "out" / "grid.png").exists()
    checkpoint.point(root, "best", "000000000300")
    with pytest.raises(UsageError, match=r"checkpoints/best names 000000000300, which is not there; give another"):
        find(root / "best")
    (root / "latest").unlink()
    assert find(root / "latest").nimg == 200, "as of the run's folder"
    assert find(make_checkpoint(name="best").folder.parents[1]).nimg == 100, "a run may be called so"
    with pytest.raises(UsageError, match="there is no folder .*nowhere/best"):
        find(tmp_path / "nowhere" / "best")


def test_what_is_no_checkpoint_is_said(make_checkpoint, tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        generate(str(tmp_path / "nothing"), [0], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no checkpoint and no run with a checkpoint"):
        generate(str(tmp_path / "empty"), [0], tmp_path / "out")
    other = make_checkpoint(name="other", generator={"latent_size": 9, "fmap_base": 64, "fmap_max": 8})
    with pytest.raises(Failure, match=r"another architecture: dense\.weight is \[128, 8\], not \[128, 9\]"):
        generate(str(other.folder), [0], tmp_path / "out")
    stranger = make_checkpoint(name="stranger")
    state = json.loads((stranger.folder / "state.json").read_text())
    state["configuration"]["recipe"]["name"] = "stylegan9"
    (stranger.folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(Failure, match="holds a stylegan9 model with settings that this version does not know"):
        generate(str(stranger.folder), [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_cannot_be_used_is_said_before_anything_is_loaded(device, tmp_path):
    with pytest.raises(UsageError, match=rf"--device is {device}, which cannot be used on this machine; give .*cpu"):
        generate(str(tmp_path / "nothing"), [0], tmp_path / "out", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda can be used on this machine")
def test_cuda_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--device is cuda, which cannot be used on this machine; give cpu, since"):
        generate(str(tmp_path / "nothing"), [0], tmp_path / "out", device="cuda")


def test_what_cannot_be_written_is_one_sentence(make_checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    with pytest.raises(Failure, match=r"^cannot write .*seed0000000000\.png: Not a directory; make room, or choose"):
        generate(str(make_checkpoint().folder), [0], out)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(Failure, match=r"folder\.png: Is a directory"):
        save_png(tmp_path / "folder.png", np.zeros((2, 2, 3), np.uint8))


def test_a_large_picture_is_reduced_by_box_averages():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    assert limit_side(pixels, 10) is pixels
    assert limit_side(pixels) is pixels
    halves = limit_side(pixels, 9)
    assert halves.dtype == np.uint8
    assert halves.flags.writeable
    exact = pixels.reshape(3, 2, 5, 2, 3).mean((1, 3))
    assert np.abs(halves - exact).max() <= 0.5
    assert limit_side(pixels, 4).shape == (2, 4, 3)  # by 3: the last column averages what is left


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("1, 5 ,8-9", [1, 5, 8, 9]), ("4294967295", [2**32 - 1])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1..4", "4294967296", "1,,2"])
def test_wrong_seeds(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_pixels_are_rounded_and_clipped():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, -1 + 0.6 / 127.5]).reshape(1, 1, 1, -1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 255, 255, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_become_what_they_were(dtype):
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    images = from_uint8(pixels, dtype)
    assert images.dtype is dtype and images.stride() == pixels.stride()
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_uint8(images), pixels)
    assert pixels[0, 0].flatten().tolist() == list(range(256))


def test_enlarging_repeats_pixels():
    x = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert enlarge(x, 4)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert grid(torch.full((1, 3, 2, 2), 7, dtype=torch.uint8)).shape == (2, 2, 3)
