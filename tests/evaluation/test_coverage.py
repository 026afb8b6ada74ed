"""Density and coverage against loops, known answers, and whatever the blocks are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import neighbours
from hires_gan.evaluation.coverage import density_and_coverage


def drawn(count: int, seed: int, dimension: int = 6, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)) + shift


def literal(reals: Tensor, fakes: Tensor, k: int) -> tuple[float, float]:
    """Naeem et al. 2020, equations 4 and 5, distance by distance in float64."""
    inside = covered = 0
    for number, real in enumerate(reals.double()):
        others = sorted(float((real - o).norm()) for i, o in enumerate(reals.double()) if i != number)
        hits = sum(float((real - fake).norm()) < others[k - 1] for fake in fakes.double())
        inside += hits
        covered += hits > 0
    return inside / (k * len(fakes)), covered / len(reals)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(6, 25),
    st.integers(1, 25),
    st.integers(1, 5),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.7, 2.0]),
    st.integers(1, 8),
)
def test_they_are_those_of_the_loops(reals: int, fakes: int, k: int, seed: int, shift: float, dimension: int) -> None:
    a, b = drawn(reals, seed, dimension), drawn(fakes, seed + 1, dimension, shift)
    assert density_and_coverage(a, b, neighbours=k) == pytest.approx(literal(a, b, k))


def test_equal_sets() -> None:
    """Each real and its k - 1 nearest lie strictly within its surroundings: k of n."""
    a = drawn(50, seed=0)
    assert density_and_coverage(a, a) == (1.0, 1.0)


def test_equal_distributions() -> None:
    """Coverage is expected to be 1 - (n-1)...(n-k) / ((2n-1)...(2n-k)) (Naeem et al. 2020, lemma 3)."""
    count, k = 600, 5
    expected = 1 - math.prod((count - i) / (2 * count - i) for i in range(1, k + 1))
    density, covered = density_and_coverage(drawn(count, 1), drawn(count, 2))
    assert density == pytest.approx(1, abs=0.1)
    assert covered == pytest.approx(expected, abs=0.03)


def test_distant_sets() -> None:
    assert density_and_coverage(drawn(50, 1), drawn(50, 2) + 1000) == (0.0, 0.0)


def test_fakes_in_one_place_are_dense_and_cover_little() -> None:
    reals = drawn(50, 1)
    density, covered = density_and_coverage(reals, reals[:1].expand(50, -1))
    assert density > 0.5 and covered < 0.3


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reals, fakes = drawn(70, 1), drawn(40, 2, shift=0.3)
    whole = density_and_coverage(reals, fakes)
    monkeypatch.setattr(neighbours, "_ENTRIES", 300)
    assert density_and_coverage(reals, fakes) == whole


def test_it_is_stopped_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    reals, fakes = drawn(70, 1), drawn(40, 2)
    monkeypatch.setattr(neighbours, "_ENTRIES", 280)  # 18 blocks of 4 rows for radii, and 10 of 7 for fakes
    asked = []

    def stopped_at(number: int) -> Callable[[], bool]:
        asked.clear()
        return lambda: asked.append(1) or len(asked) == number  # type: ignore[func-returns-value]

    for number in (1, 18, 19, 28):
        with pytest.raises(Stopped):
            density_and_coverage(reals, fakes, stopped=stopped_at(number))
        assert len(asked) == number
    assert density_and_coverage(reals, fakes, stopped=stopped_at(29)) == density_and_coverage(reals, fakes)


def test_sets_far_from_zero_are_told_apart() -> None:
    reals, fakes = drawn(40, 1).double(), drawn(40, 2).double()
    expected = literal(reals, fakes, 5)
    shifted = (reals + 4096).float(), (fakes + 4096).float()  # squares of 1e8, of which float32 keeps 8 as its unit
    assert density_and_coverage(*shifted) == pytest.approx(expected, abs=0.02)


def test_a_place_on_the_border_is_outside_wherever_the_grid_lies() -> None:
    """Reals at 0, 1, ..., 9: each reaches as far as its neighbour, and a fake there is not within."""
    reals = torch.arange(10.0)[:, None]
    for shift in (0.0, 0.25, 1e6, -3e6):
        # The fake lies at the place of one real: within its surroundings alone.
        assert density_and_coverage(reals + shift, reals[4:5] + shift, neighbours=1) == (1.0, 0.1)


def test_what_cannot_be_is_refused() -> None:
    reals = drawn(10, 1)
    with pytest.raises(UsageError, match="density cannot be computed from 5 reals: it takes 6 at least"):
        density_and_coverage(reals[:5], reals)
    with pytest.raises(UsageError, match="no fakes"):
        density_and_coverage(reals, reals[:0])
    with pytest.raises(Failure, match="with 10 neighbours needs more reals than that, but there are 10"):
        density_and_coverage(reals, reals, neighbours=10)
    with pytest.raises(Failure, match="reals have 6 features each and the fakes 4"):
        density_and_coverage(reals, reals[:, :4])
    spoiled = reals.clone()
    spoiled[2] = math.nan
    with pytest.raises(Failure, match="features of the fakes of 1 of 10 images are not finite"):
        density_and_coverage(reals, spoiled)
