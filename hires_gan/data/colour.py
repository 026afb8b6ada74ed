"""Orientation and colour: what EXIF, ICC profiles, palettes, alpha and odd pixel kinds mean in 8-bit sRGB."""

from __future__ import annotations

import functools
import io
from collections import Counter
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms

from hires_gan.data.rejection import Rejected

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright; 1 and anything unknown need nothing."""

_PROFILE_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}
_SRGB_TOLERANCE = 2
"""Grey levels by which editions of sRGB differ: rounding of their curves and primaries, not another space."""
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; unreadable EXIF data says nothing and counts as 1."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises whatever its parser stumbles over
        return 1


def profile_effect(picture: Image.Image) -> Literal["none", "ignored", "converts"]:
    """Tell what the ICC profile asks for: nothing (there is none, or it is sRGB), a conversion, or what cannot be."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return "none"
    mode = _straight(picture.mode)
    if mode not in _PROFILE_SPACES:
        return "ignored"
    try:
        return "none" if _transform(profile, mode) is None else "converts"
    except (ImageCms.PyCMSError, OSError):
        return "ignored"


def apply_profile(picture: Image.Image, counts: Counter[str]) -> Image.Image:
    """Convert a picture to sRGB by its ICC profile, keeping its alpha; without a usable profile it stays as it is.

    Raises:
        Rejected: The pixels are floating point, or whole numbers beyond 16 bits.
    """
    colours = _with_plain_mode(picture)
    effect = profile_effect(colours)
    counts["profile_ignored"] += effect == "ignored"
    if effect != "converts":
        return colours
    counts["profile_converted"] += 1
    straight = _straight(colours.mode)
    transform = _transform(colours.info["icc_profile"], straight)
    assert transform is not None
    converted = transform.apply(colours.convert(straight))
    if colours.mode != straight:
        converted.putalpha(colours.getchannel("A"))
    return converted


def to_rgb(picture: Image.Image, counts: Counter[str]) -> Image.Image:
    """Return a picture of any kind as 8-bit RGB, alpha over white.

    Raises:
        Rejected: The pixels are floating point, whole numbers beyond 16 bits, or of a kind without colours.
    """
    picture = _with_plain_mode(picture)
    if picture.mode in ("RGBA", "LA"):
        return _over_white(picture.convert("RGBA"), counts)
    if picture.mode == "LAB":
        return _lab_transform().apply(picture)
    try:
        return picture.convert("RGB")
    except ValueError:
        raise Rejected(f"the image holds pixels of the kind {picture.mode}, which have no colours") from None


def _with_plain_mode(picture: Image.Image) -> Image.Image:
    """Return the picture as L, LA, RGB, RGBA, CMYK, YCbCr, LAB or HSV, of 8 bits."""
    mode = picture.mode
    if mode == "F":
        raise Rejected("the image holds floating-point pixels, whose range is not defined")
    if mode in _SIXTEEN_BIT:
        return _eight_bit(picture)
    if mode in ("PA", "RGBa", "La") or "transparency" in picture.info or _palette_has_alpha(picture):
        return picture.convert("LA" if mode == "La" else "RGBA")
    if mode in ("P", "RGBX"):
        return picture.convert("RGB")
    return picture.convert("L") if mode == "1" else picture


def _palette_has_alpha(picture: Image.Image) -> bool:
    return picture.mode == "P" and picture.palette is not None and picture.palette.mode == "RGBA"


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey, [H, W] of 0 to 65535, to 8 bits, rounding to nearest."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise Rejected(f"the image holds values from {values.min()} to {values.max()}, more than 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    grey.info["icc_profile"] = picture.info.get("icc_profile")
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _over_white(picture: Image.Image, counts: Counter[str]) -> Image.Image:
    """Composite RGBA over white, rounding to nearest."""
    pixels = np.asarray(picture)
    alpha = pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return picture.convert("RGB")
    counts["alpha_flattened"] += 1
    flat = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(flat.astype(np.uint8))


def _straight(mode: str) -> str:
    """Return a mode without its alpha."""
    return mode.removesuffix("A") if mode in ("RGBA", "LA") else mode


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the way from a profile to sRGB, or None if it changes nothing that can be seen.

    Raises:
        ImageCms.PyCMSError: The profile cannot be read, or is for another kind of pixels.
        OSError: Likewise.
    """
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
        raise ImageCms.PyCMSError(f"a profile for {source.profile.xcolor_space} on {mode} pixels")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Send a coarse cube of colours (or all greys) through a transform and look whether it comes back."""
    if mode == "L":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
        probe = Image.fromarray(cube.reshape(1, -1, 3))
    before = np.asarray(probe.convert("RGB")).astype(np.int16)
    after = np.asarray(transform.apply(probe)).astype(np.int16)
    return bool(np.abs(after - before).max() <= _SRGB_TOLERANCE)


@functools.cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
