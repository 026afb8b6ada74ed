"""How different the translations of one image are: LPIPS between them, by both published protocols. Higher is better.

Both take LPIPS on AlexNet's features (version 0.1) between translations of the same image in different random styles,
and average over images. They differ in which translations are compared, and so in how noisy the number is; in the mean
they estimate the same, but papers' numbers are to be compared under the same name only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import torch
from torch import Tensor

from hires_gan.evaluation.perceptual import PairDistance, at_once, equal_parts, exact_float32, fitted
from hires_gan.inference.images import finite
from hires_gan.randomness import Purpose, RandomSource

SEED = 0
"""Of the styles, so that numbers compare between runs."""


class Translate(Protocol):
    """From images of one domain to images of another."""

    def __call__(self, inputs: Tensor, styles: Tensor) -> Tensor:
        """Translate.

        Args:
            inputs: `[n, 3, r, r]` in [-1, 1].
            styles: `[n, style_size]`, one for each input, from N(0, 1), in the dtype of the inputs.

        Returns:
            `[n, 3, s, s]` in [-1, 1].
        """


@dataclass(frozen=True)
class DiversityProtocol:
    """Which translations of an image are compared.

    Attributes:
        inputs: So many images are translated; None for all that the test set has.
        outputs: How often each is translated, every time in another style.
        pairs: Which of these translations are compared.
    """

    inputs: int | None
    outputs: int
    pairs: tuple[tuple[int, int], ...]


MUNIT = DiversityProtocol(100, 38, tuple((2 * number, 2 * number + 1) for number in range(19)))
"""Huang et al. 2018, section 5.1: 100 inputs, 19 pairs of translations of each, drawn independently: 1,900 pairs."""
STARGAN2 = DiversityProtocol(None, 10, tuple(combinations(range(10), 2)))
"""Choi et al. 2020 (StarGAN v2): every test image translated 10 times; all 45 pairs of these."""

PROTOCOLS: Mapping[str, DiversityProtocol] = {"lpips_diversity_munit": MUNIT, "lpips_diversity_stargan2": STARGAN2}
"""The metrics by name."""


def lpips_diversity(
    translate: Translate,
    inputs: Tensor,
    samples: Tensor,
    style_size: int,
    distance: PairDistance,
    protocol: DiversityProtocol,
) -> Tensor:
    """How different the translations of each image are: the mean distance of its pairs.

    One image after the other, its translations in parts as `at_once` says (two at a time at 1024x1024), each reduced
    at once to the size at which it is compared.

    Args:
        translate: Gives translations, without gradients.
        inputs: `[n, 3, r, r]` in [-1, 1], r a power of two, on the device that computes; some or all of the inputs.
        samples: int64 `[n]`, their numbers among all inputs: the styles of an input are a function of its number.
        style_size: Dimensions of a style.
        distance: LPIPS on AlexNet for the published metric.
        protocol: `MUNIT` or `STARGAN2`.

    Returns:
        float64 `[n]` on the CPU; NaN where a translation that is compared is not finite. They may be computed anywhere,
        in any parts and in any order; the metric is the mean over all inputs.

    Raises:
        ValueError: If there are not as many numbers as inputs.
    """
    if len(inputs) != len(samples):
        raise ValueError(f"there are {len(inputs)} inputs and {len(samples)} samples; as many are allowed")
    shape = (protocol.outputs, style_size)
    styles = RandomSource(SEED).normal(Purpose.STYLE_DIVERSITY, samples.to(inputs.device), shape).to(inputs.dtype)
    first, second = torch.tensor(protocol.pairs, device=inputs.device).unbind(1)
    found = torch.zeros(len(inputs), dtype=torch.float64)
    with torch.no_grad(), exact_float32():
        for number, (image, own) in enumerate(zip(inputs, styles, strict=True)):
            outputs = _translations(translate, image, own)
            whole = finite(outputs)
            distances = distance(outputs[first], outputs[second]).double()
            # Rectifiers may make 0 of what is infinite.
            found[number] = distances.where(whole[first] & whole[second], math.nan).mean().cpu()
    return found


def _translations(translate: Translate, image: Tensor, styles: Tensor) -> Tensor:
    """An image `[3, r, r]` in all styles `[m, style_size]`, as it is compared: `[m, 3, s, s]`."""
    size = at_once(image.shape[-1])
    repeated = image.expand(size, -1, -1, -1)
    return torch.cat([fitted(translate(repeated, part), 1)[:count] for part, count in equal_parts(styles, size)])
