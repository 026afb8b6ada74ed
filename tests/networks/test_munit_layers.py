"""MUNIT's layers against loops, literal formulas, and torch's own operators."""

from __future__ import annotations

import literal_munit as literal
import pytest
import torch
import torch.nn.functional as F
from plain_style_layers import close, normal, randomise
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hires_gan.networks.layers import FP16_CLAMP
from hires_gan.networks.munit_layers import (
    ConvBlock,
    Norm,
    ResidualBlock,
    SpectralNorm,
    doubled,
    halved,
    moments,
    reflect_pad,
)
from hires_gan.ops import backend

BACKENDS = ("reference", "native")
HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_reflection_equals_that_of_torch(padding: int, memory_format: torch.memory_format) -> None:
    x = normal(2, 3, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    found, expected = reflect_pad(x, padding), F.pad(x, (padding,) * 4, mode="reflect")
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=memory_format)
    weights = normal(*expected.shape, seed=1)
    (dx,) = torch.autograd.grad((found * weights).sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad((expected * weights).sum(), x)[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubling_repeats_each_pixel_in_either_memory_format(memory_format: torch.memory_format) -> None:
    x = normal(2, 3, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    y = doubled(x)
    assert torch.equal(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert y.is_contiguous(memory_format=memory_format)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, torch.full_like(x, 4))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_halving_takes_the_mean_of_four_pixels_in_either_memory_format(memory_format: torch.memory_format) -> None:
    x = normal(2, 3, 4, 6).contiguous(memory_format=memory_format).requires_grad_()
    y = halved(x)
    torch.testing.assert_close(y, literal.halved(x), rtol=1e-13, atol=1e-13)
    assert y.is_contiguous(memory_format=memory_format)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, torch.full_like(x, 0.25))


def test_moments_are_those_of_each_channel_and_differentiable_twice() -> None:
    x = normal(2, 3, 4, 5).requires_grad_()
    mean, variance, pixels = moments(x)
    assert pixels == 20
    for n in range(2):
        for c in range(3):
            values = x[n, c].flatten().tolist()
            average = sum(values) / 20
            assert mean[n, c].item() == pytest.approx(average, rel=1e-12)
            assert variance[n, c].item() == pytest.approx(sum((v - average) ** 2 for v in values) / 20, rel=1e-12)
    assert torch.autograd.gradcheck(lambda one: moments(one)[:2], x)
    assert torch.autograd.gradgradcheck(lambda one: moments(one)[:2], x)


@pytest.mark.parametrize("dtype", HALF)
def test_moments_of_half_precision_are_taken_in_float32(dtype: torch.dtype) -> None:
    """A variance of 4e6 is beyond fp16, and a mean of 1000.3 has no room in either."""
    x = (1000.3 + 2000 * normal(1, 2, 32, 32)).to(dtype)
    mean, variance, _ = moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    expected = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(variance.double(), expected[0], rtol=1e-5, atol=0)


def test_autograd_keeps_no_wide_copy_of_half_precision() -> None:
    kept: list[Tensor] = []
    x = normal(1, 2, 8, 8).half().requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with backend("native"), saved_tensors_hooks(keep, lambda tensor: tensor):
        ConvBlock(2, 3, 3, norm="instance")(x)
    assert {tensor.dtype for tensor in kept if tensor.numel() > 100} == {torch.float16}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (4, 2), (5, 1), (3, 1), (1, 1)])
@pytest.mark.parametrize("norm", ["none", "instance", "adaptive", "layer"])
@pytest.mark.parametrize("act", ["relu", "lrelu", "linear"])
def test_a_block_equals_a_literal_one(name: str, kernel: int, stride: int, norm: Norm, act: str) -> None:
    layer = ConvBlock(3, 4, kernel, stride, norm, act).double()
    randomise(layer)
    x, affine = normal(2, 3, 6, 9), normal(2, 8, seed=2)
    with backend(name):
        found = layer(x, None, affine.reshape(2, 2, 4))
    given = affine if norm == "adaptive" else None
    expected = literal.block(x, literal.weights_of(layer), norm, act, stride, given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_residual_block_equals_a_literal_one_and_ends_with_the_sum() -> None:
    layer = ResidualBlock(3, "adaptive").double()
    randomise(layer)
    x, affine = normal(2, 3, 5, 6), normal(2, 12, seed=2)
    found = layer(x, None, affine.reshape(2, 2, 2, 3))
    halves = (affine[:, :6], affine[:, 6:])
    torch.testing.assert_close(
        found, literal.residual(x, literal.weights_of(layer), "adaptive", halves), rtol=1e-10, atol=1e-10
    )
    assert float(found.detach().min()) < 0


def test_layer_normalisation_is_torchs_but_for_the_deviation() -> None:
    """With as many numbers as here, n - 1 and n differ by less than the tolerance, and so do the two epsilons."""
    layer = ConvBlock(3, 4, 3, norm="layer", act="linear").double()
    randomise(layer)
    x = normal(2, 3, 64, 64)
    y = F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), layer.convolution.weight, layer.convolution.bias)
    expected = F.layer_norm(y, y.shape[1:]) * layer.gamma[:, None, None] + layer.beta[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)


def test_spectral_normalisation_divides_by_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    weight = normal(4, 3, 3, 3)
    spectral = SpectralNorm(weight.float()).double()
    for _ in range(300):
        spectral.iterate(weight)
    largest = torch.linalg.matrix_norm(weight.flatten(1), 2)
    torch.testing.assert_close(spectral(weight), weight / largest, rtol=1e-10, atol=1e-10)
    before = spectral.left.clone()
    spectral(weight)
    assert torch.equal(spectral.left, before)


def test_the_divisor_of_a_spectral_normalisation_has_a_gradient() -> None:
    """The weight's growth along itself changes nothing, so that the gradient has no part along it."""
    weight = normal(4, 3, 3, 3).requires_grad_()
    torch.manual_seed(0)
    spectral = SpectralNorm(weight.float(), iterations=100).double()
    (gradient,) = torch.autograd.grad((spectral(weight) * normal(4, 3, 3, 3, seed=7)).sum(), weight)
    assert gradient.abs().max() > 0.01
    assert float((gradient * weight.detach()).sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("norm", ["none", "instance", "adaptive", "layer"])
def test_sums_beyond_the_range_of_half_precision_stay_finite(dtype: torch.dtype, norm: Norm) -> None:
    """Each sum of the convolution is about 256 * 4 * 9 * 50, or 460,000."""
    layer = ConvBlock(4, 3, 3, norm=norm, act="linear")
    with torch.no_grad():
        layer.convolution.weight.fill_(50).mul_(torch.linspace(0.9, 1.1, 9).reshape(3, 3))
    x = (FP16_CLAMP * (1 - 0.05 * normal(2, 4, 12, 12).abs().clamp_max(3))).to(dtype).requires_grad_()
    affine = torch.ones(2, 2, 3)
    y = layer(x, None, affine)
    assert y.isfinite().all()
    (dx,) = torch.autograd.grad(y.float().square().sum(), x)
    assert dx.isfinite().all()
    exact = layer.double()(x.detach().double(), None, affine.double())
    if norm == "none":
        exact = exact.clamp(-FP16_CLAMP, FP16_CLAMP) if dtype == torch.float16 else exact
    # What varies is a twentieth of what is rounded.
    close(y, exact, 0.05 if dtype == torch.float16 else 0.2)


def test_layer_normalisation_of_nothing_has_gradients() -> None:
    layer = ConvBlock(3, 4, 3, norm="layer")
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
