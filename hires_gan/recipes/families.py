"""The families by name: the one place where a recipe is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hires_gan.networks.growth import Growth
from hires_gan.networks.modulation import HALF_CLAMP
from hires_gan.networks.progressive import Generator as ProgressiveGenerator
from hires_gan.networks.stylegan import Generator as StyleGANGenerator
from hires_gan.recipes import progressive, stylegan, stylegan2
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.protocol import LabelDistribution, Recipe
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings
from hires_gan.recipes.stylegan_settings import StyleGANSettings
from hires_gan.settings import IntByResolution


def build_recipe(
    settings: RecipeSettings, batch: IntByResolution, dtype: torch.dtype, seed: int, labels: LabelDistribution | None
) -> Recipe:
    """The recipe that the settings name.

    Args:
        settings: The `recipe` block.
        batch: The global batch, by resolution.
        dtype: In which the highest resolutions compute; float64 makes everything float64.
        seed: Initial weights and the fixed latents of samples follow from it.
        labels: How often each class occurs; None for an unconditional model.
    """
    if isinstance(settings, ProgressiveSettings):
        return progressive.Progressive(settings, batch, dtype, seed, labels)
    if isinstance(settings, StyleGANSettings):
        return stylegan.StyleGAN(settings, batch, dtype, seed, labels)
    return stylegan2.StyleGAN2(settings, batch, dtype, seed, labels)


def build_for_inference(
    settings: RecipeSettings, dtype: torch.dtype, inference: Mapping[str, Any], clamped: bool = False
) -> nn.Module:
    """The network that `Recipe.averaged` averages, without its weights, as it stood in a checkpoint.

    Args:
        settings: The `recipe` block of the checkpoint.
        dtype: float32 or float64.
        inference: What `Recipe.inference` gave when it was written.
        clamped: Whether it was trained in half precision, where StyleGAN2's layers clamp what they give: in full
            precision they then do so too.
    """
    classes = inference["classes"]
    if isinstance(settings, StyleGAN2Settings):
        return stylegan2.build_generator(settings, dtype, classes, HALF_CLAMP if clamped else None)
    network: ProgressiveGenerator | StyleGANGenerator
    if isinstance(settings, StyleGANSettings):
        network = stylegan.build_generator(settings, dtype, classes)
    else:
        network = progressive.build_generator(settings, dtype, classes)
    network.growth = Growth(inference["resolution"], inference["alpha"])
    return network
