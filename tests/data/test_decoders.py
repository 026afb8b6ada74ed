"""Files to pixels, against Pillow and exact fractions."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from input_definition import halved, pixels
from PIL import Image

from hires_gan.data import pictures
from hires_gan.data.decoders import decode, decode_into, halve
from hires_gan.errors import Failure


def scene(side=64, channels=3):
    """Smooth colours, an edge and some noise: something for every part of a JPEG."""
    y, x = np.mgrid[0:side, 0:side]
    image = np.stack([x * 255 // side, y * 255 // side, (x + y) * 127 // side], -1)
    image[side // 4 : side // 2, side // 3 :] = (200, 20, 60)
    image = image + np.random.default_rng(0).integers(-9, 10, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)[..., :channels]


def file(array, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "4:4:4": file(scene(), quality=95, subsampling=0),
    "4:2:0": file(scene(), quality=80, subsampling=2),
    "grey": file(scene(channels=1), quality=90),
    "progressive": file(scene(), quality=90, progressive=True),
    "png": file(scene(), "PNG"),
    "grey png": file(scene(channels=1), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_decodes_as_pillow_does(name):
    image = decode(FILES[name])
    assert (image.shape, image.dtype) == ((64, 64, 3), torch.uint8)
    assert image.is_contiguous()
    difference = image.to(torch.int16).numpy() - pixels(FILES[name], 64, False).astype(np.int16)
    assert abs(difference).max() <= (0 if "png" in name else 1)  # another libjpeg may round otherwise


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("side", [64, 32, 8, 1])
@pytest.mark.parametrize("mirror", [False, True])
def test_decodes_into_a_place_of_a_batch(name, side, mirror):
    batch = torch.full((3, side, side, 3), 77, dtype=torch.uint8)
    decode_into(FILES[name], batch[1], mirror)
    wanted = decode(FILES[name]).numpy()
    while len(wanted) > side:
        wanted = halved(wanted)
    assert np.array_equal(batch[1].numpy(), wanted[:, ::-1] if mirror else wanted)
    assert (batch[[0, 2]] == 77).all()


def test_mirrors_images_of_many_rows():
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    place = torch.zeros(512, 512, 3, dtype=torch.uint8)
    decode_into(file(image, "PNG"), place, True)
    assert np.array_equal(place.numpy(), image[:, ::-1])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_halve_is_the_exact_mean_rounded_to_even(height, width, channels, random):
    extremes = [0, 0, 1, 2, 3, 127, 128, 253, 254, 255, 255]
    image = np.array([random.choice(extremes) for _ in range(4 * height * width * channels)], np.uint8)
    image = image.reshape(2 * height, 2 * width, channels)
    result = halve(torch.from_numpy(image)).numpy()
    assert np.array_equal(result, halved(image))
    assert np.array_equal(result, pictures.halve(image))


def test_halve_rounds_every_possible_sum():
    """All sums of four bytes, in one image of 1 x 1021 blocks."""
    blocks = [[min(255, max(0, total - 255 * place)) for place in range(4)] for total in range(1021)]
    image = np.array(blocks, np.uint8).reshape(1021, 2, 2, 1).transpose(1, 0, 2, 3).reshape(2, 2042, 1)
    wanted = [round(Fraction(total, 4)) for total in range(1021)]
    assert halve(torch.from_numpy(image)).flatten().tolist() == wanted
    assert pictures.halve(image).flatten().tolist() == wanted


@pytest.mark.parametrize(
    ("width", "height", "side"), [(64, 32, 32), (32, 32, 64), (48, 48, 32), (48, 48, 16), (65, 65, 64)]
)
def test_other_sizes_are_refused(width, height, side):
    data = file(np.zeros((height, width, 3), np.uint8), "PNG")
    with pytest.raises(Failure, match=rf"an image of {width}x{height} pixels stands where a square of {side} times"):
        decode_into(data, torch.empty(side, side, 3, dtype=torch.uint8), False)


def test_sixteen_bits_are_refused_and_not_wrapped():
    data = file(np.full((8, 8), 300, np.uint16), "PNG")
    with pytest.raises(Failure, match="has 16 bits per channel; shards hold 8"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"x", b"\xff\xd8\xff", b"GIF89a", FILES["png"][:30], FILES["4:4:4"][:300]])
def test_what_is_no_image_is_a_sentence(data):
    with pytest.raises(Failure, match=rf"cannot decode an image of {len(data)} bytes: \S") as caught:
        decode(data)
    assert "\n" not in str(caught.value)
