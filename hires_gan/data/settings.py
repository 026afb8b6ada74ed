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

    decoder: Literal["torchvision", "dali", "dali-cpu"] = "torchvision"
    """What turns the files into pixels: torchvision in worker processes; NVIDIA DALI on the device that trains; or DALI
    on the CPU, also beside a GPU."""

    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    """Processes in which torchvision decodes, per training process; auto: the cores it may use less one, 0: none."""

    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Threads in which DALI decodes, per training process; auto: the cores it may use less one."""

    hw_decoder_load: Annotated[float, Field(ge=0, le=1)] = 0.65
    """The share of the JPEG files that a GPU's own JPEG decoder takes, where DALI decodes on a GPU that has one."""

    prefetch: Annotated[int, Field(ge=1, le=64)] = 3
    """How many batches are decoded ahead of the step."""

    mirror: bool = False
    """Flip every other image from left to right, drawn anew in every epoch."""

    max_corrupt: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The share of the set's samples that may be corrupt: they are skipped, counted and replaced by the next good ones;
    more of them stop the run. 0: the first one does."""

    timeout: Annotated[float, Field(ge=1)] = 120.0
    """Seconds without a decoded image after which the input is said to hang."""


def automatic_workers(share: int) -> int:
    """What `auto` means: the usable cores divided among `share` training processes, less one for each."""
    return max(1, usable_cores() // share - 1)
