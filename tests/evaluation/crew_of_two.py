"""One of several processes that evaluate checkpoints together: `crew_of_two.py OUT RUN...`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_models import requested, stand_in

from hires_gan.evaluation.command import agreed_checkpoint, evaluate
from hires_gan.training.launch import join_launch
from hires_gan.training.settings import BackendSettings

if __name__ == "__main__":
    stand_in(pytest.MonkeyPatch())
    world = join_launch(BackendSettings())
    for run in map(Path, sys.argv[2:]):
        report = evaluate(agreed_checkpoint(str(run), world), requested(run.name), world, world.device)
        assert bool(report.result.values) == world.first
        if world.first:
            Path(sys.argv[1], f"{run.name}.json").write_text(report.as_json())
    world.leave()
