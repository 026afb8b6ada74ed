"""The protocol's own arithmetic: stages by nimg, step boundaries, and labels drawn as often as they occur."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.protocol import LabelDistribution, OptimizerPlan, Stage, stage_at, steps_until


def stage(start: int, end: int | None, batch: int = 1) -> Stage:
    plan = OptimizerPlan(0.001, (0.0, 0.99), 1e-8, ())
    return Stage(start, end, 4, batch, 1, False, {"generator": plan})


def test_stage_at_is_the_last_stage_that_has_begun() -> None:
    stages = [stage(0, 10), stage(10, 30), stage(30, None)]
    assert [stage_at(stages, nimg) for nimg in (0, 9, 10, 29, 30, 10**9)] == [0, 0, 1, 1, 2, 2]


def test_an_empty_stage_is_passed_over() -> None:
    stages = [stage(0, 10), stage(10, 10), stage(10, None)]
    assert [stage_at(stages, nimg) for nimg in (9, 10, 11)] == [0, 2, 2]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(-(10**6), 10**7), st.integers(1, 4096))
def test_steps_until_is_the_first_boundary_at_or_after_the_nominal_place(start: int, ahead: int, batch: int) -> None:
    nominal = start + ahead
    end = steps_until(start, nominal, batch)
    assert end >= max(start, nominal)
    assert (end - start) % batch == 0
    assert end == start or end - batch < nominal


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.integers(0, 2**24 - 1))
def test_a_label_is_the_class_in_whose_share_the_uniform_number_falls(counts: list[int], word: int) -> None:
    uniform = Fraction(word, 2**24)
    below, expected = 0, None
    for label, count in enumerate(counts):
        below += count
        if expected is None and uniform < Fraction(below, sum(counts)):
            expected = label
    drawn = LabelDistribution(tuple(counts)).draw(torch.tensor([word * 2.0**-24]))
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == [expected]


def test_classes_without_images_are_never_drawn() -> None:
    uniform = torch.tensor([0.0, 0.25, 0.5, 1 - 2.0**-24])
    assert LabelDistribution((0, 1, 0, 1, 0)).draw(uniform).tolist() == [1, 1, 3, 3]


def test_the_shares_are_brought_to_a_device_once() -> None:
    """At every step, their copy to a GPU would make it wait."""
    distribution = LabelDistribution((5, 1, 7, 3))
    uniform = torch.empty(6, dtype=torch.float64, device="meta")
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copies.append("copy" in func.name())
            return func(*args, **(kwargs or {}))

    with Copies():
        for _ in range(3):
            assert distribution.draw(uniform).device.type == "meta"
    assert sum(copies) == 1
    assert LabelDistribution((5, 1, 7, 3)) == distribution


def test_labels_occur_as_often_as_in_the_data_and_follow_from_the_sample_alone() -> None:
    distribution, source = LabelDistribution((700, 100, 200)), RandomSource(3)
    samples = torch.arange(10_000)
    labels = distribution.draw(SampleRandom(source, samples).uniform(Purpose.LABEL_GENERATOR))
    shares = (labels.bincount(minlength=3) / len(samples)).tolist()
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.015)
    later = distribution.draw(SampleRandom(source, samples[5000:]).uniform(Purpose.LABEL_GENERATOR))
    assert torch.equal(later, labels[5000:])
