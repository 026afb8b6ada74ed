"""The `recipe` block of the configuration: which family is trained, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hires_gan.recipes.munit_settings import MunitSettings
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings
from hires_gan.recipes.stylegan_settings import StyleGANSettings

RecipeSettings = Annotated[
    ProgressiveSettings | StyleGANSettings | StyleGAN2Settings | MunitSettings, Field(discriminator="name")
]
"""The settings of any family, told apart by `name`."""
