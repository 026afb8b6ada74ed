"""From an image back to styles.

The method is that of Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", appendix D.
Styles and the layers' noise are both learned; a regularisation keeps the image out of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.inference.distances import Distance
from hires_gan.inference.rendering import constant_noise
from hires_gan.inference.styles_file import Styles
from hires_gan.networks.layers import halve_box
from hires_gan.networks.styles import StyleGenerator
from hires_gan.randomness import Purpose, RandomSource

StyleSpace = Literal["w", "w+"]
Precision = Literal["fp32", "bf16"]

CENTER_LATENTS = 10_000
_CHUNK = 1000
_LEAST_NOISE = 8
_LOW_PRECISION_RESOLUTIONS = 4
_REPORT_EVERY = 10
"""Reading the distance makes a GPU wait."""


@dataclass(frozen=True)
class ProjectionSettings:
    """How styles are looked for; the defaults are the paper's, its numbers of steps as shares of all.

    Attributes:
        space: One style for all layers, or one for each.
        steps: Of Adam, with its default betas.
        seed: Of the latents for the centre of W and of what is added to the styles on the way.
        learning_rate: At its highest.
        rise: Over this share of the steps the learning rate rises from 0, on a straight line.
        fall: Over this share at the end it falls to 0, along a cosine.
        jitter: The deviation of what is added to styles at the start, in terms of the spread of W.
        jitter_share: After this share of the steps it has fallen to 0, along a parabola.
        noise_weight: Of the regularisation of the layers' noise.
    """

    space: StyleSpace = "w"
    steps: int = 1000
    seed: int = 0
    learning_rate: float = 0.1
    rise: float = 0.05
    fall: float = 0.25
    jitter: float = 0.05
    jitter_share: float = 0.75
    noise_weight: float = 1e5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"--steps is {self.steps}; at least 1 is allowed, and 1000 are usual")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed is {self.seed}; numbers from 0 to 2^32 - 1 are allowed")

    def learning_rate_at(self, t: float) -> float:
        """The learning rate at a time in [0, 1]."""
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / self.fall))
        return self.learning_rate * fall * min(1.0, t / self.rise)

    def jitter_at(self, t: float) -> float:
        """What is added to styles at a time in [0, 1], in terms of the spread of W."""
        return self.jitter * max(0.0, 1.0 - t / self.jitter_share) ** 2


@dataclass(frozen=True)
class Projection:
    """What was found.

    Attributes:
        styles: Whose image is closest.
        start: How far the image of the mean style is from the target.
        end: How far that of the found styles is.
    """

    styles: Styles
    start: float
    end: float


def center_of_w(network: StyleGenerator, labels: Tensor | None, seed: int) -> tuple[Tensor, float]:
    """The mean of W over 10,000 latents, and its spread: the root of the mean squared distance from the mean.

    Args:
        network: The generator.
        labels: int64 `[1]`, the class, if it is conditional.
        seed: Of the latents.

    Returns:
        `[w_size]`, in the dtype and on the device of `w_average`; and a number.
    """
    source = RandomSource(seed)
    found = []
    for first in range(0, CENTER_LATENTS, _CHUNK):
        numbers = torch.arange(first, first + _CHUNK)
        latents = source.normal(Purpose.LATENT_CENTER, numbers, (network.latent_size,)).to(network.w_average)
        with torch.no_grad():
            found.append(network.mapping(latents, None if labels is None else labels.expand(_CHUNK)).double())
    w = torch.cat(found)
    mean = w.mean(0)
    spread = (w - mean).square().sum(1).mean().sqrt().item()
    return mean.to(network.w_average.dtype), spread


def noise_correlation(noise: Tensor) -> Tensor:
    """How much neighbours agree in a layer's noise, at its resolution and all lower ones down to 8x8: a number.

    Each lower one averages 2x2 values and doubles them, which keeps the variance of what is independent.

    Args:
        noise: `[1, 1, h, w]`, powers of two.
    """
    total = noise.new_zeros(())
    while True:
        for axis in (2, 3):
            total = total + (noise * torch.roll(noise, 1, axis)).mean().square()
        if noise.shape[-1] <= _LEAST_NOISE:
            return total
        noise = halve_box(noise) * 2


def project_styles(
    network: StyleGenerator,
    distance: Distance,
    settings: ProjectionSettings,
    labels: Tensor | None = None,
    report: Callable[[int, float], object] = lambda step, value: None,
) -> Projection:
    """Find the styles whose image is closest to a target.

    Args:
        network: In evaluation mode, its parameters without gradients; it is left as it is.
        distance: From images to how far they are from the target.
        settings: How to look.
        labels: int64 `[1]`, the class, if the generator is conditional.
        report: Is told how many steps are done and the distance, now and then.

    Raises:
        Failure: If the distance is not finite.
    """
    center, spread = center_of_w(network, labels, settings.seed)
    w = center.expand(1, network.num_ws if settings.space == "w+" else 1, -1).clone().requires_grad_(True)
    noise = [part.clone() for part in constant_noise(network)]
    learned = [part.requires_grad_(True) for part in noise if part.shape[-1] <= image_side(network)]
    optimizer = torch.optim.Adam([w, *learned])
    start = _distance_now(network, distance, w, noise)
    for step in range(settings.steps):
        t = (step + 0.5) / settings.steps
        jittered = w + _jitter(settings, step, w) * (spread * settings.jitter_at(t))
        value = distance(_image(network, jittered, noise)).sum()
        loss = value + settings.noise_weight * torch.stack([noise_correlation(part) for part in learned]).sum()
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _renormalise(learned)
        if step % _REPORT_EVERY == _REPORT_EVERY - 1 or step + 1 == settings.steps:
            report(step + 1, _finite(value.item()))
    end = _finite(_distance_now(network, distance, w, noise))
    ws = w.detach().expand(1, network.num_ws, -1).contiguous()
    return Projection(Styles(ws, tuple(part.detach() for part in noise)), start, end)


def image_side(network: StyleGenerator) -> int:
    """The side of the images that the generator makes now."""
    growth = getattr(network, "growth", None)
    return network.resolution if growth is None else int(growth.resolution)


@contextmanager
def computing_in(network: StyleGenerator, precision: Precision) -> Iterator[None]:
    """Let the four highest resolutions compute in bfloat16 for a while, as in training; with fp32 nothing changes."""
    synthesis = network.synthesis
    before = synthesis.dtypes
    if precision == "bf16":
        sides = sorted({h for h, _ in synthesis.noise_shapes if h <= image_side(network)})  # type: ignore[union-attr]
        synthesis.dtypes = dict.fromkeys(sides[-_LOW_PRECISION_RESOLUTIONS:], torch.bfloat16)  # type: ignore[assignment]
    try:
        yield
    finally:
        synthesis.dtypes = before


def _jitter(settings: ProjectionSettings, step: int, w: Tensor) -> Tensor:
    """N(0, 1) in the shape of the styles `[1, n, w_size]`."""
    random, number = RandomSource(settings.seed), torch.tensor([step])
    return random.normal(Purpose.NOISE_PROJECTION, number, tuple(w.shape[1:])).to(w)


def _image(network: StyleGenerator, w: Tensor, noise: list[Tensor]) -> Tensor:
    images: Tensor = network.synthesis(w.expand(-1, network.num_ws, -1), noise)
    return images


@torch.no_grad()
def _renormalise(noise: list[Tensor]) -> None:
    """Give each layer's noise a mean of 0 and a variance of 1."""
    for part in noise:
        part -= part.mean()
        part *= part.square().mean().rsqrt()


@torch.no_grad()
def _distance_now(network: StyleGenerator, distance: Distance, w: Tensor, noise: list[Tensor]) -> float:
    return distance(_image(network, w, noise)).sum().item()


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise Failure(f"the distance has become {value}; is the checkpoint whole? In bf16, try --precision fp32")
    return value
