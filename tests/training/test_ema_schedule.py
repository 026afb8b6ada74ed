"""How fast the running average forgets in a step: its half-life, and the ramp from which it grows to it."""

from __future__ import annotations

import pytest

from hires_gan.training.settings import EmaSettings
from hires_gan.training.trainer import average_decay

# 2 to the power of -batch/half-life, in decimals that were worked out apart from the program.
HALF_LIFE_OF_100_BATCHES = 0.9930924954370359
HALF_LIFE_OF_312_5_BATCHES = 0.9977843871238888
HALF_LIFE_OF_78_125_BATCHES = 0.9911669586569076


@pytest.mark.parametrize(
    ("nimg", "decay"),
    [
        (0, 0.0),  # the average is the network
        (640, 0.5),  # 5% of 640 images are one batch
        (64_000, HALF_LIFE_OF_100_BATCHES),
        (199_968, 0.9977840329622313),  # the last step on the ramp: a half-life of 9998.4 images
        (200_000, HALF_LIFE_OF_312_5_BATCHES),
        (10_000_000, HALF_LIFE_OF_312_5_BATCHES),
    ],
)
def test_the_half_life_grows_with_the_images_shown_up_to_the_one_that_is_set(nimg: int, decay: float) -> None:
    assert average_decay(EmaSettings(half_life_kimg=10, rampup=0.05), 32, nimg) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize(
    ("nimg", "decay"),
    [(0, 0.0), (100_000, HALF_LIFE_OF_78_125_BATCHES), (400_000, HALF_LIFE_OF_312_5_BATCHES)],
)
def test_a_half_life_in_batches_has_the_same_ramp_in_images(nimg: int, decay: float) -> None:
    settings = EmaSettings(half_life_batches=312.5, rampup=0.05)
    assert average_decay(settings, 64, nimg) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("settings", [EmaSettings(half_life_kimg=10), EmaSettings(half_life_batches=312.5)])
@pytest.mark.parametrize("nimg", [0, 64_000, 10_000_000])
def test_without_a_ramp_the_half_life_holds_from_the_first_step(settings: EmaSettings, nimg: int) -> None:
    assert average_decay(settings, 32, nimg) == pytest.approx(HALF_LIFE_OF_312_5_BATCHES, rel=1e-12)
