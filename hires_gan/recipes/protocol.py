"""What a recipe is: the seam between the families and the training loop.

A recipe owns the networks and says what one step is; it knows nothing of ranks, micro-batches or optimizers' inner
lives. The loop asks for the phases that are due, hands each of them a `Step`, and gets one value per sample back; it
sums them, divides by the global batch, and steps the optimizer of the phase's player.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hires_gan.randomness import SampleRandom


@dataclass(frozen=True)
class Batch:
    """Real images on the device that computes.

    Attributes:
        images: `[k * n, 3, r, r]` of n samples in k domains, float32 or float64 in [-1, 1]: the n images of the first
            domain, then those of the second. Plain images are one domain.
        labels: int64 `[n]`, or None for data without labels, and for domains.
        domains: What the domains are called.
    """

    images: Tensor
    labels: Tensor | None
    domains: tuple[str, ...] = ("image",)

    def __len__(self) -> int:
        """How many samples there are: n."""
        return len(self.images) // len(self.domains)

    def domain(self, name: str) -> Tensor:
        """The images of one domain: `[n, 3, r, r]`, a view.

        Raises:
            ValueError: If there is no such domain.
        """
        if name not in self.domains:
            raise ValueError(f"domain is {name!r}; this batch has {', '.join(self.domains)}")
        first = self.domains.index(name) * len(self)
        return self.images[first : first + len(self)]

    def part(self, samples: slice) -> Batch:
        """Some of the samples, with their images of all domains."""
        labels = None if self.labels is None else self.labels[samples]
        parts = [self.domain(name)[samples] for name in self.domains]
        return Batch(parts[0] if len(parts) == 1 else torch.cat(parts), labels, self.domains)


@dataclass(frozen=True)
class Step:
    """All that a phase sees.

    Attributes:
        batch: The local samples.
        random: Randomness that is a function of their global indices.
        alpha: That of the phase as a float64 tensor without dimensions, on the device of the batch, so that it can
            change while the phase stays; None outside of a fade, or if the function shall take the number that it has.
    """

    batch: Batch
    random: SampleRandom
    alpha: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """What a phase gives back.

    Attributes:
        losses: Named terms, each `[n]`, one value per sample, already weighted: their sum is minimised.
        statistics: Named values to watch, each `[n]`, without gradient.
        averages: Named values that only `Recipe.advance` is told the means of, each `[n, ...]`, without gradient.
    """

    losses: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    averages: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """One optimizer step of one player.

    Attributes:
        name: What it is called in metrics and profiles.
        player: The module that learns; the others are frozen meanwhile.
        function: From a step to its outcome, without collectives. It may be recorded as a CUDA graph, and then sees
            what changes from step to step in the step it is given, and in tensors that `Recipe.advance` and
            `Recipe.load_state_dict` change in place; it reads no value back, and takes no data-dependent way.
        after: Called behind the optimizer's step (weight clipping).
        interval: Every how many steps of a stage it is due, beginning with the first.
        alpha: How far the new resolution is blended in, in [0, 1); None outside of a fade. In all steps of a stage it
            is either None or not.
    """

    name: str
    player: str
    function: Callable[[Step], Outcome]
    after: Callable[[], None] | None = None
    interval: int = 1
    alpha: float | None = None


@dataclass(frozen=True)
class OptimizerPlan:
    """Adam's settings and the parameters that live, for one player in one stage.

    Attributes:
        learning_rate: At the start of the run.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        live: The names of the parameters that learn.
        weight_decay: Times the parameters is added to the gradient.
        halving: The learning rate is halved behind each so many images; None: never.
    """

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    live: tuple[str, ...]
    weight_decay: float = 0.0
    halving: int | None = None

    def rate_at(self, nimg: int) -> float:
        """The learning rate of the step that begins at `nimg`."""
        return self.learning_rate * 0.5 ** (nimg // self.halving) if self.halving else self.learning_rate


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which nothing changes but the fade and the learning rates' halvings.

    Optimizers are made anew at its start.

    Attributes:
        start: First nimg, a step boundary.
        end: The nimg at which the next stage starts; None for the last one.
        resolution: Side of the images.
        batch: The global batch.
        group: Samples that must go through the networks together.
        fade: Whether the resolution is being blended in.
        optimizers: One plan per player.
    """

    start: int
    end: int | None
    resolution: int
    batch: int
    group: int
    fade: bool
    optimizers: Mapping[str, OptimizerPlan]


