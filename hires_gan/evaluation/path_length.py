"""Perceptual path length: how much images change along a path through the latent space, for the way that is gone.

Karras et al. 2019 (StyleGAN), section 4.1, with the cuts and the sampling at the ends of paths of their published
evaluation: `E[d(G(t), G(t + e)) / e^2]`, e = 1e-4, d LPIPS on VGG16's features. The shorter, the smoother the space.

Each sample has two latents, a place t on the path between them, and a class, each a function of its number alone; the
noise of the layers is the generator's constant one, for both ends and all samples. Latents are not truncated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.errors import UsageError
from hires_gan.evaluation.averages import checked
from hires_gan.evaluation.perceptual import PairDistance, at_once, exact_float32, fitted
from hires_gan.inference.images import finite
from hires_gan.networks import progressive, stylegan
from hires_gan.networks.growth import Growth
from hires_gan.networks.styles import StyleGenerator
from hires_gan.randomness import Purpose, RandomSource
from hires_gan.recipes.protocol import LabelDistribution

Space = Literal["z", "w"]
Sampling = Literal["full", "end"]

PATHS: Mapping[str, tuple[Space, Sampling, bool]] = {
    "ppl_z_full": ("z", "full", False),
    "ppl_z_end": ("z", "end", False),
    "ppl_w_full": ("w", "full", False),
    "ppl_w_end": ("w", "end", False),
    "ppl_z_full_cropped": ("z", "full", True),
    "ppl_z_end_cropped": ("z", "end", True),
    "ppl_w_full_cropped": ("w", "full", True),
    "ppl_w_end_cropped": ("w", "end", True),
}
"""The metrics by name; whether images are cropped stands last. Published as ppl2_* without the crop, ppl_* with it."""
SAMPLES = 50_000
"""Paths in the published protocol."""
EPSILON = 1e-4
"""The step along a path, of whose whole length it is the share."""

CROP = "rows 3/8 to 7/8, columns 2/8 to 6/8"
"""What is left of cropped images, for records."""
_EIGHTHS = 8  # of an image's side, in which a crop is counted
SEED = 0
"""Of latents, places and classes, so that numbers compare between runs."""


class PathLength:
    """The lengths of single paths; `path_length` makes one number of many.

    Rounding matters: a step of 1e-4 changes an image so little that float32 has an error of some 1e-3 in the length of
    a single path (which is much less than its spread), and another one in another place of a batch or with another
    number of threads; in bf16 most steps would not be seen at all. So the generator and the distance are copied, to
    compute all their layers in one dtype, and paths are computed in blocks of consecutive numbers. StyleGAN2's
    configuration F at 1024x1024 takes 1.5 GiB beside the weights in float32; in float64 on a CPU 8 GiB, and three times
    as long.

    Args:
        network: An averaged generator, on the device that computes: of Progressive GAN, StyleGAN or StyleGAN2.
        distance: Between images; LPIPS on VGG16 for the published metric.
        space: z: along the great circle between two latents; w: along the line between their styles.
        sampling: full: t is drawn from [0, 1); end: t is 0.
        labels: How often each class occurs in the data. A path has one class for its whole length, drawn as a fake's
            is in training. None for an unconditional generator.
        crop: Whether only a part of the image is compared, where an aligned face has its centre: rows from 3/8 to 7/8,
            columns from 2/8 to 6/8 (Karras et al. 2019; left out in 2020 and since). Images below 8x8 are doubled by
            nearest neighbour before.
        growth: How far the network has grown; None for its own growth.
        dtype: In which networks compute. None: in float64 on a CPU, where numbers then agree within 1e-6 whatever the
            number of ranks and threads; else in float32 without TF32, where one kind of GPU gives the same bits.

    Attributes:
        chunk: Paths in a block, which are computed together, always all of them: one at 1024x1024, 8 at 256x256 and
            below. Whoever shares paths out gives whole blocks, so that nothing is computed twice; it does not change
            the numbers.

    Raises:
        UsageError: If the generator has no such space.
        ValueError: If classes are given to an unconditional generator, or others than it has.
    """

    def __init__(
        self,
        network: nn.Module,
        distance: PairDistance,
        space: Space,
        sampling: Sampling,
        labels: LabelDistribution | None = None,
        crop: bool = False,
        growth: Growth | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if space == "w" and not isinstance(network, StyleGenerator):
            raise UsageError(
                f"ppl_w_{sampling} is a length in W, which Progressive GAN does not have; take ppl_z_{sampling}"
            )
        classes = len(labels.counts) if labels else 0
        if classes != network.classes:
            raise ValueError(f"labels are of {classes} classes; the generator has {network.classes}")
        resolution = growth.resolution if growth else resolution_of(network)
        self.device = next(network.parameters()).device
        self.dtype = dtype or (torch.float64 if self.device.type == "cpu" else torch.float32)
        self.network = _in_one_dtype(network, self.dtype)
        self.distance = _in_one_dtype(distance, self.dtype) if isinstance(distance, nn.Module) else distance
        self.space, self.sampling, self.labels, self.crop = space, sampling, labels, crop
        self.growth: dict[str, Growth] = {"growth": growth} if growth else {}
        self.chunk = max(1, at_once(resolution) // 2)

    def distances(self, samples: Tensor) -> Tensor:
        """The lengths of some paths.

        Args:
            samples: int64 `[n]`, their numbers from 0 on, on any device.

        Returns:
            float64 `[n]` on the CPU: squared distances by squared steps; NaN where an end of a path has an image that
            is not finite. They may be computed anywhere, in any parts and in any order.
        """
        samples = samples.cpu()
        blocks = samples // self.chunk
        found = torch.zeros(len(samples), dtype=torch.float64)
        with torch.no_grad(), exact_float32():
            for block in sorted(set(blocks.tolist())):
                first = block * self.chunk
                lengths = self._block(torch.arange(first, first + self.chunk, device=self.device))
                own = blocks == block
                found[own] = lengths[samples[own] - first]
        return found

    def _block(self, samples: Tensor) -> Tensor:
        """The lengths of the paths of a block: float64 `[chunk]` on the CPU."""
        random = RandomSource(SEED)
        labels = self.labels.draw(random.uniform(Purpose.LABEL_LENGTH, samples)) if self.labels else None
        size: int = self.network.latent_size  # type: ignore[assignment]
        first, last = random.normal(Purpose.LATENT_LENGTH, samples, (2, size)).double().unbind(1)
        places = torch.zeros(len(samples), 1, dtype=torch.float64, device=samples.device)
        if self.sampling == "full":
            places = random.uniform(Purpose.PLACE_LENGTH, samples, (1,)).double()
        images_at = self._in_w if self.space == "w" else self._in_z
        images = images_at(first, last, torch.cat((places, places + EPSILON)), labels)
        starts, ends = self._compared(images).chunk(2)
        whole = finite(images).reshape(2, -1).all(0)  # rectifiers may make 0 of what is infinite
        return self.distance(starts, ends).double().where(whole, math.nan).cpu() / EPSILON**2

    def _in_z(self, first: Tensor, last: Tensor, places: Tensor, labels: Tensor | None) -> Tensor:
        """The images at some places, `[2 n, 1]`, of the great circles between latents `[n, size]`: `[2 n, 3, r, r]`."""
        latents = great_circle(first.repeat(2, 1), last.repeat(2, 1), places).to(self.dtype)
        images: Tensor = self.network(latents, None if labels is None else labels.repeat(2), **self.growth)
        return images

    def _in_w(self, first: Tensor, last: Tensor, places: Tensor, labels: Tensor | None) -> Tensor:
        """The same on the lines between the latents' styles."""
        network = self.network
        assert isinstance(network, StyleGenerator)
        latents = torch.cat((first, last)).to(self.dtype)
        styles: Tensor = network.mapping(latents, None if labels is None else labels.repeat(2))
        start, end = (half.double().repeat(2, 1) for half in styles.chunk(2))
        w = torch.lerp(start, end, places).to(self.dtype)
        images: Tensor = network.synthesis(w[:, None].expand(-1, network.num_ws, -1), **self.growth)
        return images

    def _compared(self, images: Tensor) -> Tensor:
        """The part of the images that is compared."""
        if not self.crop:
            return images
        images = fitted(images, _EIGHTHS, images.shape[-1])
        eighth = images.shape[-1] // _EIGHTHS
        return images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]


