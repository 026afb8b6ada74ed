"""Any image files of a sample -> 8-bit RGB of the right size -> the bytes that go into a shard. Pure functions."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from hires_gan.data.colour import ORIENTATIONS, apply_profile, orientation, profile_effect, to_rgb
from hires_gan.data.headers import jpeg_frame
from hires_gan.data.rejection import Rejected, blaming
from hires_gan.data.writer import Encoded

Crop = Literal["center", "none", "tiles"]
Filter = Literal["lanczos", "bicubic", "bilinear", "box", "hamming"]
Encode = Literal["auto", "jpeg", "png"]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""What is opened: formats that hold pixels only, none that runs a program or draws."""
DEFAULT_MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses: 2/3 GiB of RGB."""
PNG_LEVEL_LIMIT = 64
"""Up to this size a level is always PNG: JPEG would blur the little that there is."""
_JPEG_QUALITY = 95
_QUARTER_TURNS = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_PNG_EFFORT = 4  # of 9: half the time of zlib's default 6, and files 1 % larger
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class PictureOptions:
    """How a picture becomes samples; the fields are those of `prepare`."""

    resolution: int
    crop: Crop = "center"
    filter: Filter = "lanczos"
    encode: Encode = "auto"
    levels: tuple[int, ...] = ()
    max_pixels: int = DEFAULT_MAX_PIXELS


def samples(files: Mapping[str, bytes], options: PictureOptions, counts: Counter[str]) -> Iterator[dict[str, Encoded]]:
    """Turn the image files of one sample into the files of a shard: one sample, or one per tile.

    What is cut out is the same part of every picture.

    Args:
        files: The whole image files by the names of the pictures: one `image`, or the pictures of a pair.
        options: What to make of them.
        counts: Is told everything noteworthy that was done to each image.

    Yields:
        The files of all columns of one sample.

    Raises:
        Rejected: A file is no image, is damaged, or does not fit the options; or the pictures do not fit each other.
    """
    pictures: dict[str, Image.Image] = {}
    for name, data in files.items():
        with blaming(name):
            pictures[name] = open_picture(data, options.max_pixels)
    check_sizes({name: upright_size(picture) for name, picture in pictures.items()}, options.crop)
    made = [_columns(name, pictures[name], data, options, counts) for name, data in files.items()]
    for parts in zip(*made, strict=True):  # of equal sizes come equally many tiles
        yield {column: file for part in parts for column, file in part.items()}


def _columns(
    name: str, picture: Image.Image, data: bytes, options: PictureOptions, counts: Counter[str]
) -> Iterator[dict[str, Encoded]]:
    """Make the columns of one picture, for each sample that it is a part of."""
    with blaming(name):
        if _keeps_bytes(picture, data, options):
            counts["kept"] += 1
            counts["profile_ignored"] += profile_effect(picture) == "ignored"
            yield _with_levels(name, Encoded("jpg", data), np.asarray(picture.convert("RGB")), options)
            return
        kind = _kind(picture, data, options.encode)
        for tile in crops(normalise(picture, counts), options.crop, options.resolution):
            if tile.width < options.resolution:
                counts["enlarged"] += 1
            array = np.asarray(resize(tile, options.resolution, options.filter))
            main = encode(array, kind)
            yield _with_levels(name, main, array if kind == "png" else decode(main.data), options)


def check_sizes(sizes: Mapping[str, tuple[int, int]], crop: Crop) -> None:
    """Refuse pictures of which a crop would not show the same part.

    Central squares show the same part of pictures with the same proportions, whatever their sizes (which are whole
    numbers, so that a pixel of the smaller picture is allowed for). Tiles have a size in pixels.

    Args:
        sizes: Width and height by the name of each picture, upright.
        crop: How they will be cropped.

    Raises:
        Rejected: They do not fit each other.
    """
    for one, other in itertools.pairwise(sizes):
        (width, height), (wide, high) = sizes[one], sizes[other]
        if crop == "tiles":
            fits, need = sizes[one] == sizes[other], "--crop tiles needs equal sizes"
        else:
            most = max(width, height, wide, high)
            fits, need = abs(width * high - wide * height) <= most, "the same proportions are needed"
        if not fits:
            raise Rejected(f"'{one}' has {width}x{height} pixels and '{other}' {wide}x{high}: {need}")


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height as they will be when the picture is turned as its EXIF data says."""
    width, height = picture.size
    return (height, width) if orientation(picture) in _QUARTER_TURNS else (width, height)


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file whole (the first frame of an animation).

    Raises:
        Rejected: It is empty, no image, too large, or damaged.
    """
    if not data:
        raise Rejected("the file is empty")
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit below is the one that counts
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > max_pixels:
            raise Rejected(
                f"the image has {picture.width}x{picture.height} pixels, more than the {max_pixels} that "
                "--max-pixels allows"
            )
        picture.load()
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Rejected("the file is no image of a known kind") from None
    except Exception as error:  # the decoders raise any kind of error when they meet damaged data
        raise Rejected(f"the image is damaged: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before
    return picture


def normalise(picture: Image.Image, counts: Counter[str]) -> Image.Image:
    """Return the picture upright, in 8-bit sRGB, without alpha.

    Raises:
        Rejected: Its pixels have no defined colours (floating point, say).
    """
    if frames(picture) > 1:
        counts["first_frame"] += 1
    upright = picture
    turn = orientation(picture)
    if turn in ORIENTATIONS:
        counts["oriented"] += 1
        upright = picture.transpose(ORIENTATIONS[turn])
    return to_rgb(apply_profile(upright, counts), counts)


def frames(picture: Image.Image) -> int:
    """Return how many frames the file holds, as far as it can be told."""
    try:
        return int(getattr(picture, "n_frames", 1))
    except Exception:  # only the frames behind the first are damaged, and they are not used
        return 1


def crops(picture: Image.Image, crop: Crop, size: int) -> Iterator[Image.Image]:
    """Cut squares out of a picture: the largest central one, or all tiles of `size` from the top left corner.

    Raises:
        Rejected: The picture is not square (`none`) or smaller than one tile (`tiles`).
    """
    width, height = picture.size
    if crop == "tiles":
        if min(width, height) < size:
            raise Rejected(f"the image of {width}x{height} is smaller than one tile of {size}x{size}")
        for top in range(0, height - size + 1, size):
            for left in range(0, width - size + 1, size):
                yield picture.crop((left, top, left + size, top + size))
        return
    if crop == "none" and width != height:
        raise Rejected(f"the image of {width}x{height} is not square, as --crop none needs")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    yield picture.crop((left, top, left + side, top + side))


def resize(picture: Image.Image, size: int, name: Filter) -> Image.Image:
    """Return the square picture at size x size; the filter's support grows with the reduction (antialiasing)."""
    return picture if picture.size == (size, size) else picture.resize((size, size), _FILTERS[name])


