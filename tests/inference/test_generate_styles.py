"""Generating with styles: truncation, noise, files of styles, and what cannot be had."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from style_checkpoints import W, latents, shown, write_progressive_checkpoint, write_style_checkpoint

import hires_gan
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.generate import generate
from hires_gan.inference.images import Table
from hires_gan.inference.request import Look, check_purpose, parse_film, parse_given_images, parse_mixing, parse_seeds
from hires_gan.inference.styles_file import Styles, write_styles

FAMILIES = ["stylegan", "stylegan2"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("styles")
    return {family: str(write_style_checkpoint(root / family, family).folder) for family in FAMILIES}


@pytest.fixture(scope="module")
def progressive(tmp_path_factory) -> str:
    return str(write_progressive_checkpoint(tmp_path_factory.mktemp("progressive")).folder)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_its_image_in_any_list(family, checkpoints, tmp_path):
    many = generate(checkpoints[family], [4, 9, 2, 0], tmp_path / "many", truncation=0.7)
    one = generate(checkpoints[family], [2], tmp_path / "one", truncation=0.7)
    assert many[2].read_bytes() == one[0].read_bytes()
    assert many[2].name == one[0].name == "seed0000000002.png"
    assert many[0].read_bytes() != many[1].read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("truncation", "cutoff"), [(1.0, None), (0.7, None), (0.5, 3), (0.5, 0), (0.5, 6), (-1.0, 2)])
def test_truncation_is_the_papers(family, truncation, cutoff, checkpoints, tmp_path):
    files = generate(checkpoints[family], [5], tmp_path, truncation=truncation, cutoff=cutoff)
    network = hires_gan.load(checkpoints[family])
    w = network.mapping(latents(5))[0]
    layers = [
        network.w_average + truncation * (w - network.w_average) if cutoff is None or layer < cutoff else w
        for layer in range(network.num_ws)
    ]
    expected = shown(network.synthesis(torch.stack(layers)[None]))
    assert np.abs(pixels(files[0]).astype(int) - expected).max() <= 1  # the sum may round otherwise
    assert expected.std() > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_variation_all_seeds_are_one_image(family, checkpoints, tmp_path):
    files = generate(checkpoints[family], [0, 1], tmp_path, truncation=0.0)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("truncation", "said"), [(1.5, "above 1: images vary more"), (-0.5, "below 0: styles lie opposite"), (0.5, "")]
)
def test_truncation_outside_of_0_to_1_is_allowed_and_said(truncation, said, checkpoints, tmp_path, capsys):
    generate(checkpoints["stylegan2"], [0], tmp_path, truncation=truncation)
    noted = [line for line in capsys.readouterr().err.splitlines() if "--truncation" in line]
    assert len(noted) == bool(said)
    assert all(said in line for line in noted)


def test_truncation_that_means_nothing_is_refused(checkpoints, tmp_path):
    with pytest.raises(UsageError, match="--truncation is nan; a finite number is allowed"):
        generate(checkpoints["stylegan2"], [0], tmp_path / "x", truncation=float("nan"))
    with pytest.raises(UsageError, match="--cutoff is given, but --truncation is 1"):
        generate(checkpoints["stylegan2"], [0], tmp_path / "x", cutoff=3)
    for cutoff in (-1, 7):
        with pytest.raises(UsageError, match=rf"--cutoff is {cutoff}; the generator has 6 layers: 0 to 6 are allowed"):
            generate(checkpoints["stylegan2"], [0], tmp_path / "x", truncation=0.5, cutoff=cutoff)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_noise(family, checkpoints, tmp_path):
    made = {
        noise: generate(checkpoints[family], [1, 2], tmp_path / noise, noise=noise)
        for noise in ("constant", "random", "none")
    }
    alone = generate(checkpoints[family], [2], tmp_path / "alone", noise="random")
    assert alone[0].read_bytes() == made["random"][1].read_bytes()
    assert len({files[0].read_bytes() for files in made.values()}) == 3
    network = hires_gan.load(checkpoints[family])
    silent = [torch.zeros(1, 1, h, w) for h, w in network.synthesis.noise_shapes]
    assert np.array_equal(pixels(made["none"][0]), shown(network.synthesis(network.styles(latents(1)), silent)))
    assert np.array_equal(pixels(made["constant"][0]), shown(network(latents(1))))


def test_random_noise_differs_between_seeds_and_not_by_styles_alone(checkpoints, tmp_path):
    files = generate(checkpoints["stylegan2"], [1, 2], tmp_path, truncation=0.0, noise="random")
    assert files[0].read_bytes() != files[1].read_bytes()  # with truncation 0, only the noise is left to differ


def test_a_generator_that_has_not_grown_up(tmp_path):
    saved = write_style_checkpoint(tmp_path / "young", "stylegan", grown=8)
    for noise in ("constant", "random", "none"):
        files = generate(str(saved.folder), [0], tmp_path / noise, truncation=0.5, cutoff=4, noise=noise)
        assert pixels(files[0]).shape == (8, 8, 3)
    with pytest.raises(UsageError, match="--cutoff is 5; the generator has 4 layers"):
        generate(str(saved.folder), [0], tmp_path / "x", truncation=0.5, cutoff=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_of_a_style_generator(family, tmp_path):
    saved = str(write_style_checkpoint(tmp_path / "classes", family, classes=3).folder)
    made = [generate(saved, [0], tmp_path / str(label), label=label, truncation=0.9)[0] for label in range(3)]
    assert len({path.read_bytes() for path in made}) == 3
    with pytest.raises(UsageError, match=r"choose one of its 3 classes with --class 0\.\.2"):
        generate(saved, [0], tmp_path / "x")


def test_styles_from_a_file(checkpoints, tmp_path):
    network = hires_gan.load(checkpoints["stylegan2"])
    ws = torch.cat([network.styles(latents(seed)) for seed in (3, 8)])
    save_file({"ws": ws.contiguous()}, tmp_path / "two.safetensors")
    files = generate(checkpoints["stylegan2"], [8], tmp_path / "out", styles=[tmp_path / "two.safetensors"] * 2)
    names = ["styles0000.png", "styles0001.png", "styles0002.png", "styles0003.png", "seed0000000008.png", "grid.png"]
    assert [path.name for path in files] == names
    assert files[1].read_bytes() == files[3].read_bytes() == files[4].read_bytes()
    assert files[0].read_bytes() == generate(checkpoints["stylegan2"], [3], tmp_path / "three")[0].read_bytes()
    flat = {"styles": [tmp_path / "two.safetensors"], "truncation": 0.4}
    drawn = generate(checkpoints["stylegan2"], [8], tmp_path / "drawn", **flat)
    assert drawn[1].read_bytes() == drawn[2].read_bytes() != files[1].read_bytes()


def test_noise_from_a_file_belongs_to_its_image(checkpoints, tmp_path):
    network = hires_gan.load(checkpoints["stylegan2"])
    torch.manual_seed(1)
    noise = tuple(torch.randn(1, 1, h, w) for h, w in network.synthesis.noise_shapes)
    write_styles(tmp_path / "one.safetensors", Styles(network.styles(latents(3)), noise))
    options = {"styles": [tmp_path / "one.safetensors"]}
    own = generate(checkpoints["stylegan2"], [3], tmp_path / "own", **options)
    assert np.array_equal(pixels(own[0]), shown(network.synthesis(network.styles(latents(3)), noise)))
    assert np.array_equal(pixels(own[1]), shown(network(latents(3))))
    silent = generate(checkpoints["stylegan2"], [3], tmp_path / "none", noise="none", **options)
    assert silent[0].read_bytes() == silent[1].read_bytes()


def good(shape=(1, 6, W)) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": good()}, r"holds no tensor 'ws', but w; give a file that `hires-gan project` wrote"),
        ({"ws": good((1, 14, 512))}, r"holds styles of \[1, 14, 512\]; this generator takes \[n, 6, 12\]: use the che"),
        ({"ws": good((6, W))}, r"holds styles of \[6, 12\]; this generator takes \[n, 6, 12\]"),
        ({"ws": good((0, 6, W))}, r"holds styles of \[0, 6, 12\]"),
        ({"ws": good(), "other": good()}, r"holds other; beside ws, noise\.0 to noise\.4 are allowed"),
        ({"ws": good(), "noise.1": torch.zeros(1, 1, 8, 8)}, r"holds noise for some of the layers"),
        ({"ws": good(), "noise.0": torch.zeros(1, 1, 8, 8)}, r"noise\.0 of \[1, 1, 8, 8\]; this .*\[1, 1, 4, 4\]"),
    ],
)
def test_files_that_do_not_fit(tensors, said, checkpoints, tmp_path):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UsageError, match=said):
        generate(checkpoints["stylegan2"], [], tmp_path / "out", styles=[tmp_path / "bad.safetensors"])
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(checkpoints, tmp_path):
    def attempt(name: str) -> None:
        generate(checkpoints["stylegan2"], [], tmp_path / "out", styles=[tmp_path / name])

    with pytest.raises(UsageError, match="there is no file"):
        attempt("none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with pytest.raises(UsageError, match="is no whole safetensors file"):
        attempt("text.safetensors")
    write_styles(tmp_path / "cut.safetensors", Styles(good()))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-20])
    with pytest.raises(UsageError, match="is no whole safetensors file"):
        attempt("cut.safetensors")
    write_styles(tmp_path / "nan.safetensors", Styles(good() * float("nan")))
    with pytest.raises(Failure, match="values that are not finite, in row 0"):
        attempt("nan.safetensors")


def test_progressive_gan_has_no_styles(progressive, tmp_path):
    for options, said in [
        ({"noise": "none"}, "--noise is none, but Progressive GAN's layers take no noise"),
        ({"truncation": 0.7}, r"--truncation is 0\.7, but Progressive GAN has no space of styles"),
        ({"styles": [tmp_path / "a.safetensors"]}, "--styles is given, but Progressive GAN has no styles"),
    ]:
        with pytest.raises(UsageError, match=said):
            generate(progressive, [0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together():
    for call, said in [
        (lambda: parse_film(False, 10, None, False, None), "--frames is given without --interpolate"),
        (lambda: parse_film(False, None, None, True, None), "--loop is given without --interpolate"),
        (lambda: parse_film(True, 0, None, False, None), "--frames is 0; at least 1 is allowed"),
        (lambda: parse_film(True, None, -1, False, None), "--fps is -1; at least 1 is allowed"),
        (lambda: parse_mixing("0-3", None, None), "--mix-rows is given without --mix-columns"),
        (lambda: parse_mixing(None, "1", None), "--mix-columns is given without --mix-rows"),
        (lambda: parse_mixing(None, None, "fine"), "--mix-layers is given without --mix-rows"),
        (lambda: parse_mixing("a", "1", None), "--mix-rows is 'a'; numbers and ranges are allowed"),
        (lambda: parse_mixing("1", "2", "rough"), "--mix-layers is 'rough'; coarse, middle, fine, or numbers"),
        (lambda: parse_seeds("0-4294967294"), "--seeds names more than 1000000 numbers"),
        (lambda: check_purpose(parse_mixing("0", "1", None), None, ["--seeds"]), "--seeds is given with --mix-rows"),
        (
            lambda: check_purpose(parse_mixing("0", "1", None), parse_film(True, 1, 1, True, "z"), []),
            "--mix-rows and --interpolate are both given",
        ),
        (lambda: Look(float("inf")), "--truncation is inf"),
    ]:
        with pytest.raises(UsageError, match=said):
            call()
    assert parse_given_images(None, []).seeds == list(range(16))
    assert parse_given_images(None, ["a"]).seeds == ()
    assert parse_given_images("3", ["a"]).seeds == [3]


def test_a_table_is_reduced_to_fit():
    table = Table(3, 2, 8, most=12)
    assert (table.factor, table.cell) == (2, 4)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    table.put(1, 1, image)
    assert table.pixels.shape == (12, 8, 3)
    exact = image.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(table.pixels[4:8, 4:8] - exact).max() <= 0.5
    assert (table.pixels[:4] == 255).all()
    assert Table(1, 5000, 4, most=100).pixels.shape == (1, 5000, 3)  # a cell has a pixel at least


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "none", "--out", "x", "--seeds", "3-1"], "--seeds has the range 3-1"),
        (["generate", "none", "--out", "x", "--mix-rows", "0"], "--mix-rows is given without --mix-columns"),
        (["generate", "none", "--out", "x", "--truncation", "nan"], "--truncation is nan"),
        (["generate", "none", "--out", "x", "--fps", "3"], "--fps is given without --interpolate"),
        (["project", "none", "no.png", "--out", "x"], "IMAGE is no.png, which is no file"),
    ],
)
def test_wrong_options_are_said_before_torch_is_loaded(arguments, said, tmp_path):
    code = f"""
