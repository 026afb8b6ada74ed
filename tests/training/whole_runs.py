"""Whole runs in this process: of settings as YAML would give them, changed block by block, and what they leave."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from hires_gan import checkpoint
from hires_gan.config import Configuration, to_yaml
from hires_gan.training.run import train


def run(settings: dict[str, Any]) -> bool:
    configuration = Configuration.model_validate(settings)
    return train(configuration, to_yaml(configuration))


def changed(settings: dict[str, Any], **blocks: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(settings)
    for block, values in blocks.items():
        result[block].update(values)
    return result


def saved(settings: dict[str, Any], name: str | None = None) -> checkpoint.Checkpoint:
    """The latest checkpoint of the run, or of another one beside it."""
    block = settings["run"]
    found = checkpoint.latest(Path(block["dir"]) / (name or block["name"]) / "checkpoints")
    assert found is not None
    return found