def encode(array: np.ndarray, kind: Literal["jpeg", "png"]) -> Encoded:
    """Encode uint8 [H, W, 3] as PNG, or as baseline JPEG of quality 95 with 4:4:4 chroma."""
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=_PNG_EFFORT)
        return Encoded("png", buffer.getvalue())
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return Encoded("jpg", buffer.getvalue())


def decode(data: bytes) -> np.ndarray:
    """Decode a file that is known to be whole: uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
        return np.asarray(picture.convert("RGB"))


def halve(array: np.ndarray) -> np.ndarray:
    """Return the average of each 2x2 block, rounded to nearest with ties to even: uint8 [H, W, 3] -> [H/2, W/2, 3]."""
    wide = array.astype(np.uint16)
    total = wide[0::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 0::2] + wide[1::2, 1::2]
    return ((total + 1 + ((total >> 2) & 1)) >> 2).astype(np.uint8)


def _with_levels(name: str, main: Encoded, array: np.ndarray, options: PictureOptions) -> dict[str, Encoded]:
    """Add the smaller copies of a picture; each is what repeated halving makes of the decoded full one."""
    sample = {name: main}
    kind: Literal["jpeg", "png"] = "jpeg" if main.extension == "jpg" else "png"
    for level in sorted(options.levels, reverse=True):
        while len(array) > level:
            array = halve(array)
        sample[f"{name}.{level}"] = encode(array, "png" if level <= PNG_LEVEL_LIMIT else kind)
    return sample


def _keeps_bytes(picture: Image.Image, data: bytes, options: PictureOptions) -> bool:
    """Tell whether the file itself can be the sample: what any decoder would show is what is wanted."""
    return (
        options.encode != "png"
        and picture.format == "JPEG"
        and picture.mode in ("RGB", "L")
        and picture.size == (options.resolution, options.resolution)
        and jpeg_is_baseline(data)
        and data.endswith(b"\xff\xd9")
        and orientation(picture) not in ORIENTATIONS
        and profile_effect(picture) != "converts"
    )


def _kind(picture: Image.Image, data: bytes, encode: Encode) -> Literal["jpeg", "png"]:
    if encode != "auto":
        return encode
    return "jpeg" if is_lossy(picture, data) else "png"


def is_lossy(picture: Image.Image, data: bytes) -> bool:
    """Tell whether the file's compression already changed the pixels."""
    if picture.format == "WEBP":
        return b"VP8L" not in _riff_chunks(data)
    if picture.format == "TIFF":
        return picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    return picture.format in ("JPEG", "MPO", "JPEG2000", "AVIF")


def _riff_chunks(data: bytes) -> set[bytes]:
    """Return the names of the chunks in a WebP file, those inside animation frames too."""
    names, position = set(), 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        names.add(name)
        position += 24 if name == b"ANMF" else 8 + size + size % 2  # a frame's header is 16 bytes, then its chunks
    return names


def jpeg_is_baseline(data: bytes) -> bool:
    """Tell whether a JPEG's frame header is SOF0: sequential Huffman coding with 8 bits."""
    frame = jpeg_frame(data)
    return frame is not None and frame.marker == 0xC0
