"""Films: where they lead, that they stream, and what becomes of ffmpeg's failures."""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from style_checkpoints import latents, shown, write_progressive_checkpoint, write_style_checkpoint

import hires_gan
from hires_gan.errors import Failure, UsageError
from hires_gan.inference import video
from hires_gan.inference.generate import answer, generate
from hires_gan.inference.interpolate import slerp
from hires_gan.inference.request import Film, Given, Look, Request
from hires_gan.inference.styles_file import Styles, write_styles
from hires_gan.inference.video import FrameFolder, open_film


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(write_style_checkpoint(tmp_path_factory.mktemp("film")).folder)


@pytest.fixture(scope="module")
def progressive(tmp_path_factory) -> str:
    return str(write_progressive_checkpoint(tmp_path_factory.mktemp("progressive")).folder)


@pytest.fixture
def no_ffmpeg(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def film(saved: str, given: Given, wanted: Film, out: Path, look: Look | None = None) -> Path:
    (path,) = answer(saved, Request(given, look or Look(), film=wanted), out)
    return path


def frames(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_a_film_through_w_passes_the_images(saved, no_ffmpeg, tmp_path):
    path = film(saved, Given([3, 8, 1]), Film(frames=4), tmp_path / "film", Look(0.8))
    images = [np.asarray(Image.open(p)) for p in generate(saved, [3, 8, 1], tmp_path / "images", truncation=0.8)]
    found = frames(path)
    assert len(found) == 2 * 4 + 1
    for number, image in zip((0, 4, 8), images, strict=False):
        assert np.array_equal(found[number], image)
    network = hires_gan.load(saved)
    a, b = (network.mapping(latents(seed)) for seed in (8, 1))
    between = network.w_average + 0.8 * (0.75 * a + 0.25 * b - network.w_average)
    expected = shown(network.synthesis(between[:, None].expand(-1, network.num_ws, -1)))
    assert np.abs(found[5].astype(int) - expected).max() <= 1


def test_a_loop_goes_on_to_the_first_image(saved, no_ffmpeg, tmp_path):
    found = frames(film(saved, Given([3, 8]), Film(frames=4, loop=True), tmp_path / "film"))
    assert len(found) == 2 * 4
    for there, back in ((1, 7), (2, 6), (3, 5)):
        assert np.abs(found[there].astype(int) - found[back]).max() <= 1


@pytest.mark.parametrize("family", ["styles", "progressive"])
def test_a_film_through_the_latents(family, saved, progressive, no_ffmpeg, tmp_path):
    model = {"styles": saved, "progressive": progressive}[family]
    space = "z" if family == "styles" else None  # all that Progressive GAN has
    found = frames(film(model, Given([0, 1]), Film(frames=3, space=space), tmp_path / "film"))
    images = [np.asarray(Image.open(path)) for path in generate(model, [0, 1], tmp_path / "images")]
    assert len(found) == 4
    assert np.array_equal(found[0], images[0])
    assert np.array_equal(found[3], images[1])
    a, b = latents(0)[0].double(), latents(1)[0].double()
    angle = math.acos(a @ b / a.norm() / b.norm())
    direction = (math.sin(2 * angle / 3) * a / a.norm() + math.sin(angle / 3) * b / b.norm()) / math.sin(angle)
    middle = (direction * (2 * a.norm() + b.norm()) / 3).float()[None]
    assert np.abs(found[1].astype(int) - shown(hires_gan.load(model)(middle))).max() <= 1


def test_films_that_cannot_be(saved, progressive, no_ffmpeg, tmp_path):
    write_styles(tmp_path / "one.safetensors", Styles(torch.zeros(1, 6, 12)))
    with pytest.raises(UsageError, match="--interpolate needs two images or more, and there is 1"):
        film(saved, Given([5]), Film(), tmp_path / "out")
    with pytest.raises(UsageError, match="--space is w, but Progressive GAN has no such space; give --space z"):
        film(progressive, Given([0, 1]), Film(space="w"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"--space is z, but the styles in .*one\.safetensors have no latents"):
        film(saved, Given([0], [tmp_path / "one.safetensors"]), Film(space="z"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_between_two_files_the_noise_turns_too(saved, no_ffmpeg, tmp_path):
    network = hires_gan.load(saved)
    torch.manual_seed(0)
    noise = [[torch.randn(1, 1, h, w) for h, w in network.synthesis.noise_shapes] for _ in range(2)]
    for number, seed in enumerate((3, 8)):
        write_styles(tmp_path / f"{number}.safetensors", Styles(network.styles(latents(seed)), tuple(noise[number])))
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    found = frames(film(saved, Given([5], files), Film(frames=2), tmp_path / "film"))
    ends = [np.asarray(Image.open(p)) for p in generate(saved, [5], tmp_path / "ends", styles=files)]
    for number, image in zip((0, 2, 4), ends, strict=False):
        assert np.array_equal(found[number], image)
    middle = torch.lerp(network.styles(latents(3)), network.styles(latents(8)), 0.5)
    turned = [slerp(a, b, 0.5) for a, b in zip(*noise, strict=True)]
    assert np.array_equal(found[1], shown(network.synthesis(middle, turned)))
    assert 0.8 < turned[-1].std() < 1.2  # a mean would have 0.7


def test_random_noise_is_each_frames_own(saved, no_ffmpeg, tmp_path):
    found = frames(film(saved, Given([3, 3]), Film(frames=2), tmp_path / "film", Look(noise="random")))
    assert not np.array_equal(found[0], found[1])
    again = frames(film(saved, Given([3, 3]), Film(frames=2), tmp_path / "again", Look(noise="random")))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


VECTORS = st.lists(st.floats(-10, 10), min_size=3, max_size=3).filter(lambda v: sum(x * x for x in v) > 1e-2)


@settings(deadline=None)
@given(VECTORS, VECTORS, st.floats(0, 1))
def test_spherical_interpolation(one, other, t):
    a, b = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)
    assert torch.allclose(slerp(a, b, t), slerp(b, a, 1 - t), atol=1e-6)
    cosine = float(a @ b / a.norm() / b.norm())
    if abs(cosine) < 0.999:
        middle = slerp(a, b, t)
        assert abs(middle.norm() - ((1 - t) * a.norm() + t * b.norm())) < 1e-6
        turned = math.acos(max(-1.0, min(1.0, float(a @ middle / a.norm() / middle.norm()))))
        assert abs(turned - t * math.acos(cosine)) < 1e-5


def test_spherical_interpolation_without_an_angle():
    a = torch.tensor([1.0, 2.0])
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)
    assert torch.allclose(slerp(a, -a, 0.25), 0.5 * a)
    assert torch.allclose(slerp(a, torch.zeros(2), 0.5), 0.5 * a)
    assert torch.equal(slerp(torch.zeros(2), a, 0.0), torch.zeros(2))


def test_frames_are_written_as_they_come_and_none_of_an_earlier_film_stays(tmp_path, capsys):
    def picture(value: int) -> np.ndarray:
        return np.full((4, 4, 3), value, np.uint8)

    with FrameFolder(tmp_path / "film") as folder:
        for value in range(5):
            folder.add(picture(value))
            assert len(list((tmp_path / "film").iterdir())) == value + 1
    (tmp_path / "film" / "frames.txt").write_text("mine")
    with FrameFolder(tmp_path / "film") as folder:
        folder.add(picture(9))
    assert sorted(path.name for path in (tmp_path / "film").iterdir()) == ["frame000000.png", "frames.txt"]
    assert "4 frames of an earlier, longer film" in capsys.readouterr().err


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """A program named ffmpeg that does what a line of shell says; the film's path is its last argument."""

    def make(line: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir(exist_ok=True)
        program = folder / "ffmpeg"
        told = f'printf "%s\\n" "$@" > "{folder}/arguments"'
        program.write_text(f'#!/bin/sh\nfor last; do :; done\nout="${{last#file:}}"\n{told}\n{line}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return make


def test_ffmpeg_gets_the_raw_frames_and_no_shell(saved, fake_ffmpeg, tmp_path):
    fake_ffmpeg('cat > "$out"')
    out = tmp_path / "a folder; touch x $(touch y)"
    path = film(saved, Given([3, 8]), Film(frames=4, fps=24), out)
    assert path == out / "interpolation.mp4"
    assert [p.name for p in out.iterdir()] == ["interpolation.mp4"]
    raw = np.frombuffer(path.read_bytes(), np.uint8).reshape(5, 16, 16, 3)
    images = [np.asarray(Image.open(p)) for p in generate(saved, [3, 8], tmp_path / "images")]
    assert np.array_equal(raw[0], images[0])
    assert np.array_equal(raw[4], images[1])
    arguments = (tmp_path / "fake" / "arguments").read_text().splitlines()
    for option, value in [("-c:v", "libx264"), ("-pix_fmt", "rgb24"), ("-video_size", "16x16"), ("-framerate", "24")]:
        assert arguments[arguments.index(option) + 1] == value
    assert arguments[len(arguments) - 1 - arguments[::-1].index("-pix_fmt") + 1] == "yuv420p"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("echo 'Unknown encoder libx264' >&2; exit 3", 3),
        ("cat > /dev/null; echo 'Unknown encoder libx264' >&2; exit 4", 4),
    ],
)
def test_ffmpegs_failure_is_one_sentence_and_leaves_nothing(line, code, saved, fake_ffmpeg, tmp_path):
    fake_ffmpeg(f'echo part > "$out"; {line}')
    said = rf"ffmpeg could not write .*interpolation\.mp4 \(it ended with {code}\): Unknown encoder libx264; make room"
    with pytest.raises(Failure, match=said):
        film(saved, Given([3, 8]), Film(frames=300), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_program_that_cannot_start_is_said(saved, tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_text("#!/nowhere/at/all\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        Failure, match=r"cannot start .*ffmpeg: No such file or directory; mend it, or take it off PATH"
    ):
        film(saved, Given([3, 8]), Film(frames=2), tmp_path / "out")


def test_an_interrupted_film_ends_its_program_and_keeps_the_old_one(fake_ffmpeg, tmp_path):
    fake_ffmpeg('echo $$ > "$out.pid"; exec cat > "$out"')
    (tmp_path / "film.mp4").write_text("the old one")
    with pytest.raises(KeyboardInterrupt), open_film(tmp_path, "film", 30) as writer:
        writer.add(np.zeros((4, 4, 3), np.uint8))
        process = writer._process
        raise KeyboardInterrupt
    assert process.returncode is not None
    assert (tmp_path / "film.mp4").read_text() == "the old one"
    assert not (tmp_path / ".film.mp4.partial").exists()


@pytest.fixture
def real_ffmpeg(tmp_path, monkeypatch) -> str:
    """The program of the machine, or the one that comes with the development packages, on the PATH."""
    found = shutil.which("ffmpeg")
    if found is None:
        from imageio_ffmpeg import get_ffmpeg_exe

        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ffmpeg").symlink_to(get_ffmpeg_exe())
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        found = str(tmp_path / "bin" / "ffmpeg")
    return found


def test_the_film_that_ffmpeg_makes_has_the_colours(real_ffmpeg, tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 200, 40), (255, 255, 255), (0, 0, 0)]
    with open_film(tmp_path, "film", 10) as writer:
        for colour in colours:
            writer.add(np.full((64, 64, 3), colour, np.uint8))
    assert isinstance(writer, video.Mp4)
    command = [
        real_ffmpeg,
        "-loglevel",
        "error",
        "-i",
        tmp_path / "film.mp4",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "pipe:1",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    found = np.frombuffer(raw, np.uint8).reshape(-1, 64, 64, 3)
    assert len(found) == len(colours)
    assert np.abs(found.mean((1, 2)) - np.array(colours)).max() < 3
