"""What `translate` is asked for: domains, sizes, styles, tiles and films, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hires_gan.errors import UsageError
from hires_gan.inference.request import Film, parse_film

Size = int | Literal["keep"] | None
Tile = int | Literal["auto", "none"]

_STYLES = 4
_FRAMES = 30
_WHOLE = 2048 * 2048
"""Pixels of the largest image that is computed whole unless asked otherwise."""
_TILE = 1024


@dataclass(frozen=True)
class TranslateRequest:
    """One call of `translate`.

    Attributes:
        target: The domain to which pictures are translated.
        source: Their own domain; None for the other one of two.
        size: What their shorter side becomes, in pixels; "keep" for what it is, None for the checkpoint's resolution.
        styles: How many styles are drawn; 0 where pictures give them.
        style: Files and folders of pictures, each of which gives a style.
        seed: Drawn styles follow from it.
        film: How a film leads from style to style; None for single images.
        tile: Side of the tiles in which images are computed; "none" for whole images, "auto" for whole ones where they
            are not too large.
    """

    target: str
    source: str | None = None
    size: Size = None
    styles: int = _STYLES
    style: tuple[Path, ...] = ()
    seed: int = 0
    film: Film | None = None
    tile: Tile = "auto"


def parse_translation(
    target: str,
    source: str | None = None,
    *,
    size: int | str | None = None,
    styles: int | None = None,
    style: Sequence[Path] = (),
    seed: int | None = None,
    interpolate: bool = False,
    frames: int | None = None,
    fps: int | None = None,
    loop: bool = False,
    tile: int | str = "auto",
) -> TranslateRequest:
    """What the options ask for.

    Raises:
        UsageError: If one is no number, out of its range, or contradicts another.
    """
    count = _parse_styles(styles, style)
    film = parse_film(interpolate, _FRAMES if interpolate and frames is None else frames, fps, loop, None)
    if film is not None and not style and count < 2:
        raise UsageError(f"--interpolate needs two styles or more, and --styles is {count}; give --styles {_STYLES}")
    return TranslateRequest(
        target=target,
        source=source,
        size=_parse_size(size),
        styles=count,
        style=tuple(map(Path, style)),
        seed=_parse_seed(seed, style),
        film=film,
        tile=_parse_tile(tile),
    )


def _parse_styles(styles: int | None, style: Sequence[Path]) -> int:
    if styles is not None and style:
        raise UsageError("--styles and --style are both given; styles are either drawn or taken from pictures: choose")
    if styles is not None and styles < 1:
        raise UsageError(f"--styles is {styles}; at least 1 is allowed")
    if style:
        return 0
    return _STYLES if styles is None else styles


def _parse_seed(seed: int | None, style: Sequence[Path]) -> int:
    if seed is not None and style:
        raise UsageError("--seed is given with --style, where nothing is drawn; leave one of them out")
    if seed is not None and not 0 <= seed < 2**32:
        raise UsageError(f"--seed is {seed}; numbers from 0 to 2^32 - 1 are allowed")
    return seed or 0


def _parse_size(size: int | str | None) -> Size:
    if size is None or size == "keep":
        return "keep" if size else None
    number = _number(size)
    if number < 1:
        raise UsageError(f"--size is {size}; keep, or the pixels of the shorter side, such as 512, are allowed")
    return number


def _parse_tile(tile: int | str) -> Tile:
    if tile == "auto" or tile == "none":
        return "auto" if tile == "auto" else "none"
    number = _number(tile)
    if number < 1:
        raise UsageError(f"--tile is {tile}; auto, none, or the pixels of a side, such as 1024, are allowed")
    return number


def _number(value: int | str) -> int:
    """The number; 0, which no option allows, for what is none."""
    if isinstance(value, int):
        return value
    return int(value) if value.isascii() and value.isdecimal() else 0


def choose_domains(domains: Sequence[str], target: str, source: str | None) -> tuple[str, str]:
    """The domain of the pictures, and that to which they are translated.

    Args:
        domains: Those of the checkpoint.
        target: As given.
        source: As given, or None for the other one of two.

    Raises:
        UsageError: If there is no such domain, or `source` is needed.
    """
    known = ", ".join(domains)
    for option, domain in (("--to", target), ("--from", source)):
        if domain is not None and domain not in domains:
            raise UsageError(f"{option} is {domain!r}; the checkpoint has the domains {known}: give one of them")
    others = [domain for domain in domains if domain != target]
    if source is None and len(others) != 1:
        raise UsageError(f"--from is needed: the checkpoint has the domains {known}, and any may be the pictures'")
    return source if source is not None else others[0], target


def tile_for(tile: Tile, height: int, width: int) -> int | None:
    """The side of the tiles in which an image is computed; None for a whole image.

    Args:
        tile: As asked for.
        height: Of the image, in pixels.
        width: Likewise.
    """
    if tile == "auto":
        return None if height * width <= _WHOLE else _TILE
    return None if tile == "none" or tile >= max(height, width) else tile


def check_tile(tile: Tile, multiple: int, fading: bool) -> Tile:
    """Refuse tiles into which the network cannot cut an image.

    Args:
        tile: As asked for.
        multiple: Of which it has to be one, in pixels.
        fading: Whether the network blends two resolutions, which it does with whole images alone.

    Returns:
        How images are computed: as asked for, but whole where "auto" would be tiles that cannot be.

    Raises:
        UsageError: Naming the nearest side that is allowed, or the way without tiles.
    """
    if fading and isinstance(tile, int):
        raise UsageError(
            f"--tile is {tile}, but the checkpoint is from within a fade, where two resolutions are blended and images "
            "are computed whole; give --tile none, or a checkpoint from behind the fade"
        )
    if isinstance(tile, int) and tile % multiple:
        nearest = max(multiple, round(tile / multiple) * multiple)
        raise UsageError(f"--tile is {tile}; the network allows multiples of {multiple}: give --tile {nearest}")
    return "none" if fading else tile
