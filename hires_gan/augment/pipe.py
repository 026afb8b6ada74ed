"""The augmentation of a batch: blitting, geometry, colours, frequency bands, noise, cutout (appendix B, figure 16)."""

from __future__ import annotations

import torch
from torch import Tensor

from hires_gan.augment.bands import filtered
from hires_gan.augment.colour import recoloured
from hires_gan.augment.corruption import holed, noisy
from hires_gan.augment.draws import NUMBERS, Choice, Draws
from hires_gan.augment.geometry import moved
from hires_gan.augment.settings import SMALLEST, AugmentSettings

_HALVES = (torch.float16, torch.bfloat16)


def augment(images: Tensor, draws: Draws, p: Tensor | float, settings: AugmentSettings) -> Tensor:
    """Augment images as their draws say: each by itself, whatever else is in the batch.

    Differentiable in the images to any order (all of it is linear or constant in them). With p = 0 the images come
    back bit for bit, and so does every image to which nothing happens to be applied.

    Args:
        images: `[n, 3 or 1, s, s]` in about [-1, 1], s at least 8; float64, float32, float16 or bfloat16, of which
            the halves are computed in float32 and rounded once.
        draws: What `draw` gave for the same samples, on the device of the images.
        p: The probability in [0, 1], a number, or a tensor without dimensions whose value is not read back.
        settings: The transformations.

    Returns:
        The same shape and dtype; the values are not clamped.

    Raises:
        ValueError: If the shape or the dtype of the images, the shape of the draws or p cannot be.
    """
    _check_images(images)
    _check_draws(images, draws, settings)
    if not isinstance(p, Tensor):
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}; a probability in [0, 1] is allowed")
        if p == 0:
            return images
    if images.shape[0] == 0:
        return images
    chance = _chance(p, images.device)
    choice = Choice(draws, chance, settings)
    x = images.float() if images.dtype in _HALVES else images
    x = holed(noisy(filtered(recoloured(moved(x, choice), choice), choice), choice, draws.noise), choice)
    return x.to(images.dtype)


def _chance(p: Tensor | float, device: torch.device) -> Tensor:
    """Float64 without dimensions; a number is written there, and not copied, for which a GPU would have to wait."""
    if not isinstance(p, Tensor):
        return torch.full((), p, dtype=torch.float64, device=device)
    return p.to(device, torch.float64).reshape(()).clamp(0, 1)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
        raise ValueError(f"images has the shape {list(images.shape)}; square images [n, 3 or 1, s, s] are allowed")
    if images.shape[3] < SMALLEST:
        raise ValueError(f"images are {images.shape[3]} pixels wide; augmentation wants at least {SMALLEST}")
    if images.dtype not in (torch.float64, torch.float32, *_HALVES):
        raise ValueError(
            f"images has the dtype {str(images.dtype).removeprefix('torch.')}; float64, float32, float16 and bfloat16 "
            "are allowed"
        )


def _check_draws(images: Tensor, draws: Draws, settings: AugmentSettings) -> None:
    wanted = [images.shape[0], NUMBERS]
    if list(draws.numbers.shape) != wanted:
        raise ValueError(f"draws has numbers of the shape {list(draws.numbers.shape)}; {wanted} is wanted")
    if settings.any_of("noise"):
        found, wanted = None if draws.noise is None else list(draws.noise.shape), list(images.flatten(1).shape)
        if found != wanted:
            raise ValueError(f"draws has noise of the shape {found}; {wanted} is wanted: draw with these very settings")
