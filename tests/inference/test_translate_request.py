"""What `translate` refuses, in one sentence, and the pictures that it passes over."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from munit_checkpoints import photograph, pixels, write_munit_checkpoint
from PIL import Image
from style_checkpoints import write_style_checkpoint
from typer.testing import CliRunner

from hires_gan.cli import app
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.translate import translate
from hires_gan.inference.translation.pictures import distinct_names
from hires_gan.inference.translation.request import check_tile, tile_for


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(write_munit_checkpoint(tmp_path_factory.mktemp("munit")).folder)


@pytest.fixture
def picture(tmp_path):
    return photograph(tmp_path / "in" / "p.png", (32, 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "c"}, "--to is 'c'; the checkpoint has the domains a, b: give one of them$"),
        ({"source": "x"}, "--from is 'x'; the checkpoint has the domains a, b: give one of them$"),
        ({"styles": 0}, "--styles is 0; at least 1 is allowed"),
        ({"styles": 2, "style": ["p.png"]}, "--styles and --style are both given"),
        ({"seed": 2, "style": ["p.png"]}, "--seed is given with --style, where nothing is drawn"),
        ({"seed": -1}, "--seed is -1; numbers from 0"),
        ({"seed": 2**32}, "--seed is 4294967296"),
        ({"size": 0}, "--size is 0; keep, or the pixels of the shorter side"),
        ({"size": "big"}, "--size is big; keep, or the pixels"),
        ({"tile": "-4"}, "--tile is -4; auto, none, or the pixels of a side"),
        ({"tile": 0}, "--tile is 0; auto, none"),
        ({"tile": 1022}, "--tile is 1022; the network allows multiples of 4: give --tile 1024"),
        ({"tile": 1}, "--tile is 1; the network allows multiples of 4: give --tile 4"),
        ({"frames": 3}, "--frames is given without --interpolate"),
        ({"loop": True}, "--loop is given without --interpolate"),
        ({"interpolate": True, "frames": 0}, "--frames is 0; at least 1"),
        ({"interpolate": True, "styles": 1}, "--interpolate needs two styles or more, and --styles is 1"),
        ({"device": "gpu"}, "--device is gpu, which cannot be used on this machine"),
        ({"reference": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_options_that_cannot_be(options, said, saved, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(picture.parent)
    given = {"reference": saved, "sources": [picture], "target": "b", "out": tmp_path / "out"} | options
    with pytest.raises(UsageError, match=said):
        translate(**given)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_family(picture, tmp_path):
    other = str(write_style_checkpoint(tmp_path / "run").folder)
    with pytest.raises(
        UsageError, match="holds a stylegan2 model, which makes images from nothing; use `hires-gan gen"
    ):
        translate(other, [picture], "b", tmp_path / "out")


def test_pictures_that_are_not_there(saved, picture, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    (tmp_path / "text.png").write_text("no picture")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"SRC is .*none\.png, which is not there; give a picture, or a folder of"):
        translate(saved, [tmp_path / "none.png"], "b", out)
    with pytest.raises(
        UsageError, match=r"SRC is .*empty, which holds no pictures directly in it; what counts is \.av"
    ):
        translate(saved, [tmp_path / "empty"], "b", out)
    with pytest.raises(UsageError, match="no SRC is given"):
        translate(saved, [], "b", out)
    with pytest.raises(UsageError, match=r"--style is .*none\.png, which is not there"):
        translate(saved, [picture], "b", out, style=[tmp_path / "none.png"])
    with pytest.raises(UsageError, match=r"--style is .*text\.png, which cannot be used: the file is no image"):
        translate(saved, [picture], "b", out, style=[picture, tmp_path / "text.png"])
    with pytest.raises(UsageError, match=r"--interpolate needs two styles or more, and --style gives only .*p\.png"):
        translate(saved, [picture], "b", out, style=[picture], interpolate=True)


def test_pictures_that_cannot_be_read_are_named_and_skipped(saved, picture, tmp_path, capsys):
    folder = picture.parent
    (folder / "a.png").write_bytes(b"")
    shutil.copy(picture, folder / "q.png")
    (folder / "z.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("none either")
    (folder / ".hidden.png").write_text("none either")
    photograph(folder / "below" / "r.png", (32, 32))
    files = translate(saved, [folder], "b", tmp_path / "out", styles=1)
    said = capsys.readouterr().err
    assert [path.name for path in files] == ["p_to_b_style0000.png", "q_to_b_style0000.png", "grid.png"]
    assert f"{folder / 'a.png'} is skipped: the file is empty" in said
    assert f"{folder / 'z.jpg'} is skipped: the file is no image of a known kind" in said
    assert "2 of 4 pictures could not be used" in said
    assert "in: passed over, since their endings are not those of pictures: 1 files" in said
    assert pixels(files[-1]).shape == (64, 64, 3)


def test_nothing_that_can_be_read(saved, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    done = CliRunner().invoke(
        app, ["translate", saved, str(tmp_path / "text.png"), "--to", "b", "--out", str(tmp_path)]
    )
    assert isinstance(done.exception, Failure)
    assert not isinstance(done.exception, UsageError)  # it is no wrong usage: the exit code is 1
    assert "there is no picture that can be used" in str(done.exception)
    assert not (tmp_path / "grid.png").exists()


def test_what_is_done_to_many_is_said_once_and_counted(saved, tmp_path, capsys):
    for number in range(3):
        photograph(tmp_path / "in" / f"{number}.png", (50, 34))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "9.png", exif=exif)
    translate(saved, [tmp_path / "in"], "b", tmp_path / "out", styles=1)
    said = capsys.readouterr().err
    assert (
        said.count("0.png: resized with the Lanczos filter, the shorter side to 32 pixels (from 50x34 to 47x32)") == 1
    )
    assert "1.png: resized" not in said
    assert "3 of 4 pictures: resized with the Lanczos filter" in said
    assert "3 of 4 pictures: padded by reflection" in said
    assert "9.png: turned upright, as its EXIF data says" in said
    assert "4 pictures: turned upright" not in said


def test_pictures_of_one_name_do_not_overwrite_each_other(saved, picture, tmp_path, capsys):
    others = [photograph(tmp_path / folder / name, (32, 32), k) for k, (folder, name) in enumerate(
        [("x", "p.png"), ("x", "p.webp"), ("y", "p.png"), ("y", "P.PNG")], 1)]  # fmt: skip
    again = picture.parent / ".." / "in" / "p.png"
    files = translate(saved, [picture, *others, picture, again], "b", tmp_path / "out", styles=1)
    names = [path.name.removesuffix("_to_b_style0000.png") for path in files[:-1]]
    assert names == ["p_png", "p_png_2", "p_webp", "p_png_3", "P_PNG_4"]
    assert len({path.read_bytes() for path in files}) == 6
    assert "5 pictures share their names with others" in capsys.readouterr().err
    guided = translate(saved, [picture], "b", tmp_path / "guided", style=others[:2])
    assert [path.name for path in guided[:2]] == ["p_to_b_by_p_png.png", "p_to_b_by_p_webp.png"]


def test_names_that_only_differ_by_numbers(tmp_path):
    paths = [tmp_path / name for name in ("x/a.png", "y/a.png", "a_png_2.png", "b.jpg")]
    assert distinct_names(paths) == ["a_png", "a_png_2", "a_png_2_2", "b"]


def test_two_images_of_one_name_are_refused(saved, tmp_path):
    sources = [photograph(tmp_path / "in" / f"{name}.png", (32, 32)) for name in ("a", "a_to_b_by_c")]
    guides = [photograph(tmp_path / "by" / f"{name}.png", (32, 32)) for name in ("c_to_b_by_d", "d")]
    with pytest.raises(UsageError, match="two images would have one file, by the names of SRC and --style"):
        translate(saved, sources, "b", tmp_path / "out", style=guides)


def test_nothing_that_is_read_is_written_over(saved, picture, tmp_path):
    folder = picture.parent
    translate(saved, [picture], "b", folder, styles=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        UsageError, match=r"--out is .*, where .*grid\.png would be written over; choose another folder"
    ):
        translate(saved, [folder], "b", folder, styles=1)
    with pytest.raises(UsageError, match=r"p_to_b_style0000\.png would be written over"):
        translate(saved, [picture, folder / "p_to_b_style0000.png"], "b", folder, styles=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_said_before_the_work(saved, picture, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match=r"cannot write .*file: File exists; make room, or choose a folder"):
        translate(saved, [picture], "b", tmp_path / "file")


def test_a_picture_that_would_be_too_large_is_skipped(saved, picture, tmp_path, capsys):
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(picture.parent / "line.png")
    files = translate(saved, [picture.parent], "b", tmp_path / "out", styles=1, size=256, device="cpu")
    assert [path.name for path in files] == ["p_to_b_style0000.png", "grid.png"]
    assert (
        "line.png is skipped: at the size that is asked for it would have 768000x256 pixels" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("tile", "height", "width", "expected"),
    [
        ("auto", 2048, 2048, None),
        ("auto", 2048, 2049, 1024),
        ("auto", 1024, 4096, None),
        ("none", 9000, 9000, None),
        (64, 64, 64, None),
        (64, 64, 68, 64),
    ],
)
def test_tiles(tile, height, width, expected):
    assert tile_for(tile, height, width) == expected


def test_the_nearest_tile():
    for tile in ("auto", "none", 16, 1024):
        assert check_tile(tile, 16, fading=False) == tile
    with pytest.raises(UsageError, match="give --tile 48"):
        check_tile(41, 16, fading=False)
    assert check_tile("auto", 16, fading=True) == "none"