def resolution_of(network: nn.Module) -> int:
    """The side of a generator's images, as far as it has grown."""
    if isinstance(network, progressive.Generator | stylegan.Generator):
        return network.growth.resolution
    resolution: int = network.resolution  # type: ignore[assignment]
    return resolution


def _in_one_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that computes everything in a dtype."""
    network = copy.deepcopy(network).to(dtype)
    for module in network.modules():
        dtypes = getattr(module, "dtypes", None)  # of resolutions that compute in another one
        if isinstance(dtypes, dict):
            dtypes.clear()
    return network


def path_length(distances: Tensor, name: str = "ppl") -> float:
    """One number of many paths: the mean of those that are left when the shortest and the longest are dropped.

    Dropped are the values below the first percentile, rounded down to a value that is there, and those above the 99th,
    rounded up to one: of 50,000 values 998.

    Args:
        distances: float64 `[n]`, of all paths, in any order.
        name: Of the metric, for errors.

    Raises:
        Failure: If there are none, or one is not finite.
    """
    values = np.sort(np.array(checked(distances, name)))
    lowest = np.percentile(values, 1, method="lower")
    highest = np.percentile(values, 99, method="higher")
    kept = values[(values >= lowest) & (values <= highest)]
    return math.fsum(kept.tolist()) / len(kept)


def great_circle(first: Tensor, last: Tensor, places: Tensor) -> Tensor:
    """Places between latents, on a sphere on which all of them lie.

    Its radius is that of a usual latent, `sqrt(size)`, which matters only where latents are normalised together with
    the embedding of a class.

    Args:
        first: float64 `[n, size]`, of any length but 0.
        last: Likewise.
        places: `[n, 1]`: 0 at the first latent, 1 at the last one.

    Returns:
        float64 `[n, size]`.
    """
    first, last = F.normalize(first, dim=1), F.normalize(last, dim=1)
    cosine = (first * last).sum(1, keepdim=True)
    across = F.normalize(last - cosine * first, dim=1)
    angles = places * cosine.clamp(-1, 1).acos()
    return math.sqrt(first.shape[1]) * (first * angles.cos() + across * angles.sin())
