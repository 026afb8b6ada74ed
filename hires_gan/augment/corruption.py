"""Additive noise and cutout (appendix B)."""

from __future__ import annotations

import torch
from torch import Tensor

from hires_gan.augment.draws import Choice


def noisy(x: Tensor, choice: Choice, noise: Tensor | None) -> Tensor:
    """Add noise `[n, c * s * s]` from N(0, 1), times a half-normal factor: `[n, c, s, s]` -> the same."""
    if noise is None or not choice.settings.any_of("noise"):
        return x
    happens = choice.happens("noise")
    sigma = torch.where(happens, choice.normal("noise", 1).abs() * choice.settings.noise_std, 0)
    added = noise.reshape(x.shape).to(x.dtype) * sigma.to(x.dtype)[:, None, None, None]
    return torch.where(happens[:, None, None, None], x + added, x)


def holed(x: Tensor, choice: Choice) -> Tensor:
    """Set a square to 0, centred anywhere in the image: `[n, c, s, s]` -> the same."""
    if not choice.settings.any_of("cutout"):
        return x
    across, down = (_cut(choice, place, x.shape[3]) for place in (1, 2))
    hole = across[:, None, :] & down[:, :, None] & choice.happens("cutout")[:, None, None]
    return x.masked_fill(hole[:, None], 0)


def _cut(choice: Choice, place: int, side: int) -> Tensor:
    """Which pixels lie in the square, along one axis: bool `[n, s]`."""
    centre, half = choice.uniform("cutout", place)[:, None], choice.settings.cutout_size / 2
    first, end = ((centre - half) * side).round(), ((centre + half) * side).round()
    pixel = torch.arange(side, device=centre.device)
    return (pixel >= first) & (pixel < end)