def stage_at(stages: Sequence[Stage], nimg: int) -> int:
    """The index of the stage in which the step that begins at `nimg` lies."""
    return max(i for i, stage in enumerate(stages) if stage.start <= nimg)


def due_phases(phases: Sequence[Phase], stages: Sequence[Stage], nimg: int) -> list[Phase]:
    """Those of the phases that are due in the step that begins at `nimg`."""
    stage = stages[stage_at(stages, nimg)]
    step = (nimg - stage.start) // stage.batch
    return [phase for phase in phases if step % phase.interval == 0]


def steps_until(start: int, nominal: float, batch: int) -> int:
    """The first step boundary at or after `nominal`, counting steps of `batch` images from `start`."""
    return start + max(0, math.ceil((nominal - start) / batch)) * batch


@dataclass(frozen=True)
class LabelDistribution:
    """How often each class occurs in the data: the labels of fakes are drawn from it.

    Attributes:
        counts: Images per class, at least one class.
    """

    counts: tuple[int, ...]

    def draw(self, uniform: Tensor) -> Tensor:
        """Uniform `[n]` in [0, 1) -> class labels, int64 `[n]`, by the inverse of the cumulative distribution."""
        edges = _label_edges(self.counts, uniform.device)
        labels = torch.searchsorted(edges, uniform.to(edges.dtype), right=True)
        return labels.clamp(max=len(self.counts) - 1)


@functools.cache
def _label_edges(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Float64 `[classes]`, the cumulative shares; kept, since a copy to a GPU at every step would wait for it."""
    return torch.from_numpy(np.cumsum(counts) / sum(counts)).to(device)


class Recipe(Protocol):
    """A family, as the training loop sees it."""

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """The modules that learn, each with an optimizer of its own."""

    @property
    def averaged(self) -> str:
        """The player of which a running average is kept, for samples, evaluation and inference."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The whole schedule, computed once."""

    def phases(self, nimg: int) -> Sequence[Phase]:
        """The phases that are due in the step that begins at `nimg`, in order."""

    def advance(self, nimg: int, means: Mapping[str, Tensor]) -> None:
        """Update what depends on the means of the step that ended at `nimg`.

        Args:
            nimg: Images shown.
            means: `loss/NAME`, `statistics/NAME` and `average/NAME`, over the global batch, on the device.
        """

    def describe(self, nimg: int) -> str:
        """Where the schedule stands, in a few words for the status line; asked at every step, so it reads no tensor."""

    def inference(self, nimg: int) -> dict[str, Any]:
        """What `generate` must know besides the weights, as plain JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """Everything else that a resume needs, as plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Generates(Recipe, Protocol):
    """A family that makes images from nothing."""

    def sample(self, network: nn.Module, samples: Tensor, nimg: int) -> Tensor:
        """Images `[n, 3, r, r]` in [-1, 1] of fixed latents number `samples`, from the averaged network."""


class Translates(Recipe, Protocol):
    """A family that makes images of one domain from those of another."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in the order in which a batch holds them."""

    def translate(
        self, network: nn.Module, images: Tensor, samples: Tensor, nimg: int, source: str, target: str
    ) -> Tensor:
        """Translations `[n, 3, r, r]` in [-1, 1], from the averaged network.

        Args:
            network: The averaged player.
            images: `[n, 3, R, R]` in [-1, 1] of domain `source`, at the full resolution.
            samples: int64 `[n]`: which of the fixed styles each image gets.
            nimg: Images shown; it says how far the network has grown.
            source: The images' domain.
            target: The domain to which they are translated.
        """
