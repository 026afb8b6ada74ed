"""The families by name: the one place where a recipe is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hires_gan.networks.progressive import Growth
from hires_gan.recipes.progressive import Progressive, build_generator
from hires_gan.recipes.protocol import LabelDistribution, Recipe
from hires_gan.recipes.settings import RecipeSettings
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
    return Progressive(settings, batch, dtype, seed, labels)


def build_for_inference(settings: RecipeSettings, dtype: torch.dtype, inference: Mapping[str, Any]) -> nn.Module:
    """The network that `Recipe.averaged` averages, without its weights, as it stood in a checkpoint.

    Args:
        settings: The `recipe` block of the checkpoint.
        dtype: float32 or float64.
        inference: What `Recipe.inference` gave when it was written.
    """
    network = build_generator(settings, dtype, inference["classes"])
    network.growth = Growth(inference["resolution"], inference["alpha"])
    return network
