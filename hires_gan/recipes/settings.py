"""The `recipe` block of the configuration: which family is trained, and how."""

from __future__ import annotations

from hires_gan.recipes.progressive_settings import ProgressiveSettings

RecipeSettings = ProgressiveSettings
"""The settings of any family; a union told apart by `name` once there are several."""
