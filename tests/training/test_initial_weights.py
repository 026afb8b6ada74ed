"""Whose weights a new run may start from: what differs is told by what the networks are, not by how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hires_gan.config import load_configuration
from hires_gan.training.initial_weights import _differences

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


def recipe(name: str, *overrides: str) -> dict[str, Any]:
    """The recipe as a checkpoint's state.json has it: keys of maps are text."""
    block = load_configuration(CONFIGS / f"{name}.yaml", list(overrides)).model_dump(mode="json")["recipe"]
    for player in ("generator", "discriminator"):
        base = block[player]["fmap_base"]
        if isinstance(base, dict):
            block[player]["fmap_base"] = {str(side): value for side, value in base.items()}
    return block


@pytest.mark.parametrize("resolution", [32, 64, 512, 1024])
def test_widths_that_are_written_in_two_ways_are_alike(resolution):
    """stylegan2_auto has a map, which at 512 and above is the fine-tuning configuration's number."""
    fine = ("recipe.generator.mapping_layers=2", f"recipe.resolution={resolution}")
    there, here = recipe("stylegan2_auto", f"recipe.resolution={resolution}"), recipe("stylegan2_finetune", *fine)
    found = list(_differences(there, here))
    if resolution in (512, 1024, 32):  # at 32, both bases reach the most feature maps everywhere
        assert found == []
    else:
        assert [text.split(" is ")[0] for text in found] == [
            f"recipe.{player}.fmap_base" for player in ("generator", "discriminator")
        ]


def test_differences_come_in_the_order_of_the_configuration():
    here = recipe("stylegan2_finetune")
    there = recipe("stylegan2_finetune", "recipe.generator.latent_size=64", "recipe.generator.fmap_max=128")
    assert list(_differences(there, here)) == [
        "recipe.generator.latent_size is 64 there and 512 here",
        "recipe.generator.fmap_max is 128 there and 512 here",
    ]


def test_the_growing_families_count_with_the_whole_base():
    there = recipe("stylegan_ffhq1024", "recipe.generator.fmap_base=4096")
    assert list(_differences(there, recipe("stylegan_ffhq1024"))) == [
        "recipe.generator.fmap_base is 4096 there and 8192 here"
    ]
