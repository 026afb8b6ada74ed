"""The layers against loops, plain compositions of torch's own operators, and known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hires_gan.networks.layers import (
    FP16_CLAMP,
    EqualizedConv2d,
    EqualizedLinear,
    biased_lrelu,
    double_nearest,
    halve_box,
    minibatch_deviation,
    pixel_norm,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_bias(layer: EqualizedConv2d | EqualizedLinear) -> EqualizedConv2d | EqualizedLinear:
    """The layer in float64 with a bias that is not zero, so that a forgotten one shows."""
    layer.double()
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.copy_(noise(layer.bias.numel(), seed=9))
    return layer


def test_a_dense_layer_is_the_matrix_product_scaled_by_gain_over_root_fan_in() -> None:
    layer, x = with_bias(EqualizedLinear(3, 2, gain=1.5)), noise(4, 3)
    assert layer.bias is not None
    for n in range(4):
        for o in range(2):
            expected = sum(x[n, i].item() * layer.weight[o, i].item() for i in range(3)) * 1.5 / math.sqrt(3)
            assert layer(x)[n, o].item() == pytest.approx(expected + layer.bias[o].item(), rel=1e-13)


def test_a_convolution_is_the_sum_over_its_window_scaled_by_gain_over_root_fan_in() -> None:
    layer, x = with_bias(EqualizedConv2d(2, 3, 3, gain=0.7)), noise(1, 2, 4, 5)
    padded = F.pad(x, (1, 1, 1, 1))
    expected = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    for o in range(3):
        for row in range(4):
            for column in range(5):
                window = padded[0, :, row : row + 3, column : column + 3]
                expected[0, o, row, column] = (window * layer.weight[o]).sum() * 0.7 / math.sqrt(2 * 9)
    expected += layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)


def test_weights_start_standard_normal_and_biases_at_zero() -> None:
    torch.manual_seed(1)
    for layer in (EqualizedConv2d(64, 64, 3), EqualizedLinear(256, 200)):
        assert layer.bias is not None
        assert layer.weight.mean().item() == pytest.approx(0.0, abs=0.02)
        assert layer.weight.std().item() == pytest.approx(1.0, abs=0.02)
        assert not layer.bias.any()
    assert EqualizedLinear(4, 4, bias=False).bias is None


def test_the_variance_stays_about_constant_through_ten_layers() -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 96, 24, 24)
    with torch.no_grad():
        for _ in range(10):
            x = EqualizedConv2d(96, 96, 3, act="lrelu")(x)
            # A gain that is off by a factor of sqrt(2) would leave a factor of 32 behind.
            assert 0.4 < float(x.square().mean()) < 2.0


def plain_up(layer: EqualizedConv2d, x: Tensor) -> Tensor:
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(large, layer.weight * math.sqrt(2) / math.sqrt(layer.weight[0].numel()), layer.bias, padding=1)


def plain_down(layer: EqualizedConv2d, x: Tensor) -> Tensor:
    weight = layer.weight * math.sqrt(2) / math.sqrt(layer.weight[0].numel())
    return F.avg_pool2d(F.conv2d(x, weight, layer.bias, padding=1), 2)


PLAIN: dict[str, Callable[[EqualizedConv2d, Tensor], Tensor]] = {"up": plain_up, "down": plain_down}


@pytest.mark.parametrize("resample", PLAIN)
@pytest.mark.parametrize("size", [(4, 4), (6, 10)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_fused_convolution_equals_the_two_steps_in_value_gradient_and_double_gradient(
    resample: str, size: tuple[int, int], channels_last: bool
) -> None:
    layer = with_bias(EqualizedConv2d(3, 5, 3, resample=resample))
    assert isinstance(layer, EqualizedConv2d)
    found, expected = (
        derivatives(forward, layer, noise(2, 3, *size), channels_last)
        for forward in (lambda layer, x: layer(x), PLAIN[resample])
    )
    assert len(found) == len(expected) == 7
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * theirs.detach().abs().max().item())


def derivatives(
    forward: Callable[[EqualizedConv2d, Tensor], Tensor], layer: EqualizedConv2d, x: Tensor, channels_last: bool
) -> list[Tensor]:
    """The output, its gradients and, as a gradient penalty takes them, the gradients of its gradient."""
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    y = forward(layer, x)
    inputs = (x, layer.weight, layer.bias)
    first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(first[0].pow(3).sum(), inputs)
    return [y, *first, *second]


def test_resampling_is_refused_for_other_kernels() -> None:
    with pytest.raises(AssertionError):
        EqualizedConv2d(2, 2, 1, resample="up")
    with pytest.raises(AssertionError):
        EqualizedConv2d(2, 2, 3, resample="sideways")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_layers_compute_in_the_dtype_of_their_input_and_keep_their_parameters(
    dtype: torch.dtype, resample: str | None
) -> None:
    convolution, dense = EqualizedConv2d(4, 4, 3, resample=resample, act="lrelu"), EqualizedLinear(4, 2, act="lrelu")
    x = torch.ones(2, 4, 4, 4, dtype=dtype)
    y = pixel_norm(convolution(x))
    z = dense(minibatch_deviation(y, 2)[:, :4].mean((2, 3)))
    assert y.dtype == z.dtype == dtype
    z.sum().backward()
    for parameter in (*convolution.parameters(), *dense.parameters()):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_an_activated_layer_is_the_linear_one_with_a_rectifier_behind(resample: str | None) -> None:
    layer = with_bias(EqualizedConv2d(3, 5, 3, resample=resample))
    dense = with_bias(EqualizedLinear(3, 5))
    x = noise(2, 3, 8, 8)
    plain, plain_dense = layer(x), dense(x[:, :, 0, 0])
    layer.act = dense.act = "lrelu"
    torch.testing.assert_close(layer(x), F.leaky_relu(plain, 0.2))
    torch.testing.assert_close(dense(x[:, :, 0, 0]), F.leaky_relu(plain_dense, 0.2))


def test_the_rectifier_has_slope_a_fifth_and_clamps_in_fp16_alone() -> None:
    values = torch.tensor([-math.inf, -6e4, -1.0, 0.0, 2.0, 300.0, math.inf])
    assert biased_lrelu(values[:, None], None).flatten().tolist() == pytest.approx(
        [-math.inf, -1.2e4, -0.2, 0.0, 2.0, 300.0, math.inf]
    )
    assert biased_lrelu(values.to(torch.bfloat16)[:, None], None)[5].item() == 300.0
    half = values.half().requires_grad_()
    y = biased_lrelu(half[:, None], None)[:, 0]
    assert FP16_CLAMP == 256.0
    assert y.tolist() == pytest.approx([-256.0, -256.0, -0.2, 0.0, 2.0, 256.0, 256.0], rel=1e-3)
    y[1:].sum().backward()
    assert half.grad is not None
    assert half.grad[[1, 5, 6]].tolist() == [0.0, 0.0, 0.0]
    assert half.grad[[2, 4]].tolist() == pytest.approx([0.2, 1.0], rel=1e-3)


def test_pixel_norm_divides_each_pixel_by_its_root_mean_square() -> None:
    x = noise(2, 5, 3, 4) * 3
    found = pixel_norm(x)
    for n in range(2):
        for row in range(3):
            for column in range(4):
                pixel = x[n, :, row, column].tolist()
                root = math.sqrt(sum(value * value for value in pixel) / 5 + 1e-8)
                assert found[n, :, row, column].tolist() == pytest.approx([value / root for value in pixel], rel=1e-14)


def test_pixel_norm_of_vectors_and_of_nothing() -> None:
    vector = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert pixel_norm(vector).tolist()[0] == pytest.approx([3 / math.sqrt(12.5), 4 / math.sqrt(12.5)], rel=1e-8)
    zero = torch.zeros(1, 4, 2, 2, requires_grad=True)
    pixel_norm(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_pixel_norm_takes_its_statistics_wide() -> None:
    x = torch.full((1, 512, 1, 1), 256.0, dtype=torch.float16)  # the square does not fit into fp16
    assert pixel_norm(x).eq(1.0).all()
    tiny = torch.full((1, 512, 1, 1), 2.0**-20, dtype=torch.float16)
    expected = 2.0**-20 / math.sqrt(2.0**-40 + 1e-8)
    assert float(pixel_norm(tiny)[0, 0]) == pytest.approx(expected, rel=1e-2)


def literal_deviation(x: Tensor, group: int) -> list[float]:
    """The appended value of each sample, by loops over groups of consecutive samples, channels and pixels."""
    values: list[float] = []
    for start in range(0, len(x), group):
        members = x[start : start + group].flatten(1).tolist()
        deviations = []
        for place in zip(*members, strict=True):
            mean = sum(place) / group
            deviations.append(math.sqrt(sum((value - mean) ** 2 for value in place) / group + 1e-8))
        values += [sum(deviations) / len(deviations)] * group
    return values


@pytest.mark.parametrize(("n", "group"), [(8, 4), (6, 3), (4, 4), (4, 1), (3, 4), (8, 2)])
def test_minibatch_deviation_equals_loops_over_consecutive_samples(n: int, group: int) -> None:
    x = noise(n, 3, 4, 2)
    y = minibatch_deviation(x, group)
    assert y.shape == (n, 4, 4, 2)
    assert torch.equal(y[:, :3], x)
    expected = literal_deviation(x, min(group, n))
    for sample, value in enumerate(expected):
        assert y[sample, 3].flatten().tolist() == pytest.approx([value] * 8, rel=1e-12)


def test_minibatch_deviation_is_the_same_in_any_split_into_whole_groups() -> None:
    x = noise(12, 2, 4, 4)
    whole = minibatch_deviation(x, 2)
    for size in (2, 4, 6):
        parts = torch.cat([minibatch_deviation(part, 2) for part in x.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    changed = x.clone()
    changed[2:4] += 5 * noise(2, 2, 4, 4, seed=1)
    differs = (minibatch_deviation(changed, 2) != whole).flatten(1).any(1)
    assert differs.tolist() == [False, False, True, True] + [False] * 8


def test_minibatch_deviation_refuses_a_broken_group() -> None:
    with pytest.raises(ValueError, match="a batch of 6 is no whole number of minibatch-deviation groups of 4"):
        minibatch_deviation(torch.zeros(6, 1, 4, 4), 4)


def test_minibatch_deviation_of_equal_samples_has_finite_derivatives() -> None:
    x = torch.ones(4, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(minibatch_deviation(x, 4).pow(2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize(
    "function",
    [pixel_norm, lambda x: minibatch_deviation(x, 2), lambda x: biased_lrelu(x, None), double_nearest, halve_box],
)
def test_derivatives_of_first_and_second_order(function: Callable[[Tensor], Tensor]) -> None:
    x = noise(4, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(lambda x: function(x) * x.sum(), x)


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_doubling_and_halving(format_: torch.memory_format) -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]] * 3]).to(memory_format=format_)
    doubled = double_nearest(x)
    assert doubled[0, 1].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert torch.equal(halve_box(doubled), x)
    assert halve_box(x).flatten().tolist() == [2.5, 2.5, 2.5]
    y = noise(2, 3, 6, 4).to(memory_format=format_)
    torch.testing.assert_close(halve_box(y), F.avg_pool2d(y, 2), rtol=1e-14, atol=1e-15)
    assert torch.equal(double_nearest(y), F.interpolate(y, scale_factor=2, mode="nearest"))
