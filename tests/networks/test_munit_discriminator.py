"""MUNIT's discriminator against the published counts, a literal second implementation, and autograd."""

from __future__ import annotations

from typing import Any

import literal_munit as literal
import pytest
import torch
from plain_style_layers import close, normal, randomise
from torch import Tensor, nn

from hires_gan.losses import gradient_square
from hires_gan.networks.layers import FP16_CLAMP
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.networks.munit_layers import Conv2d
from hires_gan.ops import backend

BACKENDS = ("reference", "native")


def tiny(scales: int = 2, layers: int = 3, **more: Any) -> MultiScaleDiscriminator:
    torch.manual_seed(1)
    network = MultiScaleDiscriminator(scales, layers, base=4, most=8, **more)
    randomise(network)
    for _ in range(3):
        network.iterate_spectral_norm()
    return network


def pictures(n: int = 2, height: int = 24, width: int = 18) -> Tensor:
    return normal(n, 3, height, width, seed=3).tanh()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def literal_scores(network: MultiScaleDiscriminator, images: Tensor) -> list[Tensor]:
    return literal.scores(images, literal.weights_of(network), len(network.scales), network.layers)


def logits(maps: list[Tensor]) -> Tensor:
    return torch.stack([scores.mean((1, 2, 3)) for scores in maps]).sum(0)


def test_the_published_discriminator_has_the_published_size() -> None:
    with torch.device("meta"):
        network = MultiScaleDiscriminator()
        maps = network(torch.empty(1, 3, 256, 256))
    assert count(network) == 8_271_171
    assert [tuple(scores.shape) for scores in maps] == [(1, 1, 16, 16), (1, 1, 8, 8), (1, 1, 4, 4)]


def test_more_layers_and_scales_see_more_and_channels_stay_below_the_most() -> None:
    with torch.device("meta"):
        network = MultiScaleDiscriminator(scales=2, layers=6)
        maps = network(torch.empty(1, 3, 1024, 512))
    widths = [block.convolution.weight.shape[0] for block in network.scales[0].blocks]
    assert widths == [64, 128, 256, 512, 512, 512]
    assert [tuple(scores.shape) for scores in maps] == [(1, 1, 16, 8), (1, 1, 8, 4)]


@pytest.mark.parametrize("spectral", [False, True])
def test_the_start_is_the_papers(spectral: bool) -> None:
    torch.manual_seed(0)
    network = MultiScaleDiscriminator(base=32, spectral=spectral)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1), name


def test_a_score_sees_more_pixels_at_each_scale() -> None:
    torch.manual_seed(0)
    network = MultiScaleDiscriminator(base=2, most=4).double()
    images = normal(1, 3, 512, 512).requires_grad_()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.1)  # so that nothing cancels out
    seen = []
    for scores in network(images):
        middle = scores.shape[2] // 2
        (gradient,) = torch.autograd.grad(scores[0, 0, middle, middle], images, retain_graph=True)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        seen.append(int(rows[-1] - rows[0]) + 1)
    # Of k pixels after an averaging, 2k + 1 before.
    assert seen == [46, 93, 187]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("scales", "layers"), [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize(("height", "width"), [(24, 18), (23, 31)])
def test_the_scores_equal_literal_ones(name: str, scales: int, layers: int, height: int, width: int) -> None:
    network, images = tiny(scales, layers).double(), pictures(2, height, width)
    with backend(name):
        found = network(images)
    expected = literal_scores(network, images)
    assert len(found) == scales
    for one, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("spectral", [False, True])
def test_the_gradients_of_r1_equal_those_of_the_literal_network(name: str, spectral: bool) -> None:
    """In the literal network, the normalised weights take the place of the stored ones."""
    network, images = tiny(spectral=spectral).double(), pictures().requires_grad_()
    with backend(name):
        maps = network(images)
        penalty = gradient_square(images, logits(maps))
        loss = penalty.sum() + (logits(maps) - 1).square().sum()
        found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    w = literal.weights_of(network)
    for key in [key for key in w if key.endswith("convolution.weight")] if spectral else []:
        left, right = (w[key.replace("weight", f"spectral.{side}")] for side in ("left", "right"))
        w[key] = w[key] / (left[:, None] * right[None, :] * w[key].flatten(1)).sum()
    exact = logits(literal.scores(images, w, 2, 3))
    (slope,) = torch.autograd.grad(exact.sum(), images, create_graph=True)
    close(penalty, slope.square().sum((1, 2, 3)), 1e-10)
    loss = slope.square().sum() + (exact - 1).square().sum()
    expected = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    for (parameter, _), one, gradient in zip(network.named_parameters(), found, expected, strict=True):
        assert one is not None and gradient is not None, parameter
        close(one, gradient, 1e-9)


def test_derivatives_against_finite_differences() -> None:
    torch.manual_seed(0)
    network = MultiScaleDiscriminator(2, 1, base=2, spectral=True).double()
    randomise(network)
    network.iterate_spectral_norm()
    images = pictures(1, 4, 5).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: tuple(network(x)), images)


