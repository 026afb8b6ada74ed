"""The sides of an image from the first bytes of its file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from hires_gan.data.headers import jpeg_frame, sides_of

HEIGHT, WIDTH = 40, 300
"""More than a byte holds, and different."""


def file(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def with_long_comment() -> bytes:
    """The frame lies behind 40,000 bytes that say nothing, and behind bytes that only fill up."""
    data = file("JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 40_002) + bytes(40_000)
    return data[:2] + comment + b"\xff\xff\xff" + data[2:]


def with_tables_first() -> bytes:
    """Huffman tables before the frame, whose marker lies among those of the frames."""
    data = file("JPEG")
    start = data.index(b"\xff\xc4")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:2] + data[start : start + 2 + length] + data[2:]


FILES = {
    "jpeg": file("JPEG"),
    "grey jpeg": file("JPEG", "L"),
    "progressive": file("JPEG", progressive=True),
    "turned": file("JPEG", exif=Image.Exif()),
    "with a profile": file("JPEG", icc_profile=bytes(70_000)),  # in two segments
    "with a comment": with_long_comment(),
    "with its tables first": with_tables_first(),
    "png": file("PNG"),
    "palette": file("PNG", "P"),
}


@pytest.mark.parametrize("kind", FILES)
def test_sides_are_pillow_s_as_soon_as_there_are_bytes_enough(kind):
    data = FILES[kind]
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (WIDTH, HEIGHT)
    assert sides_of(data) == (HEIGHT, WIDTH)
    ends = [*range(min(len(data), 1200)), *range(1200, len(data), 997)]
    found = [sides_of(data[:end]) for end in ends]
    assert set(found) == {None, (HEIGHT, WIDTH)}
    assert found == sorted(found, key=lambda sides: sides is not None)


def test_the_frame_tells_the_coding():
    assert jpeg_frame(FILES["jpeg"]) == (0xC0, HEIGHT, WIDTH)
    assert jpeg_frame(FILES["progressive"]) == (0xC2, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        FILES["png"][:12] + b"IDAT" + FILES["png"][16:],
        FILES["jpeg"][1:],
        b"\xff\xd8" + FILES["png"],
        file("WEBP"),
        b"\xff\xd8\xff\xe0\x00",
    ],
)
def test_what_is_neither_has_no_sides(data):
    assert sides_of(data) is None
