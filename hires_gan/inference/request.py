"""What `generate` is asked for: numbers, ranges, layers, files and options, checked before torch is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hires_gan.errors import UsageError
from hires_gan.progress import say

Noise = Literal["constant", "random", "none"]
Space = Literal["w", "z"]
Layers = str | tuple[int, ...]

DEFAULT_SEEDS = "0-15"
STYLES_ENDING = ".safetensors"
_MOST = 1_000_000
_NAMED_LAYERS: dict[str, tuple[int, int | None]] = {"coarse": (0, 4), "middle": (4, 8), "fine": (8, None)}
"""4x4 to 8x8, 16x16 to 32x32, and 64x64 on: the three groups of Karras et al. 2019, section 3.1."""


@dataclass(frozen=True)
class Given:
    """Where images come from: styles in files, which `project` writes, and seeds.

    Attributes:
        seeds: One image each.
        files: One image for each row of styles in them; they come before the seeds.
    """

    seeds: Sequence[int] = ()
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class Look:
    """How images are made of latents or styles.

    Attributes:
        truncation: How far styles may lie from their mean: 1 leaves them as they are, 0 makes them the mean.
        cutoff: Only the first so many layers are truncated; None for all.
        label: The class, for a conditional generator.
        noise: What the layers' noise is: the constant one, one that belongs to each image, or none.
    """

    truncation: float = 1.0
    cutoff: int | None = None
    label: int | None = None
    noise: Noise = "constant"

    def __post_init__(self) -> None:
        if not math.isfinite(self.truncation):
            raise UsageError(f"--truncation is {self.truncation}; a finite number is allowed, such as 0.7")
        if self.cutoff is not None and self.truncation == 1:
            raise UsageError("--cutoff is given, but --truncation is 1, which changes nothing; give it too, or neither")
        if not 0 <= self.truncation <= 1:
            where = "above 1: images vary more than the real ones, and fail more often"
            below = "below 0: styles lie opposite to their own, beyond the mean"
            say(f"note: --truncation {self.truncation:g} is {where if self.truncation > 1 else below}")


@dataclass(frozen=True)
class Mixing:
    """A table of images: those of the rows, with some layers' styles taken from those of the columns.

    Attributes:
        rows: Where most of the styles come from.
        columns: Where the others come from.
        layers: Numbers of the layers that take the columns' styles, or "coarse", "middle" or "fine".
    """

    rows: Given
    columns: Given
    layers: Layers = "coarse"


@dataclass(frozen=True)
class Film:
    """A way through the images in their order.

    Attributes:
        frames: From one image to the next.
        fps: Frames in a second.
        loop: Whether it goes on from the last image to the first.
        space: Where it leads: through W on straight lines, or through the latents on great circles; None for W where
            the generator has one.
    """

    frames: int = 60
    fps: int = 30
    loop: bool = False
    space: Space | None = None


@dataclass(frozen=True)
class Request:
    """One call of `generate`: single images, unless it is a table or a film."""

    given: Given
    look: Look
    mixing: Mixing | None = None
    film: Film | None = None


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """`0-3,8` -> [0, 1, 2, 3, 8].

    Args:
        text: Numbers and ranges.
        option: What they were given for, for messages.

    Raises:
        UsageError: If it is no list of numbers and ranges, or has too many of them.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)
        if match is None:
            raise UsageError(f"{option} is {text!r}; numbers and ranges are allowed, such as 0-15 or 1,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**32:
            raise UsageError(f"{option} has the range {part.strip()}; it must ascend and stay below 2^32")
        if len(seeds) + last - first >= _MOST:
            raise UsageError(f"{option} names more than {_MOST} numbers; that many are allowed in one call")
        seeds.extend(range(first, last + 1))
    return seeds


def parse_given(text: str, option: str) -> Given:
    """Seeds such as `0-3,8`, or a file of styles by its name.

    Raises:
        UsageError: If it is neither.
    """
    if text.endswith(STYLES_ENDING):
        return Given(files=(Path(text),))
    return Given(seeds=parse_seeds(text, option))


def parse_layers(text: str) -> Layers:
    """`0-3,8` -> (0, 1, 2, 3, 8); coarse, middle and fine stay names.

    Raises:
        UsageError: If it is neither a name nor a list of numbers and ranges.
    """
    if text in _NAMED_LAYERS:
        return text
    try:
        return tuple(parse_seeds(text, "--mix-layers"))
    except UsageError:
        names = ", ".join(_NAMED_LAYERS)
        raise UsageError(f"--mix-layers is {text!r}; {names}, or numbers and ranges such as 0-3, are allowed") from None


def chosen_layers(layers: Layers, num_ws: int) -> list[int]:
    """The numbers of the layers, for a generator with so many.

    Raises:
        UsageError: If it has no such layers.
    """
    if isinstance(layers, tuple):
        beyond = [number for number in layers if number >= num_ws]
        if beyond:
            raise UsageError(f"--mix-layers names layer {beyond[0]}; the generator has the layers 0 to {num_ws - 1}")
        return sorted(set(layers))
    first, end = _NAMED_LAYERS[layers]
    if first >= num_ws:
        raise UsageError(
            f"--mix-layers is {layers}, which are the layers from {first} on; "
            f"the generator has the layers 0 to {num_ws - 1}: choose among them"
        )
    return list(range(first, num_ws if end is None else min(end, num_ws)))


def parse_given_images(seeds: str | None, styles: Sequence[Path]) -> Given:
    """What to make single images or a film of; without any option the first 16 seeds."""
    text = DEFAULT_SEEDS if seeds is None and not styles else seeds
    return Given(parse_seeds(text) if text is not None else (), tuple(styles))


def parse_mixing(rows: str | None, columns: str | None, layers: str | None) -> Mixing | None:
    """The table that the three options ask for, or None if none of them is given.

    Raises:
        UsageError: If one is missing, or no list of seeds.
    """
    if rows is None and columns is None:
        if layers is not None:
            raise UsageError("--mix-layers is given without --mix-rows and --mix-columns; give these too, or leave it")
        return None
    if rows is None or columns is None:
        given, missing = ("columns", "rows") if rows is None else ("rows", "columns")
        raise UsageError(f"--mix-{given} is given without --mix-{missing}; a table needs both, such as 0-3 and 10-15")
    return Mixing(
        parse_given(rows, "--mix-rows"), parse_given(columns, "--mix-columns"), parse_layers(layers or "coarse")
    )


def parse_film(wanted: bool, frames: int | None, fps: int | None, loop: bool, space: Space | None) -> Film | None:
    """The film that the options ask for, or None.

    Raises:
        UsageError: If there is an option for a film that is not asked for, or a number below 1.
    """
    options = {"--frames": frames, "--fps": fps, "--loop": loop or None, "--space": space}
    given = [name for name, value in options.items() if value is not None]
    if not wanted and given:
        raise UsageError(f"{given[0]} is given without --interpolate, for which alone it has a meaning")
    for name, value in (("--frames", frames), ("--fps", fps)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; at least 1 is allowed")
    if not wanted:
        return None
    defaults = Film()
    return Film(frames or defaults.frames, fps or defaults.fps, loop, space)


def check_purpose(mixing: Mixing | None, film: Film | None, images: Sequence[str]) -> None:
    """Refuse a call that asks for two things at once.

    Args:
        mixing: The table that it asks for, if any.
        film: The film, likewise.
        images: The options for single images and films that are given.

    Raises:
        UsageError: If a table and something else is asked for.
    """
    if mixing is not None and film is not None:
        raise UsageError("--mix-rows and --interpolate are both given; a table and a film take two calls")
    if mixing is not None and images:
        raise UsageError(f"{images[0]} is given with --mix-rows and --mix-columns, which say themselves what is mixed")