def convolutions(network: nn.Module) -> list[Conv2d]:
    return [module for module in network.modules() if isinstance(module, Conv2d)]


def test_spectral_normalisation_holds_every_layer_and_only_the_iteration_moves_it() -> None:
    network = tiny(spectral=True)
    for _ in range(200):
        network.iterate_spectral_norm()
    layers = convolutions(network)
    assert len(layers) == 2 * 4
    for layer in layers:
        assert layer.spectral is not None
        used = layer.spectral(layer.weight).detach().flatten(1)
        assert float(torch.linalg.matrix_norm(used, 2)) == pytest.approx(1, abs=1e-4)
    before = {name: value.clone() for name, value in network.named_buffers()}
    images = pictures().float()
    first, second = network(images), network(images)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_iterations_follow_changed_weights_in_place() -> None:
    network = tiny(spectral=True)
    places = {name: value.data_ptr() for name, value in network.named_buffers()}
    layer = convolutions(network)[1]
    assert layer.spectral is not None
    with torch.no_grad():
        layer.weight.copy_(normal(*layer.weight.shape, seed=8))
    matrix = layer.weight.detach().flatten(1)
    left = layer.spectral.left.clone()
    network.iterate_spectral_norm()
    right = matrix.T @ left
    right = right / right.norm()
    left = matrix @ right
    torch.testing.assert_close(layer.spectral.right, right)
    torch.testing.assert_close(layer.spectral.left, left / left.norm())
    assert {name: value.data_ptr() for name, value in network.named_buffers()} == places


def test_the_vectors_are_part_of_the_state() -> None:
    network, other = tiny(spectral=True), MultiScaleDiscriminator(2, 3, base=4, most=8, spectral=True)
    other.load_state_dict(network.state_dict())
    images = pictures().float()
    assert all(torch.equal(a, b) for a, b in zip(network(images), other(images), strict=True))


def test_without_spectral_normalisation_there_is_nothing_to_iterate() -> None:
    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.iterate_spectral_norm()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not list(network.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_and_gives_wide_scores(dtype: torch.dtype) -> None:
    images = pictures().float().requires_grad_()
    maps = tiny(dtype=dtype)(images)
    for one, exact in zip(maps, tiny().double()(images.detach().double()), strict=True):
        assert one.dtype == torch.float32
        close(one, exact, 0.01 if dtype == torch.float16 else 0.05)
    penalty = gradient_square(images, logits(maps))
    penalty.sum().backward()
    assert penalty.isfinite().all()


def test_activations_beyond_the_range_of_fp16_are_clamped() -> None:
    network = tiny(1, 3, dtype=torch.float16)
    seen: list[Tensor] = []
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1000)
    for block in network.scales[0].blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(output))
    images = pictures().float().requires_grad_()
    (scores,) = network(images)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert max(float(x.detach().abs().max()) for x in seen) == FP16_CLAMP
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_constant_image_gives_numbers(value: float) -> None:
    network = tiny(spectral=True)
    images = torch.full((1, 3, 24, 24), value, requires_grad=True)
    maps = network(images)
    (gradient_square(images, logits(maps)).sum() + logits(maps).sum()).backward()
    assert all(scores.isfinite().all() for scores in maps)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(("scales", "layers", "least"), [(1, 1, 2), (2, 3, 15), (3, 2, 13), (3, 4, 61)])
def test_the_least_side_is_the_least_that_works(scales: int, layers: int, least: int) -> None:
    network = tiny(scales, layers)
    assert network.least_side() == least
    assert [tuple(scores.shape[2:]) for scores in network(torch.zeros(1, 3, least, least))][-1] == (1, 1)
    with pytest.raises(ValueError, match=rf"images are \[1, 3, {least - 1}, 80\]; .* at least {least}: take larger"):
        network(torch.zeros(1, 3, least - 1, 80))


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \[1, 1, 80, 80\]; \[n, 3, h, w\] is allowed"):
        tiny()(torch.zeros(1, 1, 80, 80))
    with pytest.raises(ValueError, match="scales is 0; 1 or more is allowed"):
        MultiScaleDiscriminator(scales=0)
    with pytest.raises(ValueError, match="layers is 0; 1 or more is allowed"):
        MultiScaleDiscriminator(layers=0)