import sys
from hires_gan import cli
sys.argv = ["hires-gan", *{arguments!r}]
try:
    cli.main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == "False\n"
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_makes_images_tables_and_films(checkpoints, tmp_path):
    calls = [
        "--seeds 0-4 --truncation 0.7 --cutoff 4 --noise none --out a",
        "--mix-rows 0-1 --mix-columns 5-7 --mix-layers 0,2-3 --out b",
        "--seeds 0-2 --interpolate --frames 2 --loop --fps 5 --out c",
    ]
    code = f"""
import sys
from hires_gan import cli
for call in {calls!r}:
    sys.argv = ["hires-gan", "generate", {checkpoints["stylegan2"]!r}, *call.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
"""
    (tmp_path / "empty").mkdir()  # a PATH without ffmpeg
    environment = {"PATH": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["a/grid.png", "b/mix.png", "c/interpolation"]
    assert pixels(tmp_path / "a" / "grid.png").shape == (32, 48, 3)
    assert pixels(tmp_path / "b" / "mix.png").shape == (3 * 16, 4 * 16, 3)
    assert len(list((tmp_path / "c" / "interpolation").iterdir())) == 6
    assert "the columns give the styles of layers 0,2-3, of 6" in done.stderr
    assert "no ffmpeg on PATH: the frames become PNG files in c/interpolation, for 5 frames in a second" in done.stderr
