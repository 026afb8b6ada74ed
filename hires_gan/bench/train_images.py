"""Batches to train on without a run: random ones that lie on the device, or those of the configuration's data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

from hires_gan.data.domains import Domains, open_data
from hires_gan.data.loader import Loader, Request, check_decoder
from hires_gan.data.manifest import IMAGE
from hires_gan.data.replacement import CorruptRows
from hires_gan.errors import UsageError
from hires_gan.inference.images import from_uint8
from hires_gan.ops.leaving_out import left_out
from hires_gan.recipes.protocol import Batch, LabelDistribution, Stage
from hires_gan.training.feed import Feed
from hires_gan.training.run import check_data, lanes_of
from hires_gan.training.settings import Plan

_BATCHES = 4
"""Synthetic batches that are shown in turns."""


@dataclass(frozen=True)
class Images:
    """What is trained on.

    Attributes:
        kind: `synthetic` or `real`.
        data: The configuration's shards; None for synthetic images.
        labels: Their classes; None for an unconditional model.
        domains: What they show: `image` alone for plain images.
    """

    kind: Literal["synthetic", "real"]
    data: Domains | None = None
    labels: LabelDistribution | None = None
    domains: tuple[str, ...] = (IMAGE,)


def open_images(plan: Plan, kind: Literal["synthetic", "real"], device: torch.device) -> Images:
    """Open what the steps are to be fed with.

    Raises:
        UsageError: The recipe wants labels, which synthetic images have not, or the data do not fit it.
    """
    if kind == "real":
        data = open_data(plan.data)
        labels = check_data(plan, data)
        check_decoder(plan.data, data, device)
        return Images(kind, data, labels, data.names)
    if plan.recipe.labels:
        raise UsageError(
            "recipe.labels is true, and --data synthetic has none; use --data real, or measure without: "
            "recipe.labels=false"
        )
    return Images(kind, domains=synthetic_domains(plan))


def synthetic_domains(plan: Plan) -> tuple[str, ...]:
    """Those of the configuration, or what pairs are called by default."""
    if not plan.recipe.translates:
        return (IMAGE,)
    return tuple(plan.data.domains) if plan.data.domains else ("a", "b")


class Supply(Protocol):
    """What gives the batches: `Feed`, or synthetic ones."""

    @property
    def waited(self) -> float: ...  # noqa: D102
    def take(self) -> Batch: ...  # noqa: D102
    def copy_ahead(self) -> None: ...  # noqa: D102
    def lost(self) -> float: ...  # noqa: D102


class Synthetic:
    """A few batches of random uint8 images on the device, in turns.

    Args:
        stage: Whose batch and resolution hold.
        device: Where they lie.
        dtype: float32 or float64, of what `take` gives.
        labels: Whether they have labels, all of the first class.
        domains: What they show.
    """

    waited = 0.0

    def __init__(
        self,
        stage: Stage,
        device: torch.device,
        dtype: torch.dtype,
        labels: bool = False,
        domains: tuple[str, ...] = (IMAGE,),
    ) -> None:
        shape = (stage.batch * len(domains), 3, stage.resolution, stage.resolution)
        random = torch.Generator(device).manual_seed(0)
        made = (torch.randint(256, shape, generator=random, dtype=torch.uint8, device=device) for _ in range(_BATCHES))
        layout = torch.contiguous_format if left_out("channels-last") else torch.channels_last
        self._turns = itertools.cycle([one.contiguous(memory_format=layout) for one in made])
        self._dtype, self._domains = dtype, domains
        self._labels = torch.zeros(stage.batch, dtype=torch.int64, device=device) if labels else None

    def take(self) -> Batch:
        """The next batch, in [-1, 1]."""
        return Batch(from_uint8(next(self._turns), self._dtype), self._labels, self._domains)

    def copy_ahead(self) -> None:
        """They are there."""

    def lost(self) -> float:
        """Nothing waits for them."""
        return 0.0


@contextmanager
def supply(plan: Plan, images: Images, stage: Stage, starts: Iterator[int], device: torch.device) -> Iterator[Supply]:
    """Batches for the steps of a stage.

    Args:
        plan: The configuration.
        images: What the batches show.
        stage: Whose batch and resolution hold.
        starts: The number of each step's first sample.
        device: Where the batches are wanted.
    """
    dtype = torch.float64 if plan.precision == "fp64" else torch.float32
    if images.data is None:
        yield Synthetic(stage, device, dtype, domains=images.domains)
        return
    loader = Loader(
        images.data,
        plan.data,
        plan.run.seed,
        stage.batch * stage.resolution**2 * 3,
        device=device,
        corrupt=CorruptRows(plan.data.max_corrupt),
        lanes=lanes_of(plan),
        typical=Request(range(stage.batch), stage.resolution),
    )
    with loader:
        requests = (Request(range(nimg, nimg + stage.batch), stage.resolution) for nimg in starts)
        batches = loader.batches(requests)
        if left_out("channels-last"):  # in which decoders give them
            batches = (replace(batch, images=batch.images.contiguous()) for batch in batches)
        yield Feed(batches, device, dtype)
