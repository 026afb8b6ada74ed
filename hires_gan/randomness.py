"""The counter-based generator: everything random that belongs to a sample is a pure function of where it stands.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3), written in integer
arithmetic of torch, on whatever device the sample indices are. The key is (seed, purpose), the counter is (sample,
position): no state, hence nothing to save, and the same numbers in any layout of ranks and micro-batches.

What is written here is the definition. Where the compiled ops compute (on a GPU, or as chosen), a draw is one kernel of
theirs: the same words and uniform numbers bit for bit, the same normal ones but for a rare last bit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Purpose(IntEnum):
    """What a number is for: the second half of the key. A value, once used, keeps its meaning for ever."""

    MIRROR = 1
    """Whether a real image is flipped from left to right."""
    LATENT_DISCRIMINATOR = 2
    """Latents of the fakes that the discriminator's step sees."""
    LATENT_GENERATOR = 3
    """Latents of the fakes that the generator's step sees."""
    LABEL_DISCRIMINATOR = 4
    """Labels of the fakes in the discriminator's step."""
    LABEL_GENERATOR = 5
    """Labels of the fakes in the generator's step."""
    PENALTY = 6
    """The place between real and fake where the gradient penalty is taken."""
    LATENT_SAMPLE = 7
    """Latents of the sample grid, of evaluation and of `generate`."""
    LABEL_SAMPLE = 8
    """Labels of the sample grid and of evaluation."""
    SWD_PATCH = 9
    """Where the sliced Wasserstein distance takes its patches."""
    SWD_DIRECTION = 10
    """The directions onto which the sliced Wasserstein distance projects."""
    MIXING_DISCRIMINATOR = 11
    """Whether, and from which layer on, a fake of the discriminator's step takes its styles from a second latent."""
    MIXING_GENERATOR = 12
    """The same in the generator's step."""
    NOISE_DISCRIMINATOR = 13
    """The layers' noise of the fakes in the discriminator's step."""
    NOISE_GENERATOR = 14
    """The same in the generator's step."""
    AUGMENT_REAL = 15
    """How a real image is augmented, in the discriminator's step and in its regularisation."""
    AUGMENT_FAKE = 16
    """How a fake is augmented in the discriminator's step."""
    AUGMENT_GENERATOR = 17
    """How a fake is augmented in the generator's step."""
    LATENT_PATH = 18
    """Latents of the fakes whose path lengths are measured."""
    LABEL_PATH = 19
    """Their labels."""
    MIXING_PATH = 20
    """Their style mixing."""
    NOISE_PATH = 21
    """Their layers' noise."""
    DIRECTION_PATH = 22
    """The images onto which the path length's Jacobian is projected."""
    LATENT_CENTER = 23
    """Latents from which the centre of W and its spread are taken."""
    NOISE_PROJECTION = 24
    """What the projection of an image into W adds to its latents on the way."""
    STYLE_DISCRIMINATOR = 25
    """Styles of the translations that the discriminator's step sees, of all domains."""
    STYLE_GENERATOR = 26
    """The same in the generator's step."""
    CROP = 27
    """Where crops are taken from the images of a sample, of all domains."""
    SPECKLE = 28
    """The pattern on images of a single colour."""
    LATENT_LENGTH = 29
    """Both ends of the paths whose perceptual length is measured."""
    PLACE_LENGTH = 30
    """Where on its path a sample's length is measured."""
    LABEL_LENGTH = 31
    """The class of a path."""
    PAIR = 32
    """Which images of a set are compared with each other."""
    STYLE_DIVERSITY = 33
    """Styles of the translations of one image that are compared with each other."""


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a 64-bit product; int64 wraps around, which the masks undo."""
    product = b * a
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four 32-bit words per counter.

    Args:
        counter: Four int64 tensors of one shape, each value in [0, 2^32).
        key: Two integers in [0, 2^32).

    Returns:
        Four int64 tensors of that shape, each value in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _kernels(device: torch.device) -> ModuleType | None:
    """The compiled ops that draw on a device, or None where plain torch does.

    They are imported on first need, so that data workers, which draw on the CPU, start without them. Who has never
    imported the ops has not chosen among them either.
    """
    if device.type != "cuda" and "hires_gan.ops" not in sys.modules:
        return None
    from hires_gan.ops import random, selection

    return random if selection.resolve(device) == "native" else None


class RandomSource:
    """Random numbers by (seed, purpose, sample index, position), the same on every device and in every layout.

    Args:
        seed: The run's seed, in [0, 2^32).
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= _MASK:
            raise ValueError(f"seed is {seed}; it must lie in [0, 2^32)")
        self.seed = seed

    def bits(self, purpose: Purpose, samples: Tensor, count: int) -> Tensor:
        """`count` words of 32 bits for each sample: int64 `[n, count]` in [0, 2^32), on the device of `samples`.

        Args:
            purpose: What the numbers are for.
            samples: int64 `[n]`, global sample indices.
            count: How many words each sample needs; a longer request begins with the shorter one's words.
        """
        kernels = _kernels(samples.device)
        if kernels is not None:
            native: Tensor = kernels.philox_words(samples, count, self.seed, int(purpose))
            return native
        blocks = torch.arange((count + 3) // 4, device=samples.device)
        shape = (samples.numel(), blocks.numel())
        sample, position = samples[:, None].expand(shape), blocks[None, :].expand(shape)
        counter = (sample & _MASK, (sample >> 32) & _MASK, position & _MASK, position >> 32)
        words = philox(counter, (self.seed, int(purpose)))
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, purpose: Purpose, samples: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 `[n, *shape]` in [0, 1), in steps of 2^-24."""
        count, kernels = math.prod(shape), _kernels(samples.device)
        if kernels is not None:
            native: Tensor = kernels.philox_uniform(samples, count, self.seed, int(purpose))
            return native.reshape(len(samples), *shape)
        words = self.bits(purpose, samples, count)
        return ((words >> 8).to(torch.float32) * 2.0**-24).reshape(len(samples), *shape)

    def normal(self, purpose: Purpose, samples: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 `[n, *shape]` from N(0, 1), by Box and Muller's transform.

        Computed in float64 and rounded once, so that the libraries' last bits do not show.
        """
        count, kernels = math.prod(shape), _kernels(samples.device)
        if kernels is not None:
            native: Tensor = kernels.philox_normal(samples, count, self.seed, int(purpose))
            return native.reshape(len(samples), *shape)
        words = self.bits(purpose, samples, count + count % 2).to(torch.float64)
        radius = (-2.0 * torch.log((words[:, 0::2] + 0.5) * 2.0**-32)).sqrt()
        angle = words[:, 1::2] * (2.0 * math.pi * 2.0**-32)
        pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return pairs.flatten(1)[:, :count].to(torch.float32).reshape(len(samples), *shape)

    def integers(self, purpose: Purpose, samples: Tensor, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """int64 `[n, *shape]` in [0, high), for `high` up to 2^31 (the bias is below `high` / 2^32)."""
        if not 0 < high <= 2**31:
            raise ValueError(f"high is {high}; it must lie in [1, 2^31]")
        words = self.bits(purpose, samples, math.prod(shape))
        return ((words * high) >> 32).reshape(len(samples), *shape)


class SampleRandom:
    """A `RandomSource` bound to the samples of one step: all the randomness that a phase sees.

    Args:
        source: The run's source.
        samples: int64 `[n]`, the global indices of the step's samples, on the device that computes.
    """

    def __init__(self, source: RandomSource, samples: Tensor) -> None:
        self.source = source
        self.samples = samples

    def uniform(self, purpose: Purpose, *shape: int) -> Tensor:
        """float32 `[n, *shape]` in [0, 1)."""
        return self.source.uniform(purpose, self.samples, shape)

    def normal(self, purpose: Purpose, *shape: int) -> Tensor:
        """float32 `[n, *shape]` from N(0, 1)."""
        return self.source.normal(purpose, self.samples, shape)


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Within it torch's own generator, from which networks draw their initial weights, starts from the seed.

    Behind it the generator is as it was before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
