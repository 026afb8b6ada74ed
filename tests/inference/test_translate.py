"""Translating pictures: each image is what the networks make of content and style, and the grid shows all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from munit_checkpoints import drawn, images_of, photograph, pixels, shown, translator, write_munit_checkpoint
from PIL import Image
from typer.testing import CliRunner

import hires_gan
from hires_gan.cli import app
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.translate import translate
from hires_gan.inference.translation.grid import Grid
from hires_gan.networks.layers import cross_fade
from hires_gan.networks.munit import Level
from hires_gan.networks.translation import Translator


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(write_munit_checkpoint(tmp_path_factory.mktemp("munit")).folder)


@pytest.fixture
def two(tmp_path):
    """A folder of two pictures that need no resizing."""
    for number in range(2):
        photograph(tmp_path / "in" / f"p{number}.png", (32, 32), number)
    return tmp_path / "in"


def cells(grid: np.ndarray, side: int) -> list[list[np.ndarray]]:
    rows = [grid[top : top + side] for top in range(0, len(grid), side)]
    return [[row[:, left : left + side] for left in range(0, grid.shape[1], side)] for row in rows]


def test_the_checkpoint_is_a_translator(saved):
    network = hires_gan.load(saved)
    assert isinstance(network, Translator)
    assert network.domains == ("a", "b")
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(network(image, drawn(0, 0), "a", "b"), translator()(image, drawn(0, 0), "a", "b"))


def test_drawn_styles_are_the_same_for_all_pictures(saved, two, tmp_path):
    files = translate(saved, [two], "b", tmp_path / "out", styles=3, seed=5)
    names = [f"p{row}_to_b_style{column:04d}.png" for row in range(2) for column in range(3)]
    assert [path.name for path in files] == [*names, "grid.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "grid.png"])
    network = translator()
    table = cells(pixels(files[-1]), 32)
    assert [len(row) for row in table] == [4, 4]
    for row in range(2):
        source = pixels(two / f"p{row}.png")
        assert np.array_equal(table[row][0], source)
        for column in range(3):
            made = pixels(files[3 * row + column])
            assert np.array_equal(made, shown(network(images_of(source), drawn(5, column), "a", "b")))
            assert np.array_equal(table[row][1 + column], made)
    assert len({path.read_bytes() for path in files}) == 7


def test_a_style_depends_on_seed_and_number_alone(saved, two, tmp_path):
    alone = translate(saved, [two / "p1.png"], "b", tmp_path / "alone", styles=1)
    many = translate(saved, [two], "b", tmp_path / "many")
    assert len(many) == 2 * 4 + 1
    assert alone[0].read_bytes() == many[4].read_bytes()
    other = translate(saved, [two / "p1.png"], "b", tmp_path / "other", styles=1, seed=1)
    assert other[0].read_bytes() != alone[0].read_bytes()


def test_a_guided_style_is_that_of_the_target_domain(saved, two, tmp_path):
    guides = [photograph(tmp_path / "guides" / f"g{number}.png", (32, 32), 7 + number) for number in range(2)]
    files = translate(saved, [two], "a", tmp_path / "out", style=[guides[1], tmp_path / "guides"])
    assert [path.name for path in files[:2]] == ["p0_to_a_by_g1.png", "p0_to_a_by_g0.png"]
    network = translator()
    table = cells(pixels(files[-1]), 32)
    assert (table[0][0] == 255).all()
    for column, guide in enumerate(reversed(guides)):
        assert np.array_equal(table[0][1 + column], pixels(guide))
        style = network.generator("a").encode_style(images_of(pixels(guide)))
        for row in range(2):
            content = network.generator("b").encode_content(images_of(pixels(two / f"p{row}.png")))
            made = pixels(files[2 * row + column])
            assert np.array_equal(made, shown(network.generator("a").decode(content, style)))
            assert np.array_equal(table[1 + row][1 + column], made)
        assert np.array_equal(table[1][0], pixels(two / "p0.png"))


def test_a_style_picture_of_another_size_is_resized_and_that_is_said(saved, two, tmp_path, capsys):
    guide = photograph(tmp_path / "guide.png", (90, 60), 3)
    (made, _) = translate(saved, [two / "p0.png"], "b", tmp_path / "out", style=[guide])
    said = capsys.readouterr().err
    assert "guide.png: resized with the Lanczos filter, the shorter side to 32 pixels (from 90x60 to 48x32)" in said
    network = translator()
    with Image.open(guide) as picture:
        style = network.generator("b").encode_style(images_of(np.asarray(picture.resize((48, 32), 1))))
    content = network.generator("a").encode_content(images_of(pixels(two / "p0.png")))
    assert np.array_equal(pixels(made), shown(network.generator("b").decode(content, style)))


def test_within_a_domain_it_is_a_reconstruction_in_another_style(saved, two, tmp_path):
    files = translate(saved, [two / "p0.png"], "a", tmp_path / "out", source="a", styles=1)
    expected = translator()(images_of(pixels(two / "p0.png")), drawn(0, 0), "a", "a")
    assert np.array_equal(pixels(files[0]), shown(expected))


def continued(source: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Pixel by pixel: reflected at the last one, or that one again where there are too few."""
    count = source.shape[axis]
    few = side - count >= count
    return np.take(source, [n if n < count else count - 1 if few else 2 * (count - 1) - n for n in range(side)], axis)


