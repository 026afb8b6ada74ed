"""Films from style to style: where they lead, and the strip of steps in the grid."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pytest
import torch
from munit_checkpoints import drawn, images_of, photograph, pixels, shown, translator, write_munit_checkpoint

from hires_gan.inference.interpolate import slerp
from hires_gan.inference.translate import translate
from hires_gan.inference.translation.film import even, steps_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(write_munit_checkpoint(tmp_path_factory.mktemp("munit")).folder)


@pytest.fixture
def no_ffmpeg(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_between_drawn_styles_the_way_is_an_arc(saved, no_ffmpeg, tmp_path):
    sources = [photograph(tmp_path / "in" / f"p{number}.png", (32, 32), number) for number in range(2)]
    files = translate(saved, sources, "b", tmp_path / "out", styles=3, interpolate=True, frames=5, seed=2)
    assert [path.name for path in files] == ["p0_to_b", "p1_to_b", "grid.png"]
    network, styles = translator(), [drawn(2, number) for number in range(3)]
    way = [slerp(a, b, step / 5) for a, b in pairwise(styles) for step in range(5)] + styles[-1:]
    grid = pixels(files[-1])
    assert grid.shape == (2 * 32, 9 * 32, 3)
    for row, folder in enumerate(files[:2]):
        frames = [pixels(path) for path in sorted(folder.iterdir())]
        expected = [shown(network(images_of(pixels(sources[row])), style, "a", "b")) for style in way]
        assert len(frames) == 11
        for frame, image in zip(frames, expected, strict=True):
            assert np.abs(frame.astype(int) - image).max() <= 1
        for end in (0, 5, 10):
            assert np.array_equal(frames[end], expected[end])
        cells = np.split(grid[32 * row : 32 * row + 32], 9, axis=1)
        assert np.array_equal(cells[0], pixels(sources[row]))
        for cell, number in zip(cells[1:], [0, 1, 3, 4, 6, 7, 9, 10], strict=True):
            assert np.array_equal(cell, frames[number])


def test_between_encoded_styles_the_way_is_straight_and_a_loop_closes(saved, no_ffmpeg, tmp_path):
    source = photograph(tmp_path / "p.png", (33, 32))
    guides = [photograph(tmp_path / f"g{number}.png", (32, 32), 5 + number) for number in range(2)]
    options = {"interpolate": True, "frames": 2, "fps": 7, "loop": True}
    files = translate(saved, [source], "b", tmp_path / "out", style=guides, **options)
    network = translator()
    one, other = (network.generator("b").encode_style(images_of(pixels(guide))) for guide in guides)
    padded = np.pad(pixels(source), ((0, 0), (0, 3), (0, 0)), "reflect")
    content = network.generator("a").encode_content(images_of(padded))
    frames = [pixels(path) for path in sorted(files[0].iterdir())]
    assert len(frames) == 4
    for frame, style in zip(
        frames, (one, torch.lerp(one, other, 0.5), other, torch.lerp(one, other, 0.5)), strict=True
    ):
        image = shown(network.generator("b").decode(content, style))[:, :33]
        assert frame.shape == (32, 34, 3)
        assert np.abs(frame[:, :33].astype(int) - image).max() <= 1
        assert np.array_equal(frame[:, 33], frame[:, 32])
    assert pixels(files[-1]).shape == (32, 5 * 32, 3)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_with_ffmpeg_it_is_an_mp4(saved, tmp_path):
    source = photograph(tmp_path / "p.png", (37, 32))
    files = translate(saved, [source], "b", tmp_path / "out", styles=2, interpolate=True, frames=3, fps=12)
    assert [path.name for path in files] == ["p_to_b.mp4", "grid.png"]
    command = ["ffmpeg", "-i", str(files[0]), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(done.stdout) == 4 * 38 * 32 * 3
    assert b"12 fps" in done.stderr


@pytest.mark.parametrize(
    ("frames", "steps"),
    [(2, [0, 1]), (8, [*range(8)]), (91, [0, 13, 26, 39, 51, 64, 77, 90]), (9, [0, 1, 2, 3, 5, 6, 7, 8])],
)
def test_the_grid_shows_evenly_spaced_steps(frames, steps):
    assert steps_of(frames) == steps


def test_frames_have_even_sides():
    frame = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    wide = even(frame)
    assert wide.shape == (4, 6, 3)
    assert np.array_equal(wide[:3, :5], frame)
    assert np.array_equal(wide[3], wide[2])
    assert np.array_equal(even(frame[:2, :4]), frame[:2, :4])
