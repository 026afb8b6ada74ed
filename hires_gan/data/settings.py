"""The `data` block of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hires_gan.cores import usable_cores
from hires_gan.settings import Settings


class DataSettings(Settings):
    """Where the images are and how they reach the device."""

    shards: str = Field(min_length=1)
    """A folder that `hires-gan prepare` made, or `demo:NAME` for a set made from scikit-image's photographs."""

    decoder: Literal["torchvision"] = "torchvision"
    """What turns the files into pixels."""

    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    """Processes that decode, per training process; auto: the cores it may use less one, 0: none."""

    prefetch: Annotated[int, Field(ge=1, le=64)] = 3
    """How many batches are decoded ahead of the step."""

    mirror: bool = False
    """Flip every other image from left to right, drawn anew in every epoch."""


def automatic_workers(share: int) -> int:
    """What `workers: auto` means: the usable cores divided among `share` training processes, less one for each."""
    return max(1, usable_cores() // share - 1)
