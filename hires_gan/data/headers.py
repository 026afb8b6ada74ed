"""What the first bytes of a JPEG or PNG file tell about its image; nothing is decoded."""

from __future__ import annotations

from typing import NamedTuple

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers between SOF0 and SOF15 that begin no frame: Huffman tables, an extension, arithmetic coding's conditions."""
_IHDR = slice(12, 16)
_PNG_SIDES = 24
"""Bytes of a PNG file up to the end of its width and height."""


class Frame(NamedTuple):
    """What a JPEG file says before its pixels begin."""

    marker: int
    """The second byte of its SOF marker: 0xC0 for a baseline file."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""


def jpeg_frame(data: bytes) -> Frame | None:
    """Find the frame header of a JPEG file.

    Args:
        data: The file, or its first bytes.

    Returns:
        The header; None where the bytes end before it, or are no JPEG file's.
    """
    position = len(_JPEG) if data.startswith(_JPEG) else len(data)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            sides = data[position + 5 : position + 9]
            return Frame(marker, _number(sides[:2]), _number(sides[2:])) if len(sides) == 4 else None
        else:
            position += 2 + _number(data[position + 2 : position + 4])
    return None


def sides_of(data: bytes) -> tuple[int, int] | None:
    """Return the height and width of an image in pixels.

    Args:
        data: A JPEG or PNG file, or its first bytes.

    Returns:
        Both; None where the bytes end before them, or are of another kind of file.
    """
    if data.startswith(_PNG):
        known = len(data) >= _PNG_SIDES and data[_IHDR] == b"IHDR"
        return (_number(data[20:24]), _number(data[16:20])) if known else None
    frame = jpeg_frame(data)
    return None if frame is None else (frame.height, frame.width)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
