"""Whole runs over a folder in which one image has another size: begun, refused, gone on with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from input_definition import noise_files, write_shards

from hires_gan.config import Configuration, to_yaml
from hires_gan.data import mixed
from hires_gan.errors import Failure
from hires_gan.training.run import train

RESOLUTION, COUNT, ODD = 8, 40, 19
"""The odd image is one of three that are looked at, and one of forty in all."""
FILES, LEVELS, OTHER = noise_files(COUNT, RESOLUTION), noise_files(COUNT, 4, 1), noise_files(1, 2)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, all is looked at that there is to look at."""
    monkeypatch.setattr(mixed, "SECONDS", 60.0)


def write(folder: Path, odd_level: bool = False, odd_image: bool = False) -> Path:
    files, levels = list(FILES), [{4: file} for file in LEVELS]
    if odd_image:
        files[ODD] = OTHER[0]
    if odd_level:
        levels[ODD] = {4: OTHER[0]}
    return write_shards(folder, files, RESOLUTION, per_shard=COUNT, levels=levels)


@pytest.fixture
def settings(tmp_path) -> dict[str, Any]:
    return {
        "run": {"name": "small", "dir": str(tmp_path / "runs"), "total_kimg": 0.016},
        "data": {"workers": 0, "prefetch": 1},
        "recipe": {
            "name": "stylegan2",
            "resolution": RESOLUTION,
            "generator": {"latent_size": 8, "w_size": 8, "fmap_base": 64, "fmap_max": 8},
            "discriminator": {"fmap_base": 64, "fmap_max": 8},
        },
        "batch": {"size": 8, "per_device": 8},
        "precision": "fp32",
        "checkpoint": {"every_kimg": 0.016, "keep": 2},
        "samples": {"count": 4},
        "evaluation": {"metrics": [], "best": None},
        "tracking": {"every_kimg": 0.016},
    }


def run(settings: dict[str, Any], folder: Path, **data: Any) -> bool:
    changed = copy.deepcopy(settings)
    changed["data"].update({"shards": str(folder), **data})
    configuration = Configuration.model_validate(changed)
    return train(configuration, to_yaml(configuration))


def test_a_new_run_is_refused_and_leaves_nothing(settings, tmp_path):
    folder = write(tmp_path / "set", odd_image=True)
    with pytest.raises(Failure, match="holds images of different sizes: sample 000000019 .*raise data.max_corrupt"):
        run(settings, folder)
    assert not (tmp_path / "runs" / "small").exists()


def test_a_raised_max_corrupt_trains_and_the_run_goes_on_with_less(settings, tmp_path, capfd):
    """Of three looked at one is wrong, more than a twentieth; of the whole set it is a fortieth."""
    folder = write(tmp_path / "set", odd_image=True)
    with pytest.raises(Failure, match="1 of 3 samples looked at"):
        run(settings, folder, max_corrupt=0.05)
    assert run(settings, folder, max_corrupt=0.5)
    before = capfd.readouterr().err
    assert "1 of 3 samples looked at are wrong): they are skipped as corrupt" in before
    settings["run"]["total_kimg"] = 0.048  # more than an epoch, so that the odd one is met
    assert run(settings, folder, max_corrupt=0.05)
    said = capfd.readouterr().err
    assert "going on from" in said
    assert "1 of 3 samples looked at are wrong): they are skipped as corrupt" in said
    assert "2x2 pixels stands where one of 8x8 must" in before + said
    settings["run"]["total_kimg"] = 0.064
    with pytest.raises(Failure, match="have turned out corrupt, a share of 0.025, and data.max_corrupt allows 0"):
        run(settings, folder, max_corrupt=0.0)


def test_a_level_that_is_never_read_refuses_nothing(settings, tmp_path, capfd):
    assert run(settings, write(tmp_path / "set", odd_level=True))
    assert "column 'image.4', has 2x2 pixels" in capfd.readouterr().err
