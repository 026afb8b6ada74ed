"""Configurations that are measured in seconds, and the command line in this process."""

from __future__ import annotations

import sys
from typing import Any

from hires_gan import cli
from hires_gan.bench import train_rates

NARROW = (
    "recipe.generator.latent_size=8",
    "recipe.generator.fmap_base=64",
    "recipe.generator.fmap_max=8",
    "recipe.discriminator.fmap_base=64",
    "recipe.discriminator.fmap_max=8",
    "evaluation.metrics=[]",
    "evaluation.best=null",
)
"""Networks of a few weights; nothing is evaluated."""
SMALL = ("recipe.resolution=8", "batch.size=4", *NARROW)
"""Likewise, of images of 8x8."""


def run(monkeypatch: Any, *arguments: object) -> int:
    """The exit code of `hires-gan bench ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["hires-gan", "bench", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def quick_rates(monkeypatch: Any) -> None:
    """Small matrices and buffers, whose rates are measured in no time."""
    monkeypatch.setitem(train_rates._SIDES, "cpu", 64)
    monkeypatch.setitem(train_rates._BUFFER, "cpu", 2**16)
