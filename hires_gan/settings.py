"""The base of every room's settings model, and the kinds of value that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """One block of the configuration: frozen, and strict about unknown keys.

    Attribute docstrings become the descriptions in `hires-gan config schema`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


T = TypeVar("T")


def expanded(path: Path) -> Path:
    """The path with a home folder in place of `~` and `~user`, as a shell has it: what names nobody stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of pathlib raises an error where there is no such user


HomePath = Annotated[Path, AfterValidator(expanded)]
"""A path that may begin with `~`."""


def is_power_of_two(value: int) -> bool:
    """Whether `value` is 1, 2, 4, 8, ..."""
    return value > 0 and value & (value - 1) == 0


def _check_resolution(value: int) -> int:
    if value < 4 or not is_power_of_two(value):
        raise ValueError(f"{value} is no resolution; a power of two from 4 up is allowed, such as 256, 512 or 1024")
    return value


def _check_by_resolution(value: T | dict[int, T]) -> T | dict[int, T]:
    if isinstance(value, dict):
        if not value:
            raise ValueError("the map is empty; it needs an entry for the lowest resolution")
        for resolution in value:
            _check_resolution(resolution)
    return value


Resolution = Annotated[int, AfterValidator(_check_resolution)]
"""A power of two, from 4 up."""

Cadence = Annotated[float, Field(gt=0)] | None
"""Every how many kimg something is due, at the first step boundary at or after each multiple; null turns it off."""

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

IntByResolution = Annotated[PositiveInt | dict[int, PositiveInt], AfterValidator(_check_by_resolution)]
"""One number, or a map from resolution to number in which the nearest lower entry holds."""

FloatByResolution = Annotated[Positive | dict[int, Positive], AfterValidator(_check_by_resolution)]
"""One positive number, or a map from resolution to number in which the nearest lower entry holds."""


def at_resolution(value: T | Mapping[int, T], resolution: int) -> T:
    """The entry of a map by resolution that holds at `resolution`: the nearest lower one.

    Raises:
        ValueError: If every entry of the map lies above `resolution`.
    """
    if not isinstance(value, Mapping):
        return value
    lower = [r for r in value if r <= resolution]
    if not lower:
        raise ValueError(f"no entry for resolution {resolution}; the lowest of the map is {min(value)}")
    return value[max(lower)]
