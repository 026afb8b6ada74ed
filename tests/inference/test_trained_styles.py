"""What a trained StyleGAN and StyleGAN2 are used for, through the command line: the demos' own checkpoints."""

from __future__ import annotations

import itertools
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_runs import DEMOS, hires_gan, trained
from PIL import Image

import hires_gan as package
from hires_gan.randomness import Purpose, RandomSource

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(1800)]

SIDE = 32


@pytest.fixture(scope="module", params=DEMOS)
def run(request, tmp_path_factory) -> Path:
    demo = trained(request.param, tmp_path_factory)
    assert demo.done.returncode == 0, demo.done.stderr
    return demo.folder


def made(*arguments: str | Path, **environment: str) -> str:
    """What a command that has to succeed says."""
    done = hires_gan(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=float)


def name(seed: int) -> str:
    return f"seed{seed:010d}"


def generated(run: Path, out: Path, *options: str) -> np.ndarray:
    """The images of eight seeds: [8, r, r, 3]."""
    made("generate", run, "--seeds", "0-7", "--out", out, *options)
    return np.stack([pixels(out / f"{name(seed)}.png") for seed in range(8)])


def spread(images: np.ndarray) -> float:
    return float(np.abs(images - images.mean(0)).mean())


def mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).mean())


def test_truncation_draws_the_images_towards_one(run, tmp_path):
    whole, half, none = (generated(run, tmp_path / psi, "--truncation", psi) for psi in ("1", "0.5", "0"))
    assert (none == none[0]).all()
    assert 0 < spread(half) < 0.9 * spread(whole)
    middle = none[0]
    assert all(mean_square(a, middle) < mean_square(b, middle) for a, b in zip(half, whole, strict=True))


Cells = dict[tuple[int, int], np.ndarray]


def mixed(run: Path, out: Path, rows: range, columns: range, layers: str) -> Cells:
    """The cells of a table, by the seeds of row and column."""
    given = ["--mix-rows", f"{rows[0]}-{rows[-1]}", "--mix-columns", f"{columns[0]}-{columns[-1]}"]
    made("generate", run, *given, "--mix-layers", layers, "--out", out)
    assert pixels(out / "mix.png").shape == ((len(rows) + 1) * SIDE, (len(columns) + 1) * SIDE, 3)
    cells = itertools.product(rows, columns)
    return {(r, c): pixels(out / f"row_{name(r)}_column_{name(c)}.png") for r, c in cells}


def apart(cells: Cells, *, same_row: bool, same_column: bool) -> float:
    """The mean squared difference between two cells, over all pairs that have a row or a column in common, or not."""
    pairs = itertools.combinations(cells.items(), 2)
    wanted = (same_row, same_column)
    return float(np.mean([mean_square(a, b) for (i, a), (j, b) in pairs if (i[0] == j[0], i[1] == j[1]) == wanted]))


def test_mixtures_resemble_those_that_they_share_styles_with(run, tmp_path):
    cells = mixed(run, tmp_path, range(8), range(10, 18), "coarse")
    strangers = apart(cells, same_row=False, same_column=False)
    of_row = apart(cells, same_row=True, same_column=False)
    of_column = apart(cells, same_row=False, same_column=True)
    assert max(of_row, of_column) < strangers
    assert of_row + of_column < 1.6 * strangers


def test_coarse_styles_of_one_and_the_others_of_another_are_one_image_from_both_sides(run, tmp_path):
    coarse = mixed(run, tmp_path / "coarse", range(4), range(10, 14), "coarse")
    middle = mixed(run, tmp_path / "middle", range(10, 14), range(4), "middle")
    assert all(np.array_equal(cell, middle[column, row]) for (row, column), cell in coarse.items())


def test_a_film_leads_through_its_images_in_small_steps(run, tmp_path):
    (tmp_path / "bin").mkdir()  # without ffmpeg the frames become files
    film = ["--seeds", "0-2", "--interpolate", "--frames", "12", "--loop"]
    said = made("generate", run, *film, "--out", tmp_path / "film", PATH=str(tmp_path / "bin"))
    assert "ffmpeg" in said
    frames = np.stack([pixels(path) for path in sorted((tmp_path / "film" / "interpolation").iterdir())])
    images = generated(run, tmp_path / "images")[:3]
    assert len(frames) == 36
    assert np.array_equal(frames[::12], images)
    steps = [mean_square(a, b) for a, b in zip(frames, np.roll(frames, -1, 0), strict=True)]
    ends = [mean_square(a, b) for a, b in zip(images, np.roll(images, -1, 0), strict=True)]
    assert min(steps) > 0
    assert max(steps) < 0.5 * min(ends)


def test_a_photograph_is_found_in_the_styles_and_not_in_the_noise(run, tmp_path):
    photograph = resources.files("skimage") / "data" / "astronaut.png"
    search = ["--distance", "pixel", "--steps", "300", "--space", "w+"]
    made("project", run, str(photograph), *search, "--out", tmp_path / "found")
    distance = json.loads((tmp_path / "found" / "projected.json").read_text())["distance"]
    assert distance["end"] < 0.6 * distance["start"]
    target = pixels(tmp_path / "found" / "comparison.png")[:, :SIDE]
    found = pixels(tmp_path / "found" / "projected.png")
    assert all(
        mean_square(found, target) < 0.5 * mean_square(image, target) for image in generated(run, tmp_path / "a")
    )
    styles = tmp_path / "found" / "projected.safetensors"
    made("generate", run, "--styles", styles, "--noise", "none", "--out", tmp_path / "b")
    made("generate", run, "--seeds", "0", "--truncation", "0", "--out", tmp_path / "mean")
    without_noise = pixels(tmp_path / "b" / "styles0000.png")
    assert mean_square(without_noise, target) < 0.6 * mean_square(pixels(tmp_path / "mean" / f"{name(0)}.png"), target)


def latents_of(seed: int, size: int) -> torch.Tensor:
    """As docs/using.md says that `generate` draws them."""
    return RandomSource(seed).normal(Purpose.LATENT_SAMPLE, torch.tensor([0]), (size,))


def test_onnx_makes_the_images_of_generate(run, tmp_path):
    import onnxruntime

    made("export", run, "--format", "onnx", "--out", tmp_path / "onnx")
    network = package.load(run, device="cpu")
    latents = torch.cat([latents_of(seed, network.latent_size) for seed in range(8)])
    session = onnxruntime.InferenceSession(
        str(tmp_path / "onnx" / "generator.onnx"), providers=["CPUExecutionProvider"]
    )
    (images,) = session.run(None, {"latents": latents.numpy(), "truncation": np.array(0.7, np.float32)})
    with torch.no_grad():
        assert np.abs(images - network(latents, truncation=0.7).numpy()).max() < 1e-3
    shown = (images * 127.5 + 127.5).round().clip(0, 255).transpose(0, 2, 3, 1)
    assert np.abs(shown - generated(run, tmp_path / "images", "--truncation", "0.7")).max() <= 1


def test_exported_weights_make_the_same_files(run, tmp_path):
    made("export", run, "--format", "safetensors", "--out", tmp_path / "weights")
    ours = generated(run, tmp_path / "ours", "--truncation", "0.7")
    theirs = generated(tmp_path / "weights", tmp_path / "theirs", "--truncation", "0.7")
    assert np.array_equal(ours, theirs)
    assert spread(ours) > 0
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert names == ["generator.average.safetensors", "state.json"]
