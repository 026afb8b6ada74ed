from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from hires_gan.data.pictures import (
    PictureOptions,
    crops,
    decode,
    encode,
    halve,
    jpeg_is_baseline,
    normalise,
    open_picture,
    resize,
    samples,
)
from hires_gan.data.rejection import Rejected

LIMIT = 178_956_970


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> tuple[np.ndarray, Counter[str]]:
    counts: Counter[str] = Counter()
    return np.asarray(normalise(open_picture(data, LIMIT), counts)), +counts


def one(data: bytes, **options) -> tuple[dict, Counter[str]]:
    counts: Counter[str] = Counter()
    (sample,) = samples({"image": data}, PictureOptions(**options), counts)
    return sample, +counts


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def smooth(size: int) -> Image.Image:
    ramp = np.linspace(0, 255, size)
    return Image.fromarray(
        np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[:, None] / 2), -1).astype(np.uint8)
    )


def gamma_profile(gamma: float) -> bytes:
    """A matrix profile made by hand: sRGB's primaries (adapted to D50), a pure power law."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    xyz = {"r": (0.43607, 0.22249, 0.01392), "g": (0.38515, 0.71687, 0.09708), "b": (0.14307, 0.06061, 0.71410)}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    tags = {b"desc": text + b"\0" * (-len(text) % 4), b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}
    tags[b"cprt"] = b"text\0\0\0\0none" + b"\0" * 4
    for name, values in xyz.items():
        tags[f"{name}XYZ".encode()] = b"XYZ \0\0\0\0" + fixed(*values)
        tags[f"{name}TRC".encode()] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    total = start + len(body)
    header = struct.pack(">I4sI4s4s4s", total, b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + fixed(0.9642, 1, 0.8249) + b"\0" * 48
    return header[:128].ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# --- pixels of every kind ---------------------------------------------------------------------------------------------


def test_grey_becomes_three_equal_channels():
    array, counts = pixels(saved(Image.new("L", (4, 4), 77), "PNG"))
    assert array.shape == (4, 4, 3)
    assert (array == 77).all()
    assert not counts


def test_one_bit_is_black_and_white():
    picture = Image.new("1", (4, 2))
    picture.putpixel((1, 0), 1)
    array, _ = pixels(saved(picture, "PNG"))
    assert array[0, 1].tolist() == [255] * 3
    assert array.sum() == 3 * 255


def test_palette_is_looked_up():
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    array, counts = pixels(saved(picture, "PNG"))
    assert (array == [10, 200, 30]).all()
    assert not counts


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_colour_lies_over_white(kind):
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.putpixel((0, 0), 0)
    array, counts = pixels(saved(picture, kind, transparency=0))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[1, 1].tolist() == [10, 200, 30]
    assert counts == {"alpha_flattened": 1}


@given(st.tuples(*[st.integers(0, 255)] * 4))
@settings(max_examples=100)
def test_alpha_lies_over_white_rounded_to_nearest(colour):
    array, _ = pixels(saved(Image.new("RGBA", (1, 1), colour), "PNG"))
    *rgb, alpha = colour
    exact = [Fraction(value * alpha + 255 * (255 - alpha), 255) for value in rgb]
    assert all(abs(int(found) - wanted) <= Fraction(1, 2) for found, wanted in zip(array[0, 0], exact, strict=True))


def test_grey_with_alpha_and_opaque_alpha():
    array, counts = pixels(saved(Image.new("LA", (2, 2), (0, 51)), "PNG"))
    assert (array == 204).all()
    assert counts == {"alpha_flattened": 1}
    array, counts = pixels(saved(Image.new("RGBA", (2, 2), (1, 2, 3, 255)), "PNG"))
    assert (array == [1, 2, 3]).all()
    assert not counts


@pytest.mark.parametrize("kind", ["RGB", "L"])
def test_a_colour_declared_transparent_lies_over_white(kind):
    picture = Image.new(kind, (2, 1), 0)
    picture.putpixel((1, 0), (9, 9, 9) if kind == "RGB" else 9)
    array, _ = pixels(saved(picture, "PNG", transparency=(0, 0, 0) if kind == "RGB" else 0))
    assert array[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_rounded(kind):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    picture = Image.fromarray(values)
    array, _ = pixels(saved(picture, kind))
    assert array[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bit_grey_with_a_transparent_value():
    values = np.array([[0, 300, 65535]], np.uint16)
    png = bytearray(saved(Image.fromarray(values), "PNG"))
    body = b"tRNS" + struct.pack(">H", 300)
    chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    png[33:33] = chunk  # behind the header
    array, _ = pixels(bytes(png))
    assert array[0, :, 0].tolist() == [0, 255, 255]


def test_wide_integers_beyond_sixteen_bits_are_rejected():
    data = saved(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    with pytest.raises(Rejected, match="70000, more than 16 bits"):
        pixels(data)


def test_floating_point_is_rejected():
    with pytest.raises(Rejected, match="floating-point"):
        pixels(saved(Image.new("F", (2, 2), 0.5), "TIFF"))


def test_cmyk_ycbcr_and_lab_become_rgb():
    array, _ = pixels(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert (array == [255, 0, 0]).all()
    array, _ = pixels(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(array.astype(int) - [255, 0, 0]).max() <= 3
    array, _ = pixels(saved(Image.new("YCbCr", (2, 2), (76, 85, 255)), "TIFF", compression="raw"))
    assert np.abs(array.astype(int) - [254, 0, 0]).max() <= 2
    array, _ = pixels(saved(Image.new("LAB", (2, 2), (138, 81 ^ 0, 70)), "TIFF"))
    wanted = ImageCms.profileToProfile(
        Image.new("LAB", (2, 2), (138, 81, 70)),
        ImageCms.createProfile("LAB"),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert (array == np.asarray(wanted)).all()


def test_first_frame_of_an_animation_is_taken_and_counted():
    frames = [Image.new("RGB", (4, 4), (200, 0, 0)), Image.new("RGB", (4, 4), (0, 200, 0))]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        array, counts = pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert (array == [200, 0, 0]).all(), kind
        assert counts == {"first_frame": 1}, kind
    sample, counts = one(saved(noise(16, 16), "MPO", save_all=True, append_images=[noise(16, 16, 1)]), resolution=16)
    assert sample["image"].extension == "jpg"
    assert counts == {"first_frame": 1}


# --- orientation and profiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_comes_out_upright(turn, kind):
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    stored = {  # how a camera stores what the tag undoes: the tag's definition, written with array axes
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[:, ::-1],
    }[turn](upright)
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    array, counts = pixels(saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert (array == upright).all()
    if kind != "TIFF":  # Pillow turns TIFF itself
        assert counts == ({"oriented": 1} if turn > 1 else {})


def test_nonsense_in_exif_is_no_orientation():
    picture = noise(8, 8)
    array, counts = pixels(saved(picture, "PNG", exif=b"Exif\0\0garbage that is no TIFF header"))
    assert (array == np.asarray(picture)).all()
    assert not counts


def test_profile_is_converted_by_the_curves_that_it_holds():
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    array, counts = pixels(saved(Image.fromarray(grey), "PNG", icc_profile=gamma_profile(1.0)))
    linear = np.arange(256) / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(array[0, :, 0] - 255 * srgb).max() <= 1.5
    assert counts == {"profile_converted": 1}


def test_profile_keeps_alpha():
    picture = Image.new("RGBA", (2, 2), (128, 128, 128, 0))
    array, counts = pixels(saved(picture, "PNG", icc_profile=gamma_profile(1.0)))
    assert (array == 255).all()
    assert counts == {"profile_converted": 1, "alpha_flattened": 1}


def test_srgb_profile_changes_nothing():
    picture = noise(16, 16)
    array, counts = pixels(saved(picture, "PNG", icc_profile=SRGB))
    assert (array == np.asarray(picture)).all()
    assert not counts


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_unusable_profile_is_ignored_and_counted(mode):
    data = saved(Image.new(mode, (4, 4), 7), "TIFF", icc_profile=b"no profile at all")
    assert pixels(data)[1] == {"profile_ignored": 1}
    if mode != "RGB":  # a profile for other pixels
        assert pixels(saved(Image.new(mode, (4, 4), 7), "TIFF", icc_profile=SRGB))[1] == {"profile_ignored": 1}


# --- what is turned away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_truncated_files_are_rejected(kind):
    data = saved(noise(64, 64), kind)
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(Rejected, match=r"damaged|no image"):
            pixels(data[: int(len(data) * share)])


def test_empty_and_misnamed_files():
    with pytest.raises(Rejected, match="is empty"):
        pixels(b"")
    with pytest.raises(Rejected, match="no image of a known kind"):
        pixels(b"this is a text, whatever its name says\n" * 40)


def test_bombs_are_refused_by_their_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(Rejected, match=r"60000x60000 pixels, more than the 178956970 that --max-pixels"):
        pixels(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\0\0\0\0" + b"\0" * 50)
    with pytest.raises(Rejected, match="more than the 15"):
        open_picture(saved(noise(4, 4), "PNG"), 15)
    assert Image.MAX_IMAGE_PIXELS is not None


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0"]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_an_image_or_rejected(body, magic):
    try:
        array, _ = pixels(magic + body)
    except Rejected as reason:
        assert str(reason)
    else:
        assert array.dtype == np.uint8


# --- crops, resizing, encoding ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40))
def test_center_crop_is_the_largest_central_square(width, height):
    columns, rows = np.meshgrid(np.arange(width, dtype=np.uint8), np.arange(height, dtype=np.uint8))
    picture = Image.fromarray(np.stack([columns, rows, rows], -1))
    (crop,) = crops(picture, "center", 8)
    side = min(width, height)
    assert crop.size == (side, side)
    corner = np.asarray(crop)[0, 0]
    assert (corner[0], corner[1]) == ((width - side) // 2, (height - side) // 2)


@given(st.integers(8, 40), st.integers(8, 40))
def test_tiles_cover_all_whole_squares_once(width, height):
    picture = noise(width, height)
    tiles = [np.asarray(tile) for tile in crops(picture, "tiles", 8)]
    whole = np.asarray(picture)[: height // 8 * 8, : width // 8 * 8]
    wanted = whole.reshape(height // 8, 8, width // 8, 8, 3).swapaxes(1, 2).reshape(-1, 8, 8, 3)
    assert np.array_equal(tiles, wanted)


def test_crop_reasons():
    with pytest.raises(Rejected, match="30x20 is not square"):
        list(crops(noise(30, 20), "none", 8))
    with pytest.raises(Rejected, match="30x20 is smaller than one tile of 32x32"):
        list(crops(noise(30, 20), "tiles", 32))


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear", "box", "hamming"])
def test_every_filter_is_antialiased(name):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the target can show: only a filter without antialiasing keeps any of it
    small = np.asarray(resize(Image.fromarray(stripes), 8, name)).astype(int)
    assert np.abs(small - 127.5).max() <= 12
    if name == "box":
        assert (small == 128).all()


def test_small_images_are_enlarged_and_counted():
    sample, counts = one(saved(noise(8, 8), "PNG"), resolution=16)
    assert decode(sample["image"].data).shape == (16, 16, 3)
    assert counts == {"enlarged": 1}


@given(arrays(np.uint8, (4, 6, 3)))
def test_halve_is_the_exact_mean_rounded_half_to_even(array):
    halved = halve(array)
    for row, column, channel in np.ndindex(halved.shape):
        block = array[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel]
        assert halved[row, column, channel] == round(Fraction(int(block.sum(dtype=int)), 4))


@pytest.mark.parametrize(("source", "kind"), [("PNG", "png"), ("JPEG", "jpg"), ("BMP", "png"), ("AVIF", "jpg")])
def test_auto_keeps_the_kind_of_the_source(source, kind):
    sample, _ = one(saved(noise(32, 32), source), resolution=16)
    assert sample["image"].extension == kind
    for wanted, extension in (("png", "png"), ("jpeg", "jpg")):
        assert one(saved(noise(32, 32), source), resolution=16, encode=wanted)[0]["image"].extension == extension


@pytest.mark.parametrize("animated", [False, True])
def test_webp_is_lossy_or_not(animated):
    for lossless, kind in ((True, "png"), (False, "jpg")):
        more = {"save_all": True, "append_images": [noise(32, 32, 1)]} if animated else {}
        sample, _ = one(saved(noise(32, 32), "WEBP", lossless=lossless, **more), resolution=16)
        assert sample["image"].extension == kind


def test_tiff_with_jpeg_inside_is_lossy():
    assert one(saved(noise(32, 32), "TIFF", compression="jpeg"), resolution=32)[0]["image"].extension == "jpg"
    assert one(saved(noise(32, 32), "TIFF"), resolution=32)[0]["image"].extension == "png"


def test_new_jpegs_are_baseline_without_chroma_subsampling():
    encoded = encode(np.asarray(smooth(32)), "jpeg")
    picture = Image.open(io.BytesIO(encoded.data))
    assert jpeg_is_baseline(encoded.data)
    assert {layer[1:3] for layer in picture.layer} == {(1, 1)}
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(smooth(32))).max() <= 6
    assert "icc_profile" not in picture.info


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("wanted", ["auto", "jpeg"])
def test_a_fitting_jpeg_keeps_its_very_bytes(mode, wanted):
    data = saved(noise(32, 32).convert(mode), "JPEG", quality=60, comment=b"kept as well")
    sample, counts = one(data, resolution=32, encode=wanted)
    assert sample["image"] == ("jpg", data)
    assert counts == {"kept": 1}


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"exif": exif_turned()}, {"icc_profile": gamma_profile(1.0)}],
    ids=["progressive", "turned", "profile"],
)
def test_other_jpegs_are_encoded_again(options):
    data = saved(noise(32, 32), "JPEG", **options)
    sample, counts = one(data, resolution=32)
    assert sample["image"].data != data
    assert not counts["kept"]
    assert jpeg_is_baseline(sample["image"].data)


def test_jpeg_with_srgb_profile_is_kept_and_one_with_a_bad_profile_too():
    data = saved(noise(32, 32), "JPEG", icc_profile=SRGB)
    assert one(data, resolution=32)[0]["image"].data == data
    assert one(saved(noise(32, 32), "JPEG", icc_profile=b"?"), resolution=32)[1] == {"kept": 1, "profile_ignored": 1}


def test_jpeg_of_another_size_or_with_trailing_bytes_is_encoded_again():
    data = saved(noise(32, 32), "JPEG")
    assert not one(data, resolution=16)[1]["kept"]
    assert not one(data + b"tail", resolution=32)[1]["kept"]
    assert one(data, resolution=32, encode="png")[0]["image"].extension == "png"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [256, 300])
def test_levels_are_what_halving_the_decoded_image_gives(kind, size):
    data = saved(noise(size, size), kind)
    sample, _ = one(data, resolution=256, levels=(4, 64, 128))
    assert list(sample) == ["image", "image.128", "image.64", "image.4"]
    array = decode(sample["image"].data)
    for level in (128, 64, 4):
        while len(array) > level:
            array = halve(array)
        file = sample[f"image.{level}"]
        if level > 64 and kind == "JPEG":
            assert file.extension == "jpg"
        else:
            assert file.extension == "png"
            assert (decode(file.data) == array).all()


def test_tiles_become_samples():
    counts: Counter[str] = Counter()
    made = list(samples({"image": saved(noise(70, 40), "PNG")}, PictureOptions(16, crop="tiles", levels=(8,)), counts))
    assert len(made) == 4 * 2
    assert (decode(made[-1]["image"].data) == np.asarray(noise(70, 40))[16:32, 48:64]).all()
