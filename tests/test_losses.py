"""Adversarial losses and penalties against literal formulas, hand-made answers and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hires_gan.losses import ADVERSARIAL, clip_weights, drift, gradient_penalty, gradient_square
from hires_gan.networks.layers import EqualizedLinear

LOGITS = (-3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.5)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Name -> (discriminator on real, discriminator on fake, generator), written as the papers write them.
LITERAL: dict[str, tuple[Callable[[float], float], ...]] = {
    "minimax": (
        lambda x: -math.log(sigmoid(x)),
        lambda x: -math.log(1 - sigmoid(x)),
        lambda x: math.log(1 - sigmoid(x)),
    ),
    "non_saturating": (
        lambda x: -math.log(sigmoid(x)),
        lambda x: -math.log(1 - sigmoid(x)),
        lambda x: -math.log(sigmoid(x)),
    ),
    "least_squares": (lambda x: (x - 1) ** 2 / 2, lambda x: x**2 / 2, lambda x: (x - 1) ** 2 / 2),
    "wgan": (lambda x: -x, lambda x: x, lambda x: -x),
    "wgan_gp": (lambda x: -x, lambda x: x, lambda x: -x),
    "hinge": (lambda x: -min(0.0, -1 + x), lambda x: -min(0.0, -1 - x), lambda x: -x),
}


def test_every_loss_has_a_literal_formula() -> None:
    assert set(ADVERSARIAL) == set(LITERAL)


@pytest.mark.parametrize("name", LITERAL)
def test_losses_equal_the_papers_formulas_per_sample(name: str) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    for loss, literal in zip(ADVERSARIAL[name], LITERAL[name], strict=True):
        expected = torch.tensor([literal(x) for x in LOGITS], dtype=torch.float64)
        torch.testing.assert_close(loss(logits), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "real", "fake", "generator"),
    [
        ("minimax", math.log(2), math.log(2), -math.log(2)),
        ("non_saturating", math.log(2), math.log(2), math.log(2)),
        ("least_squares", 0.5, 0.0, 0.5),
        ("wgan", 0.0, 0.0, 0.0),
        ("wgan_gp", 0.0, 0.0, 0.0),
        ("hinge", 1.0, 1.0, 0.0),
    ],
)
def test_known_answers_of_an_undecided_discriminator(name: str, real: float, fake: float, generator: float) -> None:
    losses = [float(loss(torch.zeros(1, dtype=torch.float64))) for loss in ADVERSARIAL[name]]
    assert losses == pytest.approx([real, fake, generator], abs=1e-15)


@pytest.mark.parametrize("name", LITERAL)
def test_the_discriminator_separates_and_the_generator_climbs(name: str) -> None:
    for loss, sign in zip(ADVERSARIAL[name], (-1, 1, -1), strict=True):
        logits = torch.tensor([0.1, 0.3, 0.6], requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
        assert torch.equal(gradient.sign(), torch.full((3,), float(sign)))


@pytest.mark.parametrize("name", LITERAL)
def test_losses_and_gradients_are_finite_at_extremes(name: str) -> None:
    for loss in ADVERSARIAL[name]:
        logits = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
        value = loss(logits)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.shape == (4,)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_non_saturating_keeps_its_gradient_where_minimax_loses_it() -> None:
    slopes = {}
    for name in ("minimax", "non_saturating"):
        logits = torch.tensor([-30.0], requires_grad=True)
        (slope,) = torch.autograd.grad(ADVERSARIAL[name].generator(logits).sum(), logits)
        slopes[name] = float(slope)
    assert slopes["non_saturating"] == -1.0
    assert -1e-12 < slopes["minimax"] < 0


@pytest.mark.parametrize("name", LITERAL)
def test_losses_have_right_second_derivatives(name: str) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64) + 0.01  # off the hinge's corners
    for loss in ADVERSARIAL[name]:
        assert torch.autograd.gradcheck(loss, logits.clone().requires_grad_())
        scaled = lambda x, loss=loss: loss(x) * x  # noqa: E731 - linear losses need a second derivative to compare
        assert torch.autograd.gradgradcheck(scaled, logits.clone().requires_grad_())


SIZE = 4


def smooth_critic() -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A small convolutional critic as a function of images and of its weights, in float64."""
    torch.manual_seed(0)
    first, second = torch.randn(3, 3, 3, 3).double() * 0.3, torch.randn(1, 3, SIZE, SIZE).double() * 0.3

    def critic(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
        hidden = torch.tanh(nn.functional.conv2d(images, first, padding=1))
        return nn.functional.conv2d(hidden, second).flatten()

    return critic, [first.requires_grad_(), second.requires_grad_()]


def images(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double()


def numeric_gradient(critic: Callable[[Tensor], Tensor], image: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of one image's logit, pixel by pixel: `[pixels]`."""
    slopes = []
    for place in range(image.numel()):
        shift = torch.zeros(image.numel(), dtype=image.dtype)
        shift[place] = step
        shift = shift.reshape(image.shape)
        slopes.append((critic((image + shift)[None]) - critic((image - shift)[None])) / (2 * step))
    return torch.cat(slopes)


def test_gradient_square_equals_finite_differences_per_sample() -> None:
    critic, weights = smooth_critic()
    batch = images(1, count=3)
    leaf = batch.clone().requires_grad_()
    penalty = gradient_square(leaf, critic(leaf, *weights))
    with torch.no_grad():
        expected = torch.stack(
            [numeric_gradient(lambda x: critic(x, *weights), image).square().sum() for image in batch]
        )
    torch.testing.assert_close(penalty.detach(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("target", [1.0, 0.75, 750.0])
def test_gradient_penalty_equals_finite_differences_on_the_interpolates(target: float) -> None:
    critic, weights = smooth_critic()
    real, fake = images(1), images(2)
    epsilon = torch.tensor([0.25, 0.9], dtype=torch.float64).reshape(2, 1, 1, 1)
    penalty = gradient_penalty(lambda x: critic(x, *weights), real, fake, epsilon, target)
    with torch.no_grad():
        mixed = (1 - epsilon) * real + epsilon * fake
        norms = torch.stack([numeric_gradient(lambda x: critic(x, *weights), image).norm() for image in mixed])
    torch.testing.assert_close(penalty.detach(), (norms - target) ** 2 / target**2, rtol=1e-7, atol=0)


@pytest.mark.parametrize("penalty", ["gradient_square", "gradient_penalty"])
def test_penalties_train_the_critic_rightly_through_the_double_backward(penalty: str) -> None:
    critic, weights = smooth_critic()
    epsilon = torch.tensor([0.3, 0.6], dtype=torch.float64).reshape(2, 1, 1, 1)

    def of_weights(*weights: Tensor) -> Tensor:
        if penalty == "gradient_penalty":
            return gradient_penalty(lambda x: critic(x, *weights), images(1), images(2), epsilon)
        leaf = images(1).requires_grad_()
        return gradient_square(leaf, critic(leaf, *weights))

    assert torch.autograd.gradcheck(of_weights, weights)
    assert torch.autograd.gradgradcheck(of_weights, weights)


def linear_critic(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x.flatten(1) * weight).sum(1)


def test_penalties_of_a_linear_critic_depend_on_its_weights_alone() -> None:
    weight = torch.zeros(3 * SIZE * SIZE, dtype=torch.float64)
    weight[0], weight[7] = 3.0, 4.0  # norm 5
    weight.requires_grad_()
    critic = linear_critic(weight)
    leaf = images(3).requires_grad_()
    assert gradient_square(leaf, critic(leaf)).tolist() == [25.0, 25.0]
    epsilon = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    penalty = gradient_penalty(critic, images(1), images(2), epsilon)
    assert penalty.tolist() == [16.0, 16.0]
    # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w|
    (gradient,) = torch.autograd.grad(penalty[0], weight)
    torch.testing.assert_close(gradient, (8 * weight / 5).detach())


def test_gradient_penalty_vanishes_on_a_critic_of_unit_slope() -> None:
    weight = torch.zeros(3 * SIZE * SIZE)
    weight[5] = 1.0
    epsilon = torch.full((2, 1, 1, 1), 0.5)
    penalty = gradient_penalty(linear_critic(weight), images(1).float(), images(2).float(), epsilon)
    assert penalty.tolist() == [0.0, 0.0]


def test_gradient_penalty_is_finite_where_the_critic_is_flat() -> None:
    weight = torch.zeros(3 * SIZE * SIZE, requires_grad=True)
    epsilon = torch.full((2, 1, 1, 1), 0.5)
    penalty = gradient_penalty(linear_critic(weight), images(1).float(), images(2).float(), epsilon)
    penalty.sum().backward()
    assert penalty.tolist() == [1.0, 1.0]
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_gradient_penalty_leaves_the_generator_alone() -> None:
    critic, weights = smooth_critic()
    fake = images(2).requires_grad_()
    epsilon = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    gradient_penalty(lambda x: critic(x, *weights), images(1), fake, epsilon).sum().backward()
    assert fake.grad is None
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)


def test_penalties_do_not_depend_on_how_a_batch_is_cut() -> None:
    critic, weights = smooth_critic()
    real, fake = images(1, count=4), images(2, count=4)
    epsilon = torch.linspace(0.1, 0.9, 4, dtype=torch.float64).reshape(4, 1, 1, 1)

    def of(part: slice) -> Tensor:
        return gradient_penalty(lambda x: critic(x, *weights), real[part], fake[part], epsilon[part])

    whole, cut = of(slice(None)), torch.cat([of(slice(0, 1)), of(slice(1, 4))])
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=0)


def test_drift_is_the_square_of_each_logit() -> None:
    assert drift(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [4.0, 0.0, 9.0]


def test_clip_weights_bounds_every_parameter_and_keeps_the_small_ones() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[0.005, -0.5], [0.5, -0.005]]))
    clip_weights(module, 0.01)
    assert torch.equal(module[0].weight, torch.tensor([[0.005, -0.01], [0.01, -0.005]]))
    assert all(float(parameter.detach().abs().max()) <= 0.01 for parameter in module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_clip_weights_holds_for_equalized_weights_as_they_are_used() -> None:
    layer = EqualizedLinear(64, 8)
    clip_weights(layer, 0.01)
    used = layer.weight.detach() * layer.scale
    assert used.abs().max() == pytest.approx(0.01)
    assert layer.weight.abs().max() > 0.05