@pytest.mark.parametrize(("wide", "high"), [(45, 34), (20, 33), (3, 40), (1, 1), (16, 17), (9, 8)])
def test_sides_that_do_not_fit_are_padded_and_cut(wide, high, saved, tmp_path, capsys):
    path = photograph(tmp_path / "p.png", (wide, high))
    files = translate(saved, [path], "b", tmp_path / "out", styles=1, size="keep")
    width, height = (max(16, -(-side // 4) * 4) for side in (wide, high))
    said = capsys.readouterr().err
    assert "p.png: padded by reflection to what the network takes, and cut to its own size again " in said
    assert f"({wide}x{high}, to {width}x{height})" in said
    source = continued(continued(pixels(path), 0, height), 1, width)
    made = shown(translator()(images_of(source), drawn(0, 0), "a", "b"))[:high, :wide]
    assert np.array_equal(pixels(files[0]), made)


@pytest.mark.parametrize(("size", "given", "expected"), [(None, (96, 64), (48, 32)), (48, (64, 96), (48, 72))])
def test_the_shorter_side_becomes_what_is_asked_for(size, given, expected, saved, tmp_path, capsys):
    path = photograph(tmp_path / "p.png", given)
    files = translate(saved, [path], "b", tmp_path / "out", styles=1, size=size)
    with Image.open(path) as picture:
        source = np.asarray(picture.resize(expected, Image.Resampling.LANCZOS))
    made = pixels(files[0])
    assert np.array_equal(made, shown(translator()(images_of(source), drawn(0, 0), "a", "b")))
    assert f"the shorter side to {min(expected)} pixels" in capsys.readouterr().err
    cell = min(expected)
    assert pixels(files[-1]).shape == (cell, 2 * cell, 3)


@pytest.mark.parametrize("upright", [False, True])
def test_pictures_that_are_no_squares_lie_on_white(upright, saved, tmp_path):
    path = photograph(tmp_path / "p.png", (32, 64) if upright else (64, 32))
    files = translate(saved, [path], "b", tmp_path / "out", styles=1)
    table = cells(pixels(files[-1]), 32)
    for cell, source in zip(table[0], (path, files[0]), strict=True):
        with Image.open(source) as picture:
            small = np.asarray(picture.resize((16, 32) if upright else (32, 16), Image.Resampling.LANCZOS))
        lying, shown_as = (cell.swapaxes(0, 1), small.swapaxes(0, 1)) if upright else (cell, small)
        assert np.array_equal(lying[8:24], shown_as)
        assert (lying[:8] == 255).all()
        assert (lying[24:] == 255).all()


def test_the_grid_shows_as_much_as_can_be_seen(capsys):
    grid = Grid(70, 80, 256, header=True)
    said = capsys.readouterr().err
    assert "the grid shows the first 63 of 70 pictures: it is at most 4096 pixels a side" in said
    assert "the grid shows the first 63 of 80 styles" in said
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for row in range(-1, 70):
        for column in range(81):
            if (row, column) != (-1, 0):
                grid.put(row, column, image)
    assert grid.pixels.shape == (4096, 4096, 3)
    assert (grid.pixels[:64, :64] == 255).all()
    assert np.array_equal(grid.pixels[64:, 64:], np.tile(image, (63, 63, 1)))
    assert Grid(2, 20, 1024).pixels.shape == (0, 21 * (4096 // 21), 3)


def test_tiles_give_the_same_image(saved, tmp_path, capsys):
    path = photograph(tmp_path / "p.png", (150, 110))
    whole = translate(saved, [path], "b", tmp_path / "whole", styles=2, size="keep", tile="none")
    assert "tiles" not in capsys.readouterr().err
    tiled = translate(saved, [path], "b", tmp_path / "tiled", styles=2, size="keep", tile=32)
    assert "p.png: computed in tiles of 32x32 pixels (it has 150x110)" in capsys.readouterr().err
    for one, other in zip(whole[:2], tiled[:2], strict=True):
        assert pixels(one).shape == (110, 150, 3)
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1


def test_a_network_that_has_not_grown_to_the_end(tmp_path):
    for name, level in (("half", Level(1)), ("fade", Level(0, 0.5))):
        saved = write_munit_checkpoint(tmp_path / name, 64, level=level)
        side = saved.state["inference"]["resolution"]
        path, guide = (photograph(tmp_path / f"{part}.png", (side, side), len(part)) for part in ("p", "guide"))
        files = translate(str(saved.folder), [path], "b", tmp_path / f"{name}-out", style=[guide])
        network = translator(levels=1)
        network.level = level
        style = network.generator("b").encode_style(cross_fade(images_of(pixels(guide)), level.alpha))
        assert np.array_equal(pixels(files[0]), shown(network(images_of(pixels(path)), style, "a", "b")))
        odd = photograph(tmp_path / "odd.png", (side, side + 3))
        files = translate(str(saved.folder), [path], "b", tmp_path / f"{name}-odd", style=[odd])
        seen = pixels(odd) if name == "half" else np.pad(pixels(odd), ((0, 1), (0, 0), (0, 0)), "reflect")
        style = network.generator("b").encode_style(cross_fade(images_of(seen), level.alpha))
        assert np.array_equal(pixels(files[0]), shown(network(images_of(pixels(path)), style, "a", "b")))
    with pytest.raises(UsageError, match="--tile is 32, but the checkpoint is from within a fade"):
        translate(str(saved.folder), [path], "b", tmp_path / "out", tile=32)


def test_a_white_picture_is_like_any_other(saved, tmp_path):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    for options in ({"styles": 1}, {"style": [tmp_path / "white.png"]}):
        files = translate(saved, [tmp_path / "white.png"], "b", tmp_path / "out", **options)
        assert pixels(files[0]).shape == (32, 32, 3)
    network = translator()
    style = network.generator("b").encode_style(images_of(pixels(tmp_path / "white.png")))
    made = network(images_of(pixels(tmp_path / "white.png")), style, "a", "b")
    assert made.isfinite().all()
    assert np.array_equal(pixels(files[0]), shown(made))


def test_more_domains_than_two(tmp_path):
    """The recipe has two; what a checkpoint lists decides."""
    saved = write_munit_checkpoint(tmp_path / "run", domains=("a", "b", "c"))
    path = photograph(tmp_path / "p.png", (32, 32))
    with pytest.raises(UsageError, match="--from is needed: the checkpoint has the domains a, b, c"):
        translate(str(saved.folder), [path], "b", tmp_path / "out")
    files = translate(str(saved.folder), [path], "b", tmp_path / "out", source="c", styles=1)
    expected = translator(("a", "b", "c"))(images_of(pixels(path)), drawn(0, 0), "c", "b")
    assert np.array_equal(pixels(files[0]), shown(expected))


def test_a_checkpoint_without_a_domain(tmp_path):
    path = photograph(tmp_path / "p.png", (32, 32))
    saved = write_munit_checkpoint(tmp_path / "run", without=lambda name: name.startswith("generator_b."))
    with pytest.raises(Failure, match=r"holds only domain a: the weights of domain b are missing from generator\.aver"):
        translate(str(saved.folder), [path], "b", tmp_path / "out")
    some = write_munit_checkpoint(tmp_path / "some", without=lambda name: "generator_b.style_encoder" in name)
    with pytest.raises(Failure, match=r"of another architecture: generator_b\.style_encoder"):
        translate(str(some.folder), [path], "b", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def command(*arguments):
    return CliRunner().invoke(app, ["translate", *map(str, arguments)])


def test_the_command(saved, two, tmp_path):
    done = command(saved, two, "--to", "b", "--out", tmp_path / "out", "--styles", 2, "--seed", 3, "--device", "cpu")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "grid.png")
    files = translate(saved, [two], "b", tmp_path / "python", styles=2, seed=3)
    for path in files:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    run = write_munit_checkpoint(tmp_path / "run").folder.parent.parent
    options = ["--from", "b", "--size", "16", "--tile", "16", "--style", two / "p0.png", "--style", two / "p1.png"]
    done = command(run, two / "p0.png", two / "p1.png", "--to", "b", "--out", tmp_path / "guided", *options)
    assert done.exit_code == 0
    assert pixels(tmp_path / "guided" / "p1_to_b_by_p0.png").shape == (16, 16, 3)


@pytest.mark.gpu
def test_on_a_gpu(saved, two, tmp_path):
    for options in ({"styles": 2}, {"style": [two]}, {"styles": 2, "tile": 16}):
        ours, theirs = (
            translate(saved, [two], "b", tmp_path / device, device=device, **options) for device in ("cuda", "cpu")
        )
        for one, other in zip(ours, theirs, strict=True):
            assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 2
