"""What a `prepare` command asks for, and the record of it that makes continuing safe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from hires_gan.data.manifest import IMAGE
from hires_gan.data.pairs import Inputs
from hires_gan.data.pictures import DEFAULT_MAX_PIXELS, Crop, Encode, Filter, PictureOptions
from hires_gan.data.sources import Listing
from hires_gan.errors import Failure, UsageError
from hires_gan.settings import Settings, is_power_of_two

_SMALLEST = 4
_SHARD_PIXELS = 2**28
_FEWEST, _MOST = 16, 10_000
_NUMBERING = 2


class PrepareOptions(Settings):
    """The options of `hires-gan prepare`, checked; anything wrong is a UsageError."""

    resolution: int
    """Height and width of the samples in pixels: a power of two."""
    crop: Crop = "center"
    """The largest central square, none (images are square already), or all tiles of the resolution."""
    filter: Filter = "lanczos"
    """The antialiased filter that resizes."""
    encode: Encode = "auto"
    """Keep the source's kind, or always one."""
    levels: tuple[int, ...] = ()
    """Smaller copies to add: powers of two below the resolution."""
    columns: tuple[str, ...] = ()
    """The names of the pictures in each sample of the sources; none for sources of single images."""
    labels: str = "none"
    """none, folders, own, or the path of a CSV file."""
    shard_images: int | None = Field(default=None, ge=1)
    """Source images per shard; null chooses by the resolution."""
    processes: int | None = Field(default=None, ge=1)
    """Worker processes; null takes one per usable core."""
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    """The largest share of images that may be rejected."""
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1)
    """The largest image that is decoded."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            options = handler(data)
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-")
            raise UsageError(f"--{option}: {first['msg']}, found {first['input']!r}") from None
        options._check_sizes()
        return options

    def _check_sizes(self) -> None:
        if not _is_size(self.resolution):
            raise UsageError(
                f"--resolution {self.resolution} is not a power of two from {_SMALLEST} on: use 256, 512 or 1024, say"
            )
        wrong = [level for level in self.levels if not _is_size(level) or level >= self.resolution]
        if wrong or len(set(self.levels)) < len(self.levels):
            found = ",".join(map(str, self.levels))
            raise UsageError(
                f"--levels {found} must be different powers of two from {_SMALLEST} to {self.resolution // 2}"
            )

    @property
    def images_per_shard(self) -> int:
        """Source images per shard: about 256 at 1024x1024, which makes shards of a few hundred megabytes."""
        return self.shard_images or min(_MOST, max(_FEWEST, _SHARD_PIXELS // self.resolution**2))

    def shard_columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of the shards: every picture by its name, then the levels, the smallest last."""
        return (*names, *(f"{name}.{level}" for level in sorted(self.levels, reverse=True) for name in names))

    @property
    def keys_per_image(self) -> int:
        """How many keys each image has for its samples: a power of ten, no fewer than the most tiles it can have."""
        most = self.max_pixels // self.resolution**2 if self.crop == "tiles" else 1
        return int(10 ** len(str(max(most, 1) - 1))) if most > 1 else 1

    def picture_options(self) -> PictureOptions:
        """Return what the worker processes need to know."""
        return PictureOptions(
            self.resolution, self.crop, self.filter, self.encode, tuple(sorted(self.levels)), self.max_pixels
        )


def _is_size(value: int) -> bool:
    return value >= _SMALLEST and is_power_of_two(value)


class Command(Settings):
    """What decides the bytes of the shards: two equal commands make equal shards."""

    sources: tuple[str, ...]
    """Absolute; of pairs whose pictures lie apart, each behind its name: `a=/data/photos`."""
    images: int
    """How many images (or pairs) the sources hold."""
    fingerprint: str
    """sha256 over the images' names, sizes and labels."""
    options: dict[str, str | int | tuple[int, ...]]
    """Those that change the result."""
    pictures: tuple[str, ...] = (IMAGE,)
    """What each sample is made of."""
    numbering: int = 1
    """How keys are numbered: 1, as the samples come; 2, by the images' places in the listing."""

    def differences(self, other: Command, contents: bool) -> list[str]:
        """Describe how `other` differs; with `contents` sources count as equal if they hold the same images."""
        changed = [
            f"--{name.replace('_', '-')} was {_plain(mine)}, now {_plain(other.options[name])}"
            for name, mine in self.options.items()
            if mine != other.options[name]
        ]
        if contents and self.numbering != other.numbering:
            changed.append("its keys were numbered by an earlier version of this program")
        if self.pictures != other.pictures:
            changed.append(f"each sample was {' and '.join(self.pictures)}, now {' and '.join(other.pictures)}")
        same = self.fingerprint == other.fingerprint if contents else self.sources == other.sources
        if not same:
            changed.append(f"the images were {self._content()}, now {other._content()}")
        return changed

    def _content(self) -> str:
        where = ", ".join(self.sources)
        return f"{self.images} of {where} (sha256 of the list {self.fingerprint[:8]})" if self.fingerprint else where


def _plain(value: str | int | tuple[int, ...]) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def command(inputs: Inputs, options: PrepareOptions, listing: Listing | None) -> Command:
    """Describe a command; without a listing the sources' contents are left open."""
    deciding: dict[str, Any] = {
        name: getattr(options, name) for name in ("resolution", "crop", "filter", "encode", "labels", "max_pixels")
    }
    deciding |= {"levels": tuple(sorted(options.levels)), "shard_images": options.images_per_shard}
    places = [os.path.abspath(place) for place in inputs.places]  # noqa: PTH100 - patterns are no paths
    prefixes = [f"{name}=" for name in inputs.names] if inputs.apart else [""] * len(places)
    return Command(
        sources=tuple(prefix + place for prefix, place in zip(prefixes, places, strict=True)),
        images=len(listing.items) if listing else 0,
        fingerprint=listing.fingerprint() if listing else "",
        options=deciding,
        pictures=inputs.names,
        numbering=_NUMBERING,
    )


def read_command(path: Path) -> Command | None:
    """Read the record of an earlier command; None if there is none.

    Raises:
        Failure: It cannot be read.
    """
    try:
        return Command.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it was changed or cut short"
        raise Failure(f"{path} cannot be read ({reason}): choose another output folder") from None
