"""The `data` block of the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from hires_gan.data.stream_settings import StreamSettings
from hires_gan.settings import Settings

Location = Annotated[str, Field(min_length=1)]
"""Where a shard set is."""

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def _check_names(domains: dict[str, str]) -> dict[str, str]:
    for name in domains:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a domain; letters, digits and underscores are allowed, no digit first"
            )
    if len(domains) < 2:
        raise ValueError(
            f"{len(domains)} given, and two or more are needed, such as {{a: cats, b: dogs}}; a single shard set is "
            "data.shards"
        )
    return domains


class DataSettings(Settings):
    """Where the images are and how they reach the device: exactly one of `shards` and `domains` says where."""

    shards: Location | None = None
    """A folder that `hires-gan prepare` made; a URL of one, such as s3://bucket/set; or `demo:NAME` for a set made from
    scikit-image's photographs: `photographs`, or `snapshots` and `prints`, two unpaired domains."""

    domains: Annotated[dict[str, Location], AfterValidator(_check_names)] | None = None
    """For the translation between unpaired images: a shard set for each domain, by the domain's name."""

    stream: StreamSettings = StreamSettings()
    """How shards come from an object store, a web server or a pipe."""

    decoder: Literal["torchvision", "dali", "dali-cpu"] = "torchvision"
    """What turns the files into pixels: torchvision in worker processes; dali: NVIDIA DALI on the GPU that trains
    (there must be one); dali-cpu: DALI on the CPU, also beside a GPU."""

    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    """Processes in which torchvision decodes, per training process; auto: decided at the start, by a measurement of
    two seconds at most; 0: none. With DALI as many threads read the files, at least one; beside a GPU no more than a
    training process has cores."""

    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Threads in which DALI decodes, per training process; auto: decided at the start."""

    hw_decoder_load: Annotated[float, Field(ge=0, le=1)] = 0.65
    """The share of the JPEG files that a GPU's own JPEG decoder takes, where DALI decodes on a GPU that has one."""

    prefetch: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    """How many batches are decoded ahead of the step; auto: decided at the start, 3 as a rule."""

    mirror: bool = False
    """Flip every other image from left to right, drawn anew in every epoch."""

    max_corrupt: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The share of the set's samples that may be corrupt: they are skipped, counted and replaced by the next good ones;
    more of them stop the run. 0: the first one does."""

    timeout: Annotated[float, Field(ge=1)] = 120.0
    """Seconds without a decoded image after which the input is said to hang."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.shards is None) == (self.domains is None):
            found = "neither shards nor domains is" if self.shards is None else "both shards and domains are"
            raise ValueError(
                f"{found} given; exactly one of them is needed: shards names a shard set, domains one for each domain "
                "that is translated; set the other to null"
            )
        return self
