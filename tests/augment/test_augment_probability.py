"""The controller of p: its arithmetic, its bounds, its state."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.augment.probability import AdaptiveProbability
from hires_gan.augment.settings import ProbabilitySettings


def test_p_rises_by_the_images_shown_over_kimg_at_every_interval() -> None:
    control = AdaptiveProbability(ProbabilitySettings(kimg=1, interval=4))
    seen = []
    for _ in range(12):
        control.advance(torch.tensor(0.9), 10)
        seen.append(round(float(control.p), 12))
    assert seen == [0, 0, 0, 0.04, 0.04, 0.04, 0.04, 0.08, 0.08, 0.08, 0.08, 0.12]


def test_the_published_speed_takes_500_kimg_from_0_to_1() -> None:
    control = AdaptiveProbability(ProbabilitySettings())
    steps = 500_000 // 32
    for _ in range(steps):
        control.advance(1.0, 32)
    assert float(control.p) == pytest.approx(1, abs=4 * 32 / 500_000)


@pytest.mark.parametrize(("mean", "direction"), [(0.61, 1), (0.6, 0), (0.59, -1), (-1.0, -1)])
def test_p_steers_to_the_target(mean: float, direction: int) -> None:
    control = AdaptiveProbability(ProbabilitySettings(initial=0.5, kimg=1, interval=1))
    control.advance(mean, 100)
    assert float(control.p) == pytest.approx(0.5 + 0.1 * direction)


def test_the_mean_of_the_whole_interval_counts_by_images() -> None:
    control = AdaptiveProbability(ProbabilitySettings(initial=0.5, kimg=1, interval=2))
    control.advance(1.0, 10)
    control.advance(0.0, 30)  # 0.25 over the forty, though the mean of both means is 0.5
    assert float(control.p) == pytest.approx(0.46)
    control = AdaptiveProbability(ProbabilitySettings(initial=0.5, kimg=1, interval=2, target=0.4))
    control.advance(1.0, 10)
    control.advance(0.0, 10)
    assert float(control.p) == pytest.approx(0.52)


@given(st.lists(st.sampled_from([-1.0, 0.2, 0.6, 1.0, math.nan]), max_size=60), st.sampled_from([1.0, 0.8]))
@settings(max_examples=40, deadline=None)
def test_p_stays_within_its_bounds(means: list[float], maximum: float) -> None:
    control = AdaptiveProbability(ProbabilitySettings(kimg=1, interval=1, maximum=maximum, initial=0.9))
    for mean in means:
        control.advance(mean, 300)
        assert 0 <= float(control.p) <= maximum


def test_a_mean_that_is_not_a_number_moves_nothing_and_is_forgotten() -> None:
    control = AdaptiveProbability(ProbabilitySettings(initial=0.5, kimg=1, interval=2))
    for mean in (math.nan, 1.0):
        control.advance(mean, 10)
    assert float(control.p) == 0.5
    for mean in (1.0, 1.0):
        control.advance(mean, 10)
    assert float(control.p) == pytest.approx(0.52)


def test_a_fixed_probability_is_fixed() -> None:
    control = AdaptiveProbability(ProbabilitySettings(fixed=0.3, interval=1))
    control.advance(1.0, 100_000)
    assert float(control.p) == 0.3
    other = AdaptiveProbability(ProbabilitySettings(fixed=0.7))
    other.load_state_dict(json.loads(json.dumps(control.state_dict())))
    assert float(other.p) == 0.7


@given(st.lists(st.floats(-1, 1, width=32) | st.just(math.nan), min_size=2, max_size=30), st.data())
@settings(max_examples=40, deadline=None)
def test_a_state_through_json_goes_on_bit_for_bit(means: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(means)))
    chosen = ProbabilitySettings(kimg=0.7, interval=3, initial=0.1)
    through, stopped = AdaptiveProbability(chosen), AdaptiveProbability(chosen)
    for mean in means[:at]:
        through.advance(torch.tensor(mean), 17)
        stopped.advance(torch.tensor(mean), 17)
    resumed = AdaptiveProbability(chosen)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict(), allow_nan=False)))
    for mean in means[at:]:
        through.advance(torch.tensor(mean), 17)
        resumed.advance(torch.tensor(mean), 17)
    assert torch.equal(through.p, resumed.p)
    assert through.state_dict() == resumed.state_dict()


def test_an_initial_value_above_the_maximum_starts_at_the_maximum() -> None:
    assert float(AdaptiveProbability(ProbabilitySettings(initial=0.9, maximum=0.5)).p) == 0.5


@pytest.mark.parametrize("wrong", [{"kimg": 0}, {"interval": 0}, {"fixed": 1.2}, {"target": 2}, {"maximum": -0.1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ProbabilitySettings.model_validate(wrong)


def test_p_stays_the_same_tensor() -> None:
    """A recorded phase goes on reading the tensor that it was given."""
    control = AdaptiveProbability(ProbabilitySettings(initial=0.5, kimg=1, interval=1))
    p = control.on(torch.device("cpu"))
    control.advance(1.0, 100)
    assert p is control.p
    assert float(p) == pytest.approx(0.6)
    control.load_state_dict(control.state_dict() | {"p": 0.25})
    assert control.on(torch.device("cpu")) is p
    assert float(p) == 0.25
