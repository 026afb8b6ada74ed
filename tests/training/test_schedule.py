"""Cadences and planned steps: what follows from nimg alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.recipes.protocol import OptimizerPlan, Stage
from hires_gan.training.schedule import Cadence, largest_batch, steps


def stage(start: int, end: int | None, batch: int, resolution: int = 4) -> Stage:
    plan = OptimizerPlan(0.001, (0.0, 0.99), 1e-8, ())
    return Stage(start, end, resolution, batch, 1, False, {"generator": plan})


def made_stages(plan: Sequence[tuple[int, int]]) -> list[Stage]:
    """Stages of (batch, steps); the last one never ends."""
    stages, start = [], 0
    for number, (batch, count) in enumerate(plan):
        end = None if number == len(plan) - 1 else start + batch * count
        stages.append(stage(start, end, batch, 4 << number))
        start = end or start
    return stages


def walk(boundaries: Sequence[int], cadence: Cadence) -> list[int]:
    """The boundaries at which something is done."""
    done = []
    for nimg in boundaries:
        if cadence.due(nimg):
            cadence.done(nimg)
            done.append(nimg)
    return done


def literal_due(boundaries: Sequence[int], every: int, after: int = 0) -> list[int]:
    """The first boundary at or after each multiple of `every` above `after`, each once."""
    found = set()
    for multiple in range((after // every + 1) * every, boundaries[-1] + 1, every):
        found.add(next(nimg for nimg in boundaries if nimg >= multiple))
    return sorted(found)


batches = st.lists(st.integers(1, 900), min_size=1, max_size=60)
intervals = st.integers(1, 5000)


@settings(max_examples=200, deadline=None)
@given(batches, intervals, st.booleans())
def test_due_exactly_once_per_multiple_at_the_first_boundary_at_or_after_it(
    sizes: list[int], every: int, at_start: bool
) -> None:
    boundaries = [0, *itertools.accumulate(sizes)]
    expected = literal_due(boundaries, every)
    assert walk(boundaries, Cadence(every / 1000, at_start)) == ([0] if at_start else []) + expected


@settings(max_examples=200, deadline=None)
@given(batches, batches, intervals, intervals)
def test_a_resume_may_change_the_interval(before: list[int], after: list[int], old: int, new: int) -> None:
    first = [0, *itertools.accumulate(before)]
    cadence = Cadence(old / 1000)
    walk(first, cadence)
    resumed = Cadence(new / 1000)
    resumed.last = cadence.last
    second = list(itertools.accumulate(after, initial=first[-1]))
    # What the new interval would have asked for since the last time is due at once, then every multiple in its turn.
    assert walk(second, resumed) == literal_due(second, new, cadence.last)


def test_it_stays_due_until_it_is_done() -> None:
    cadence = Cadence(0.1)
    assert [cadence.due(nimg) for nimg in (99, 100, 130, 160)] == [False, True, True, True]
    cadence.done(160)
    assert [cadence.due(nimg) for nimg in (160, 199, 200)] == [False, False, True]


def test_a_resume_at_a_boundary_does_nothing_twice() -> None:
    cadence = Cadence(0.1, at_start=True)
    assert walk([0, 64, 128], cadence) == [0, 128]
    resumed = Cadence(0.1, at_start=True)
    resumed.last = cadence.last
    assert walk([128, 192, 256], resumed) == [256]


def test_null_is_never_due_and_an_interval_below_an_image_is_one_image() -> None:
    never = Cadence(None, at_start=True)
    assert not any(never.due(nimg) for nimg in (0, 1, 10**9))
    assert walk(range(5), Cadence(1e-9)) == [1, 2, 3, 4]
    assert Cadence(0.0004).every == 1
    assert Cadence(12.3456).every == 12346


plans = st.lists(st.tuples(st.integers(1, 600), st.integers(0, 5)), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(plans, st.integers(1, 20_000))
def test_steps_cover_the_run_without_a_gap(plan: list[tuple[int, int]], total: int) -> None:
    stages = made_stages(plan)
    planned = list(steps(stages, 0, total))
    assert planned[0].nimg == 0
    assert all(one.end == following.nimg for one, following in itertools.pairwise(planned))
    assert planned[-1].nimg < total <= planned[-1].end
    for step in planned:
        within = stages[step.stage]
        assert within.start <= step.nimg
        assert step.end <= (within.end or math.inf)
        assert (step.batch, step.resolution) == (within.batch, within.resolution)
        assert (step.nimg - within.start) % within.batch == 0
        assert step.request().samples == range(step.nimg, step.end)
        assert step.request().resolution == within.resolution
    at = planned[len(planned) // 2].nimg
    assert list(steps(stages, at, total)) == planned[len(planned) // 2 :]


def test_a_finished_run_has_no_steps() -> None:
    assert list(steps(made_stages([(8, 3)]), 48, 48)) == []
    assert [step.nimg for step in steps(made_stages([(8, 3)]), 40, 41)] == [40]


def test_steps_are_made_one_by_one() -> None:
    endless = steps(made_stages([(1, 1)]), 0, 10**12)
    assert [next(endless).nimg for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("total", "expected"), [(1, 64 * 16), (640, 64 * 16), (641, 32 * 64), (10_000, 32 * 256)])
def test_the_largest_batch_is_that_of_the_stages_that_the_run_reaches(total: int, expected: int) -> None:
    stages = [stage(0, 640, 64, 4), stage(640, 1280, 32, 8), stage(1280, None, 32, 16)]
    assert largest_batch(stages, total) == expected * 3
    assert largest_batch(stages, total) == max(step.batch * step.resolution**2 * 3 for step in steps(stages, 0, total))
