"""What the style-based families share: latents to styles, mixed, with the layers' noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hires_gan.networks.styles import StyleGenerator
from hires_gan.randomness import Purpose, SampleRandom
from hires_gan.recipes.protocol import LabelDistribution


@dataclass(frozen=True)
class FakePurposes:
    """What the random numbers behind a phase's fakes are for."""

    latent: Purpose
    label: Purpose
    mixing: Purpose
    noise: Purpose


DISCRIMINATOR = FakePurposes(
    Purpose.LATENT_DISCRIMINATOR,
    Purpose.LABEL_DISCRIMINATOR,
    Purpose.MIXING_DISCRIMINATOR,
    Purpose.NOISE_DISCRIMINATOR,
)
GENERATOR = FakePurposes(
    Purpose.LATENT_GENERATOR, Purpose.LABEL_GENERATOR, Purpose.MIXING_GENERATOR, Purpose.NOISE_GENERATOR
)
PATH = FakePurposes(Purpose.LATENT_PATH, Purpose.LABEL_PATH, Purpose.MIXING_PATH, Purpose.NOISE_PATH)


@dataclass(frozen=True)
class Styles:
    """The styles of a batch of fakes.

    Attributes:
        ws: `[n, layers, w_size]`, mixed.
        w: `[n, w_size]`, of each sample's first latent.
        labels: int64 `[n]`, or None.
    """

    ws: Tensor
    w: Tensor
    labels: Tensor | None


def draw_styles(
    generator: StyleGenerator,
    random: SampleRandom,
    purposes: FakePurposes,
    mixing: float,
    labels: LabelDistribution | None,
    layers: int | None = None,
) -> Styles:
    """Draw latents and labels, map them, and mix the styles of some samples with those of a second latent.

    A mixed sample takes the second latent's styles from a layer on that is drawn, for each sample by itself, evenly
    from all but the first (Karras et al. 2019, section 3.1).

    Args:
        generator: Whose styles they are.
        random: Of the samples.
        purposes: Of the numbers.
        mixing: The probability that a sample is mixed.
        labels: How often each class occurs; None for an unconditional model.
        layers: How many of the generator's layers live; None for all.
    """
    layers = generator.num_ws if layers is None else layers
    drawn = None if labels is None else labels.draw(random.uniform(purposes.label))
    latents = random.normal(purposes.latent, 2 if mixing else 1, generator.latent_size).to(generator.w_average.dtype)
    if not mixing:
        ws = generator.styles(latents[:, 0], drawn)
        return Styles(ws, ws[:, 0].detach(), drawn)
    # Both latents in one pass: the mapping network is many small layers.
    both = generator.styles(latents.transpose(0, 1).flatten(0, 1), None if drawn is None else drawn.repeat(2))
    ws, other = both.chunk(2)
    cutoffs = mixing_cutoffs(random.uniform(purposes.mixing, 2), mixing, layers)
    return Styles(generator.mix(ws, other, cutoffs), ws[:, 0].detach(), drawn)


def mixing_cutoffs(uniform: Tensor, mixing: float, layers: int) -> Tensor:
    """The first layer of each sample that takes the second latent's styles, int64 `[n]`; `layers` where none does.

    Args:
        uniform: `[n, 2]` in [0, 1): whether a sample is mixed, and where.
        mixing: The probability that it is.
        layers: How many layers take styles, at least 2.
    """
    cutoffs = 1 + (uniform[:, 1].double() * (layers - 1)).to(torch.int64)
    return torch.where(uniform[:, 0] < mixing, cutoffs, layers)
