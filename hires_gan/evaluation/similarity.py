"""How alike the images of a set are: MS-SSIM of random pairs (Odena et al. 2017, section 4.2). Lower is more diverse.

Multi-scale structural similarity (Wang et al. 2003) is 1 for equal images. Taken between random pairs of generated
images, of the same class where there are classes, its mean rises as a generator collapses. It says nothing of quality,
and compares to nothing but the same number of the reals, at the same resolution.

torchmetrics computes it, of uint8 images, over the three channels: windows of 11x11 (Gaussian, sigma 1.5), K1 = 0.01,
K2 = 0.03, each scale half the one before. Means of a scale below 0 count as 0. It does so in float32 (float64 takes ten
times as long on a CPU), which for pictures that are flat for the most part is off by up to 3e-4, and else by some 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.perceptual import at_once, equal_parts, exact_float32
from hires_gan.evaluation.subjects import Shown
from hires_gan.progress import say
from hires_gan.randomness import Purpose, RandomSource

ImagesAt = Callable[[Tensor], Shown]
"""From numbers of images, int64 `[n]` on the CPU, to these."""

PAIRS = 5_000
"""The standard error of the mean is then about 0.001 to 0.002."""
WINDOW = 11

_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from full resolution on
SEED = 0
"""Of the choice of pairs, so that numbers compare between runs."""


def scales_at(resolution: int) -> int:
    """How many scales images have: those that a window fits into, five at the most, which need 256x256.

    The published measure has five. Where there are fewer, the exponents of those that are there are divided by their
    sum, and numbers compare with those of the same number of scales only.

    Args:
        resolution: Side of the images, a power of two.

    Raises:
        UsageError: If not even one fits.
    """
    if resolution < WINDOW:
        raise UsageError(
            f"ms_ssim compares windows of {WINDOW}x{WINDOW} pixels, but images are {resolution}x{resolution}; evaluate "
            "images of at least 16x16, or leave ms_ssim out"
        )
    return min(len(_BETAS), (resolution // WINDOW).bit_length())


def similarities(images: Tensor, others: Tensor) -> Tensor:
    """MS-SSIM of pairs.

    Args:
        images: uint8 `[n, 3, r, r]`, r a power of two of at least 16.
        others: Likewise.

    Returns:
        float64 `[n]` in [0, 1].

    Raises:
        UsageError: If torchmetrics is not installed, or images are too small.
    """
    try:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim
    except ImportError:
        raise UsageError(
            "ms_ssim needs torchmetrics, which is not installed; install the extra `metrics`, or leave ms_ssim out"
        ) from None
    betas = _BETAS[: scales_at(images.shape[-1])]
    total = sum(betas)
    shares = tuple(beta / total for beta in betas) if len(betas) < len(_BETAS) else betas
    with torch.no_grad(), exact_float32():
        found = ms_ssim(
            images.float(),
            others.float(),
            kernel_size=WINDOW,
            reduction="none",
            data_range=255.0,
            betas=shares,
            normalize="relu",
        )
    assert isinstance(found, Tensor)
    return found.reshape(-1).double()


def pair_similarities(images: ImagesAt, pairs: Tensor, resolution: int) -> Tensor:
    """MS-SSIM of pairs of the images of a set.

    One pair at a time at 1024x1024, 8 at 256x256 and below; at 1024x1024, comparing it takes about 1.5 GB.

    Args:
        images: Gives those of some numbers; generated ones, or the reals.
        pairs: int64 `[n, 2]`, numbers of images; from `draw_pairs`, or a share of them.
        resolution: Side of the images.

    Returns:
        float64 `[n]` on the CPU; NaN for a pair with an image that was not finite before it became bytes. They may be
        computed anywhere, in any parts and in any order.

    Raises:
        UsageError: If torchmetrics is not installed, or images are too small.
    """
    scales_at(resolution)
    found = [torch.empty(0, dtype=torch.float64)]
    for part, count in equal_parts(pairs.cpu(), max(1, at_once(resolution) // 2)):
        shown = images(part.T.flatten())
        first, second = shown.images.chunk(2)
        found.append(_of_finite(similarities(first, second), shown.finite)[:count].cpu())
    return torch.cat(found)


def _of_finite(values: Tensor, finite: Tensor | None) -> Tensor:
    """The values of pairs, `[n]`; NaN where one of the images was not finite: bool `[2 n]`, the second ones last."""
    return values if finite is None else values.where(finite.reshape(2, -1).all(0), math.nan)


def draw_pairs(count: int, size: int, labels: Tensor | None = None) -> Tensor:
    """Pairs of two different images of a set, of the same class where there are classes.

    The first image of a pair is drawn from all (so that classes count as often as they occur), the second one from the
    others of its class.

    Args:
        count: How many pairs; pair k is the same whatever their number.
        size: How many images the set has.
        labels: int64 `[size]`, the class of each; None without classes. Images that are alone in their class are left
            out, which is said.

    Returns:
        int64 `[count, 2]` on the CPU.

    Raises:
        Failure: If no two images make a pair.
    """
    classes = torch.zeros(size, dtype=torch.int64) if labels is None else labels.cpu()
    order = classes.argsort(stable=True)  # the images of a class side by side
    which, sizes = classes[order], classes.bincount()
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(size)[sizes[which] > 1]
    if not len(places):
        found = f"{size} images" if labels is None else f"{size} images of {int((sizes > 0).sum())} classes"
        raise Failure(f"ms_ssim compares two images of the same class, but there are {found}; give more images")
    if len(places) < size:
        say(f"ms_ssim: left out, since they are alone in their class: {size - len(places)} of {size} images")
    words = RandomSource(SEED).bits(Purpose.PAIR, torch.arange(count), 2)
    first = places[(words[:, 0] * len(places)) >> 32]
    start, others = starts[which[first]], sizes[which[first]] - 1
    second = start + (first - start + 1 + ((words[:, 1] * others) >> 32)) % (others + 1)
    return torch.stack((order[first], order[second]), 1)
