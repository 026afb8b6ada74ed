"""Mean and covariance: those of the formulas, the same bits however features arrive, and only from what is finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure
from hires_gan.evaluation.moments import BLOCK, MomentSums, check_alike, moments


def features(count: int, dimension: int = 5, offset: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randn(count, dimension, generator=random) * torch.linspace(0.1, 3, dimension) + offset


@pytest.mark.parametrize("count", [2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_they_are_numpys(count: int) -> None:
    x = features(count)
    found = moments(x)
    assert found.count == count
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-11, atol=1e-12)


def test_a_known_answer() -> None:
    found = moments(torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]]))
    np.testing.assert_array_equal(found.mean, [2.0, 3.0])
    np.testing.assert_array_equal(found.covariance, [[4.0, 2.0], [2.0, 4.0]])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 1500), min_size=1, max_size=6), st.integers(0, 3))
def test_cuts_change_no_bit(cuts: list[int], seed: int) -> None:
    x = torch.randn(sum(cuts), 4, generator=torch.Generator().manual_seed(seed)) + 7
    sums = MomentSums()
    for part in torch.split(x, cuts):
        sums.add(part)
    whole, in_parts = moments(x), sums.moments()
    assert np.array_equal(whole.mean, in_parts.mean)
    assert np.array_equal(whole.scatter, in_parts.scatter)


def test_they_are_stopped_between_blocks() -> None:
    asked = []

    def third_time() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Stopped):
        moments(features(5 * BLOCK), third_time)
    assert len(asked) == 3


def test_features_far_from_zero_lose_no_digits() -> None:
    x = features(5000).double()
    near, far = moments(x), moments(x + 1e6)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-8, atol=1e-8)


def test_more_can_be_added_after_a_look() -> None:
    x = features(2000)
    sums = MomentSums()
    sums.add(x[:1500])
    np.testing.assert_array_equal(sums.moments().mean, moments(x[:1500]).mean)
    sums.add(x[1500:])
    np.testing.assert_array_equal(sums.moments().scatter, moments(x).scatter)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = features(10)
    x[3, 1] = x[5, 0] = bad
    with pytest.raises(Failure, match="the features of 2 of 10 images are not finite"):
        moments(x)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Failure, match="no features to take moments of"):
        MomentSums().moments()
    with pytest.raises(Failure, match="at least 2 samples, but there is 1"):
        _ = moments(features(1)).covariance
    with pytest.raises(Failure, match=r"torch.float32 of shape \[4, 2, 2\]"):
        moments(torch.zeros(4, 2, 2))
    with pytest.raises(Failure, match="torch.int64"):
        moments(torch.zeros(4, 2, dtype=torch.int64))
    for before in (3, BLOCK):  # waiting, and already summed up
        sums = MomentSums()
        sums.add(features(before))
        with pytest.raises(Failure, match="features have 6 values each, but those before had 5"):
            sums.add(features(3, dimension=6))
    with pytest.raises(Failure, match="reals have 4 features each and the fakes 5"):
        check_alike(4, 5)
