"""What MUNIT's networks see of a batch: crops, and nothing that is entirely flat."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from hires_gan.ops.leaving_out import left_out
from hires_gan.randomness import Purpose, RandomSource, SampleRandom

_GREY_LEVEL = 2 / 255


def random_crops(images: Mapping[str, Tensor], side: int, random: SampleRandom) -> dict[str, Tensor]:
    """Cut a square out of each image, each at a place of its own.

    Args:
        images: By domain `[n, 3, r, r]`.
        side: Of the crops, at most r.
        random: Of the samples.

    Returns:
        By domain `[n, 3, side, side]` in channels_last memory, unless a benchmark leaves that out.
    """
    room = next(iter(images.values())).shape[-1] - side + 1
    places = (random.uniform(Purpose.CROP, len(images), 2).double() * room).long()  # below `room`, also when rounded
    inside = torch.arange(side, device=places.device)
    crops: dict[str, Tensor] = {}
    for (domain, x), corner in zip(images.items(), places.unbind(1), strict=True):
        rows, columns = (corner[:, axis, None] + inside for axis in (0, 1))
        samples = torch.arange(len(x), device=x.device)[:, None, None]
        crop = x.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        crops[domain] = crop.contiguous() if left_out("channels-last") else crop
    return crops


def speckled(images: Tensor) -> Tensor:
    """The images, of which those of a single colour get a fixed pattern of one grey level.

    In such an image no instance normalisation finds a variance, so that each multiplies the gradient by 316. A single
    one in a batch would make Adam's second moments so large that its steps stood still for tens of thousands of steps.

    Args:
        images: `[n, 3, r, r]` in [-1, 1].
    """
    flat = (images.amax((2, 3)) == images.amin((2, 3))).all(1)[:, None, None, None]
    inward = torch.where(images > 0, -_GREY_LEVEL, _GREY_LEVEL)
    return torch.where(flat, images + inward * _speckles(images.shape[-1], images.dtype, images.device), images)


@functools.cache
def _speckles(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every other pixel, at random: `[side, side]` of 0 and 1. A regular pattern would be gone behind a stride."""
    drawn = RandomSource(0).uniform(Purpose.SPECKLE, torch.zeros(1, dtype=torch.int64), (side, side))
    return (drawn[0] < 0.5).to(device, dtype)
