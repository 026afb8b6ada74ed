"""Projection: the generator's own images are found again, photographs are fitted, and the method is the paper's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from style_checkpoints import style_network, write_progressive_checkpoint, write_style_checkpoint

import hires_gan
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.distances import DistanceOptions, PixelDistance
from hires_gan.inference.generate import generate
from hires_gan.inference.project import project
from hires_gan.inference.projection import (
    ProjectionSettings,
    center_of_w,
    computing_in,
    noise_correlation,
    project_styles,
)
from hires_gan.inference.target import open_target
from hires_gan.randomness import Purpose, RandomSource

PIXEL = DistanceOptions("pixel")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(write_style_checkpoint(tmp_path_factory.mktemp("project")).folder)


@pytest.fixture(scope="module")
def progressive(tmp_path_factory) -> str:
    return str(write_progressive_checkpoint(tmp_path_factory.mktemp("progressive")).folder)


@pytest.fixture(scope="module")
def own_image(saved, tmp_path_factory):
    """An image that the generator made itself, of the seed 7."""
    return generate(saved, [7], tmp_path_factory.mktemp("own"))[0]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def record(folder) -> dict:
    return json.loads((folder / "projected.json").read_text())


@pytest.fixture(scope="module")
def found(saved, own_image, tmp_path_factory):
    """The folders of one projection into W and one into W+."""
    root = tmp_path_factory.mktemp("found")
    for space in ("w", "w+"):
        project(saved, own_image, root / space, ProjectionSettings(space, 200), PIXEL)
    return {space: root / space for space in ("w", "w+")}


def test_the_generators_own_image_is_found_again(found, own_image):
    for folder in found.values():
        distance = record(folder)["distance"]
        assert distance["name"] == "pixel"
        assert distance["end"] < 0.3 * distance["start"]
        mean_square = np.square(pixels(own_image).astype(float) - pixels(folder / "projected.png")).mean()
        assert distance["mean_square"] == pytest.approx(mean_square)
        assert distance["psnr"] == pytest.approx(10 * math.log10(255**2 / mean_square))
    assert record(found["w+"])["distance"]["end"] <= record(found["w"])["distance"]["end"]


def test_the_styles_of_w_are_one_and_those_of_w_plus_many(found):
    one, many = (load_file(found[space] / "projected.safetensors")["ws"] for space in ("w", "w+"))
    assert one.shape == many.shape == (1, 6, 12)
    assert torch.equal(one, one[:, :1].expand_as(one))
    assert not torch.equal(many[:, 0], many[:, 1])


def test_the_comparison_shows_target_projection_and_difference(found, own_image):
    whole = pixels(found["w"] / "comparison.png")
    target, made, difference = (whole[:, 16 * part : 16 * (part + 1)].astype(int) for part in range(3))
    assert np.array_equal(target, pixels(own_image))
    assert np.array_equal(made, pixels(found["w"] / "projected.png"))
    assert np.array_equal(difference, np.abs(target - made))


def test_generate_makes_the_same_image_of_the_file(found, saved, tmp_path):
    for number, folder in enumerate(found.values()):
        file = folder / "projected.safetensors"
        made = generate(saved, [], tmp_path / str(number), styles=[file])
        assert made[0].read_bytes() == (folder / "projected.png").read_bytes()
        drawn = generate(saved, [], tmp_path / f"{number}-drawn", styles=[file], truncation=0.5)
        assert drawn[0].read_bytes() != made[0].read_bytes()


def test_a_seed_gives_the_same_files(saved, own_image, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        project(saved, own_image, tmp_path / name, ProjectionSettings(steps=12, seed=seed), PIXEL)
    for name in ("projected.safetensors", "projected.png", "comparison.png", "projected.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "projected.safetensors").read_bytes() != (
        tmp_path / "c" / "projected.safetensors"
    ).read_bytes()
    assert record(tmp_path / "c")["settings"]["seed"] == 2


@pytest.mark.parametrize("grown", [16, 8])
def test_stylegan_of_2018(grown, tmp_path):
    saved = str(write_style_checkpoint(tmp_path / "run", "stylegan", classes=2, grown=grown).folder)
    own = generate(saved, [7], tmp_path / "own", label=1)[0]
    project(saved, own, tmp_path / "found", ProjectionSettings("w+", 60), PIXEL, label=1)
    distance = record(tmp_path / "found")["distance"]
    assert distance["end"] < 0.7 * distance["start"]
    again = generate(saved, [], tmp_path / "again", styles=[tmp_path / "found" / "projected.safetensors"], label=1)
    assert again[0].read_bytes() == (tmp_path / "found" / "projected.png").read_bytes()
    assert pixels(again[0]).shape == (grown, grown, 3)
    with pytest.raises(UsageError, match=r"choose one of its 2 classes with --class 0\.\.1"):
        project(saved, own, tmp_path / "x", ProjectionSettings(steps=1), PIXEL)


def test_bf16_looks_for_styles_too_and_the_image_is_that_of_generate(saved, own_image, tmp_path):
    project(saved, own_image, tmp_path / "bf16", ProjectionSettings("w+", 60), PIXEL, precision="bf16")
    project(saved, own_image, tmp_path / "fp32", ProjectionSettings("w+", 60), PIXEL)
    low, full = record(tmp_path / "bf16"), record(tmp_path / "fp32")
    assert (low["precision"], full["precision"]) == ("bf16", "fp32")
    assert low["distance"]["end"] < 0.7 * low["distance"]["start"]
    assert low["distance"]["start"] != full["distance"]["start"]
    again = generate(saved, [], tmp_path / "again", styles=[tmp_path / "bf16" / "projected.safetensors"])
    assert again[0].read_bytes() == (tmp_path / "bf16" / "projected.png").read_bytes()


def test_the_network_is_left_as_it_was(saved):
    network = hires_gan.load(saved)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dtypes = network.synthesis.dtypes
    told = []
    with computing_in(network, "bf16"):
        assert network.synthesis.dtypes == {4: torch.bfloat16, 8: torch.bfloat16, 16: torch.bfloat16}
        distance = PixelDistance(torch.zeros(1, 3, 16, 16))
        project_styles(network, distance, ProjectionSettings(steps=25), report=lambda *now: told.append(now))
    assert network.synthesis.dtypes == dtypes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [step for step, _ in told] == [10, 20, 25]


def test_the_centre_of_w_is_that_of_ten_thousand_latents():
    network = style_network(classes=2)
    center, spread = center_of_w(network, torch.tensor([1]), 5)
    w = np.concatenate(
        [
            network.mapping(
                RandomSource(5).normal(Purpose.LATENT_CENTER, torch.arange(first, first + 2500), (8,)),
                torch.ones(2500, dtype=torch.int64),
            ).numpy()
            for first in range(0, 10_000, 2500)
        ]
    ).astype(np.float64)
    assert np.allclose(center, w.mean(0), atol=1e-5)
    assert spread == pytest.approx(math.sqrt(np.mean(np.sum((w - w.mean(0)) ** 2, axis=1))), rel=1e-5)


def test_the_schedule_is_the_papers():
    settings = ProjectionSettings()
    for step, rate in [(0, 0.0), (25, 0.05), (50, 0.1), (400, 0.1), (750, 0.1), (875, 0.05), (1000, 0.0)]:
        assert settings.learning_rate_at(step / 1000) == pytest.approx(rate, abs=1e-12)
    for step, deviation in [(0, 0.05), (375, 0.0125), (750, 0.0), (900, 0.0)]:
        assert settings.jitter_at(step / 1000) == pytest.approx(deviation, abs=1e-12)


def literal_correlation(noise: np.ndarray) -> float:
    """Every sum written out."""
    total, side = 0.0, len(noise)
    while True:
        across = sum(noise[y, x] * noise[y, (x - 1) % side] for y in range(side) for x in range(side)) / side**2
        down = sum(noise[y, x] * noise[(y - 1) % side, x] for y in range(side) for x in range(side)) / side**2
        total += across**2 + down**2
        if side <= 8:
            return total
        half = [
            [noise[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() * 2 for x in range(side // 2)] for y in range(side // 2)
        ]
        noise, side = np.array(half), side // 2


@pytest.mark.parametrize("side", [4, 8, 32])
def test_the_correlation_of_noise(side):
    noise = np.random.default_rng(side).normal(size=(side, side))
    assert noise_correlation(torch.tensor(noise)[None, None]).item() == pytest.approx(literal_correlation(noise))


def test_known_correlations():
    assert noise_correlation(torch.ones(1, 1, 8, 8)) == 2.0
    assert noise_correlation(torch.ones(1, 1, 16, 16)) == 2.0 + 2 * 16.0  # ones become twos below
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1.0
    assert noise_correlation(board[None, None]) == 2.0


def test_noise_keeps_its_mean_and_variance_and_gains_no_structure(found):
    noise = {n: t for n, t in load_file(found["w"] / "projected.safetensors").items() if n != "ws"}
    assert sorted(noise) == [f"noise.{number}" for number in range(5)]
    for part in noise.values():
        assert part.mean().abs() < 1e-5
        assert part.square().mean() == pytest.approx(1.0, abs=1e-4)
    assert noise_correlation(noise["noise.4"]) < 1e-3


def test_a_distance_that_is_not_finite_is_said(saved):
    network = hires_gan.load(saved)
    with pytest.raises(Failure, match="the distance has become nan; is the checkpoint whole"):
        project_styles(network, lambda images: images.mean((1, 2, 3)) * float("nan"), ProjectionSettings(steps=3))


def photograph(path, size, **options):
    array = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(array).resize(size).save(path, **options)
    return path


def test_a_picture_of_another_size_is_cut_and_resized_and_that_is_said(saved, tmp_path, capsys):
    path = photograph(tmp_path / "wide.jpg", (80, 40))
    project(saved, path, tmp_path / "out", ProjectionSettings(steps=1), PIXEL)
    said = capsys.readouterr().err
    assert "wide.jpg: of 80x40 pixels, the central 40x40 are taken" in said
    assert "wide.jpg: reduced from 40x40 to the generator's 16x16" in said
    with Image.open(path) as picture:
        square = picture.convert("RGB").crop((20, 0, 60, 40)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(tmp_path / "out" / "comparison.png")[:, :16], np.asarray(square))
    open_target(photograph(tmp_path / "small.png", (8, 8)), 16)
    assert "small.png: enlarged from 8x8 to the generator's 16x16" in capsys.readouterr().err
    open_target(photograph(tmp_path / "same.png", (16, 16)), 16)
    assert capsys.readouterr().err == ""


def test_pictures_are_turned_upright_and_lose_their_alpha(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photograph(tmp_path / "turned.png", (16, 16), exif=exif)
    with Image.open(path) as picture:
        upright = np.asarray(picture.rotate(-90))
    assert np.array_equal(open_target(path, 16), upright)
    assert "turned upright, as its EXIF data says" in capsys.readouterr().err
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.webp", lossless=True)
    assert (open_target(tmp_path / "clear.webp", 16) == 255).all()
    assert "its transparent parts are laid over white" in capsys.readouterr().err


def test_pictures_that_cannot_be_used(saved, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    photograph(tmp_path / "cut.png", (64, 64))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    for name, said in [
        ("none.png", r"cannot be read \(No such file or directory\); give a picture"),
        ("", r"cannot be read \(Is a directory\)"),
        ("text.png", "cannot be used: the file is no image of a known kind; give another picture"),
        ("empty.png", "cannot be used: the file is empty"),
        ("cut.png", "cannot be used: the image is damaged"),
    ]:
        with pytest.raises(UsageError, match=f"IMAGE is .*{said}"):
            project(saved, tmp_path / name, tmp_path / "out", ProjectionSettings(steps=1), PIXEL)
    photograph(tmp_path / "large.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="cannot be used: it has more than 178956970 pixels"):
        open_target(tmp_path / "large.png", 16)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_projected(saved, own_image, progressive, tmp_path):
    with pytest.raises(UsageError, match="is of Progressive GAN, which has no styles to look for"):
        project(progressive, own_image, tmp_path / "out", ProjectionSettings(steps=1), PIXEL)
    with pytest.raises(UsageError, match="--steps is 0; at least 1 is allowed"):
        project(saved, own_image, tmp_path / "out", ProjectionSettings(steps=0), PIXEL)
    with pytest.raises(UsageError, match="--seed is -1; numbers from 0"):
        project(saved, own_image, tmp_path / "out", ProjectionSettings(steps=1, seed=-1), PIXEL)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match=r"cannot write .*file: File exists; make room, or choose a folder"):
        project(saved, own_image, tmp_path / "file", ProjectionSettings(steps=10**9), PIXEL)  # said at once


@pytest.mark.shared
def test_a_real_photograph(saved, shared_data, tmp_path):
    photo = sorted((shared_data / "photos_highres").rglob("*.jpg"))[0]
    project(saved, photo, tmp_path, ProjectionSettings("w+", 60), PIXEL)
    assert record(tmp_path)["distance"]["end"] < record(tmp_path)["distance"]["start"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(precision, saved, own_image, tmp_path):
    settings = ProjectionSettings("w+", 200)
    project(saved, own_image, tmp_path / "found", settings, PIXEL, precision=precision, device="cuda")
    distance = record(tmp_path / "found")["distance"]
    assert distance["end"] < 0.3 * distance["start"]
    styles = [tmp_path / "found" / "projected.safetensors"]
    for device in ("cuda", "cpu"):
        made = generate(saved, [], tmp_path / device, styles=styles, device=device)
        assert np.abs(pixels(made[0]).astype(int) - pixels(tmp_path / "found" / "projected.png")).max() <= 3
