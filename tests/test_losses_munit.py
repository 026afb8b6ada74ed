"""What MUNIT adds to the losses: mean differences, scores of several scales, styles that become those of N(0, 1)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hires_gan.losses import ADVERSARIAL, absolute_difference, moment_matching, over_scales


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 2, 5)])
def test_absolute_differences_are_means_of_each_sample(shape: tuple[int, ...]) -> None:
    one, other = drawn(*shape).requires_grad_(True), drawn(*shape, seed=1).requires_grad_(True)
    found = absolute_difference(one, other)
    assert found.shape == (3,)
    numbers = math.prod(shape[1:])
    for sample in range(3):
        pairs = zip(one[sample].flatten().tolist(), other[sample].flatten().tolist(), strict=True)
        assert found[sample].item() == pytest.approx(sum(abs(a - b) for a, b in pairs) / numbers, rel=1e-12)
    found.sum().backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, (one - other).sign().detach() / numbers)
    torch.testing.assert_close(other.grad, -one.grad)


@pytest.mark.parametrize("name", ["least_squares", "hinge", "non_saturating"])
def test_maps_of_other_sizes_count_by_their_weights_alone(name: str) -> None:
    maps, weights = [drawn(3, 1, 8, 4), drawn(3, 1, 3, 2, seed=1)], [0.25, 2.0]
    for loss in ADVERSARIAL[name]:
        found = over_scales(loss, maps, weights)
        for sample in range(3):
            means = [sum(loss(s).item() for s in one[sample].flatten()) / one[sample].numel() for one in maps]
            assert float(found[sample]) == pytest.approx(0.25 * means[0] + 2 * means[1], rel=1e-12)


def test_as_many_weights_as_maps_are_wanted() -> None:
    with pytest.raises(ValueError, match="zip"):
        over_scales(ADVERSARIAL["hinge"].generator, [drawn(1, 1, 2, 2)], [1.0, 1.0])


def test_the_gradient_of_moment_matching_draws_to_mean_0_and_variance_1() -> None:
    values = drawn(5, 3).requires_grad_(True)
    mean, variance = torch.tensor([0.5, -2.0, 0.0]).double(), torch.tensor([0.1, 1.0, 4.0]).double()
    found = moment_matching(values, mean, variance)
    assert found.shape == (5,)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    for sample in range(5):
        for d in range(3):
            s, m, v = (one.item() for one in (values[sample, d], mean[d], variance[d]))
            assert float(gradient[sample, d]) == pytest.approx((m + (v - 1) * (s - m)) / 3, rel=1e-12)


def test_with_a_batchs_own_moments_it_is_the_gradient_of_what_it_stands_for() -> None:
    """Of half the square of the mean, and a quarter of the square of the variance minus one."""
    values = (drawn(64, 3) * 2 + 1).requires_grad_(True)
    mean, variance = values.mean(0), values.var(0, correction=0)
    whole = (mean.square() / 2 + (variance - 1).square() / 4).mean()
    (expected,) = torch.autograd.grad(whole, values, retain_graph=True)
    terms = moment_matching(values, mean.detach(), variance.detach())
    (found,) = torch.autograd.grad(terms.mean(), values)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_descent_takes_free_styles_to_mean_0_and_variance_1() -> None:
    styles = (drawn(256, 2) * torch.tensor([3.0, 0.2]) + torch.tensor([2.0, -1.0])).requires_grad_(True)
    running = torch.stack((torch.zeros(2), torch.ones(2))).double()
    for _ in range(3000):
        now = torch.stack((styles.mean(0), styles.square().mean(0))).detach()
        running.lerp_(now, 0.1)
        terms = moment_matching(styles, running[0], running[1] - running[0].square())
        (gradient,) = torch.autograd.grad(terms.sum(), styles)
        with torch.no_grad():
            styles -= 0.02 * gradient
    torch.testing.assert_close(styles.mean(0).detach(), torch.zeros(2).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(styles.var(0, correction=0).detach(), torch.ones(2).double(), rtol=0, atol=1e-3)
