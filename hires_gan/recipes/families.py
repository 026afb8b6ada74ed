"""The families by name: the one place where a recipe is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hires_gan.networks.growth import Growth
from hires_gan.networks.modulation import HALF_CLAMP
from hires_gan.networks.munit import Level
from hires_gan.networks.progressive import Generator as ProgressiveGenerator
from hires_gan.networks.stylegan import Generator as StyleGANGenerator
from hires_gan.networks.translation import Translator
from hires_gan.networks.vgg import OptionNames, VGG16Features, obtain_vgg
from hires_gan.recipes import munit, progressive, stylegan, stylegan2
from hires_gan.recipes.munit_settings import MunitSettings
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.protocol import LabelDistribution, Recipe
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings
from hires_gan.recipes.stylegan_settings import StyleGANSettings
from hires_gan.settings import IntByResolution

_VGG_NAMES = OptionNames("recipe.vgg.weights", "recipe.vgg.download=true", "recipe.loss.perceptual=0")


def build_recipe(
    settings: RecipeSettings,
    batch: IntByResolution,
    dtype: torch.dtype,
    seed: int,
    labels: LabelDistribution | None,
    domains: Sequence[str] = (),
) -> Recipe:
    """The recipe that the settings name.

    Args:
        settings: The `recipe` block.
        batch: The global batch, by resolution.
        dtype: In which the highest resolutions compute; float64 makes everything float64.
        seed: Initial weights and the fixed latents of samples follow from it.
        labels: How often each class occurs; None for an unconditional model.
        domains: What is translated into each other, for a family that translates.

    Raises:
        UsageError: If weights that a term of the loss needs are not at hand.
        Failure: If they cannot be downloaded.
    """
    if isinstance(settings, MunitSettings):
        return munit.Munit(settings, batch, dtype, seed, tuple(domains), _perceptual(settings))
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
    if isinstance(settings, MunitSettings):
        return _translator(settings, dtype, inference)
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


def _translator(settings: MunitSettings, dtype: torch.dtype, inference: Mapping[str, Any]) -> Translator:
    translator = munit.build_translator(settings, dtype, inference["domains"])
    translator.level = Level(inference["level"], inference["alpha"])
    return translator


def _perceptual(settings: MunitSettings) -> VGG16Features | None:
    """VGG16's features, if a term of the loss compares them."""
    if not settings.loss.perceptual:
        return None
    return obtain_vgg(settings.vgg.weights, settings.vgg.download, _VGG_NAMES)
