"""Colour transformations (appendix B): one homogeneous 4x4 matrix per image on (R, G, B, 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hires_gan.augment.draws import Choice
from hires_gan.augment.matrices import about_luma, product, rotate_about_luma, scale3d, translate3d


def recoloured(x: Tensor, choice: Choice) -> Tensor:
    """`[n, 3 or 1, s, s]` -> the same; an image that nothing is applied to comes back bit for bit."""
    if not choice.settings.any_of("brightness", "contrast", "lumaflip", "hue", "saturation"):
        return x
    changes, matrix = colours(choice)
    if x.shape[1] == 1:  # a grey image: R = G = B before, and their mean behind
        matrix = torch.stack((matrix[:, :3, :3].sum((1, 2)), matrix[:, :3, 3].sum(1)), dim=1)[:, None] / 3
    factors = matrix[..., None, None].to(x.dtype)
    result = factors[:, :, -1] + factors[:, :, 0] * x[:, 0:1]
    for channel in range(1, x.shape[1]):
        result = torch.addcmul(result, factors[:, :, channel], x[:, channel : channel + 1])
    return torch.where(changes[:, None, None, None], result, x)


def colours(choice: Choice) -> tuple[Tensor, Tensor]:
    """Whether anything changes, bool `[n]`; and float64 `[n, 3, 4]`, the colour matrices without their last rows."""
    settings = choice.settings
    flags = {name: choice.happens(name) for name in ("brightness", "contrast", "lumaflip", "hue", "saturation")}
    added = torch.where(flags["brightness"], choice.normal("brightness", 1) * settings.brightness_std, 0)
    contrast = torch.where(flags["contrast"], torch.exp2(choice.normal("contrast", 1) * settings.contrast_std), 1)
    flags["lumaflip"] = flags["lumaflip"] & (choice.uniform("lumaflip", 1) < 0.5)
    along = torch.where(flags["lumaflip"], -1.0, torch.ones_like(contrast))
    hue = torch.where(flags["hue"], choice.centred("hue", 1) * (math.pi * settings.hue_max), 0)
    vivid = torch.where(flags["saturation"], torch.exp2(choice.normal("saturation", 1) * settings.saturation_std), 1)
    matrix = translate3d(added)
    for step in (
        scale3d(contrast),
        about_luma(along, torch.ones_like(along)),
        rotate_about_luma(hue),
        about_luma(torch.ones_like(vivid), vivid),
    ):
        matrix = product(step, matrix)
    return torch.stack(list(flags.values())).any(0), matrix[:, :3]
