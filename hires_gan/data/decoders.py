"""From the bytes of an image file to pixels, at the resolution that a stage trains."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from hires_gan.errors import Failure
from hires_gan.settings import is_power_of_two

_BAND = 128
"""Rows that are flipped at a time."""


class Undecodable(Failure):
    """The bytes are no image that can be shown."""


def decode(data: bytes) -> Tensor:
    """Decode a JPEG or PNG file.

    Args:
        data: The whole file.

    Returns:
        uint8 `[h, w, 3]` RGB, contiguous.

    Raises:
        Undecodable: If the bytes are no image that torchvision can read, or one of 16 bits per channel.
    """
    try:
        image: Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise Undecodable(f"cannot decode an image of {len(data)} bytes: {str(error).splitlines()[0]}") from error
    if image.dtype != torch.uint8:
        raise Undecodable(
            f"an image of {len(data)} bytes has 16 bits per channel; shards hold 8, as `prepare` writes them"
        )
    return image.permute(1, 2, 0)


def decode_square(data: bytes, side: int) -> Tensor:
    """Decode a JPEG or PNG file whose sides are known.

    Args:
        data: The whole file.
        side: Height and width in pixels that it must have.

    Returns:
        uint8 `[side, side, 3]` RGB, contiguous.

    Raises:
        Undecodable: If the bytes cannot be decoded to 8 bits, or the image has other sides.
    """
    image = decode(data)
    height, width = image.shape[:2]
    if height != side or width != side:
        raise Undecodable(f"an image of {width}x{height} pixels stands where one of {side}x{side} must")
    return image


def decode_into(data: bytes, out: Tensor, mirror: bool, side: int | None = None) -> None:
    """Decode one image into its place in a batch, halved as often as the stage's resolution asks for.

    Args:
        data: The whole file.
        out: uint8 `[r, r, 3]`, written in place.
        mirror: Whether to flip it from left to right.
        side: Height and width that the image must have; None for r times any power of two.

    Raises:
        Undecodable: If the bytes cannot be decoded to 8 bits, or the image has other sides.
    """
    image = decode(data) if side is None else decode_square(data, side)
    size = out.shape[0]
    height, width = image.shape[:2]
    if height != width or height % size or not is_power_of_two(height // size):
        raise Undecodable(
            f"an image of {width}x{height} pixels stands where a square of {size} times a power of two must"
        )
    while image.shape[0] > size:
        image = halve(image)
    if not mirror:
        out.copy_(image)
        return
    # In bands: the memory of a second whole image would be fetched from the system and given back every time.
    for top in range(0, size, _BAND):
        out[top : top + _BAND] = image[top : top + _BAND].flip(1)


def halve(image: Tensor) -> Tensor:
    """The mean of each 2x2 block, rounded to nearest, ties to even; the same as `pictures.halve`.

    Args:
        image: uint8 `[..., h, w, c]` on any device, h and w even.

    Returns:
        uint8 `[..., h/2, w/2, c]`.
    """
    rows = image[..., 0::2, :, :].to(torch.int16) + image[..., 1::2, :, :]
    total = rows[..., 0::2, :] + rows[..., 1::2, :]
    return ((total + 1 + ((total >> 2) & 1)) >> 2).to(torch.uint8)
