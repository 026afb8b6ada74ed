"""The fused epilogue: every combination of its inputs, and the gradients by each of them to the third order."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from ops_matrix import (
    ACTIVATIONS,
    DTYPES,
    NAMES,
    PIECEWISE,
    absolute,
    arranged,
    assert_layout_kept,
    differences,
    directions,
    drawn,
    epilogue_definition,
    epilogue_sum,
    exact,
    excess,
    in_float64,
    orders,
    threshold,
)
from torch import Tensor

from hires_gan.ops import backend, bias_act, epilogue

SHAPES = [(2, 3, 5, 7), (1, 8, 4, 4), (3, 1, 4, 5), (2, 16, 3, 5), (2, 33, 2, 3), (1, 5, 1, 1), (3, 4, 1, 9)]
COMBINATIONS = list(
    itertools.product((False, True), ("none", "each", "shared", "each, unscaled", "shared, unscaled"), (False, True))
)
Options = dict[str, Any]
Values = dict[str, Tensor]


def drawn_inputs(
    shape: tuple[int, int, int, int], combination: tuple[bool, str, bool], seed: int, dtype: torch.dtype, device: Any
) -> Values:
    """The inputs of this combination; the small ones in x's dtype or in float32, as it falls."""
    draw = random.Random(seed)
    demodulated, noisy, biased = combination
    n, c, h, w = shape
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    shapes: dict[str, tuple[int, ...]] = {}
    if demodulated:
        shapes["demodulation"] = (n, c)
    if noisy != "none":
        shapes["noise"] = (n if noisy.startswith("each") else 1, 1, h, w)
        if "unscaled" not in noisy:
            shapes["noise_strength"] = ()
    if biased:
        shapes["b"] = (c,)
    layouts = ("contiguous", "channels_last", "sliced", "transposed", "shifted", "shifted_channels_last", "narrowed")
    values = {"x": arranged(drawn(shape, seed, dtype, device), draw.choice(layouts + layouts[:2] * 2))}
    for number, (name, size) in enumerate(shapes.items()):
        value = drawn(size, seed + 100 + number, draw.choice((dtype, precise)), device)
        values[name] = arranged(value, draw.choice(("contiguous", "sliced"))) if size else value
    return values


def call(values: Values, options: Options) -> Tensor:
    return epilogue(values["x"], **{name: value for name, value in values.items() if name != "x"}, **options)


def define(values: Values, options: Options) -> Tensor:
    return epilogue_definition(values["x"], {k: v for k, v in values.items() if k != "x"}, **options)


def sizes_of(values: Values, ways: list[Values], options: Options) -> Values:
    """Sums of magnitudes: everything is multilinear, so that the derivatives of absolute values are those sums."""
    _, alpha, gain = ACTIVATIONS[options["act"]]
    alpha = abs(alpha if options["alpha"] is None else options["alpha"])
    gain = abs(gain if options["gain"] is None else options["gain"])
    slope = gain * (max(1.0, alpha) if options["act"] == "lrelu" else 1.0)

    def straight(v: Values) -> Tensor:
        return slope * epilogue_sum(v["x"], {k: value for k, value in v.items() if k != "x"})

    return orders(straight, absolute(values), [absolute(way) for way in ways])


def wrong_with(
    combination: tuple[bool, str, bool], act: str, clamped: bool, seed: int, dtype: torch.dtype, device: torch.device
) -> list[str]:
    draw = random.Random(seed)
    values = drawn_inputs(draw.choice(SHAPES), combination, seed, dtype, device)
    options: Options = {
        "act": act,
        "alpha": draw.choice((None, 0.1, 1.5, 0.0)) if act == "lrelu" else None,
        "gain": draw.choice((None, None, 1.0, -0.7, 2.0)),
        "clamp": None,
    }
    if clamped:
        options["clamp"] = threshold(define(in_float64(values), options), dtype)
    x = values["x"]
    kinds = {name: (tuple(value.shape), NAMES[value.dtype]) for name, value in values.items()}
    what = f"seed {seed}, {kinds}, strides {x.stride()}, {options}"
    y = call(values, options)
    assert y.dtype == dtype
    assert_layout_kept(y, x, what)
    ways = directions(values, y, seed)
    found = orders(lambda v: call(v, options), values, ways)
    for name, value in values.items():
        assert found[f"order 1 by {name}"].dtype == value.dtype
    precise = in_float64(values), [in_float64(way) for way in ways]
    expected = orders(lambda v: define(v, options), *precise)
    sizes = sizes_of(values, ways, options)
    wrong = [f"{line}; {what}" for line in differences(found, expected, sizes)]
    if seed % 4 == 0:
        with backend("reference"):
            other = orders(lambda v: call(v, options), *precise)
        wrong += [f"the reference, {line}; {what}" for line in differences(other, expected, sizes)]
    return wrong


@pytest.mark.parametrize("clamped", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("act", PIECEWISE)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_three_orders_of_every_combination(device, dtype, act, clamped):
    first = 1000 * DTYPES.index(dtype) + 100 * PIECEWISE.index(act) + 5000 * clamped
    wrong = []
    for number, combination in enumerate(COMBINATIONS):
        wrong += wrong_with(combination, act, clamped, first + number, dtype, device)
    assert wrong == []


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "shifted", "shifted_channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_images_of_several_blocks(device, dtype, layout):
    for shape in ((2, 13, 29, 31), (3, 64, 16, 17), (2, 32, 32, 32)):
        values = drawn_inputs(shape, (True, "each", True), shape[1], dtype, device)
        values["x"] = arranged(drawn(shape, 1, dtype, device), layout)
        options: Options = {"act": "lrelu", "alpha": None, "gain": None, "clamp": None}
        ways = directions(values, values["x"], 9)[:1]
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        y = call(leaves, options)
        grads = torch.autograd.grad(y, list(leaves.values()), ways[0]["y"])
        exact_leaves = {name: value.requires_grad_() for name, value in in_float64(values).items()}
        expected = define(exact_leaves, options)
        egrads = torch.autograd.grad(expected, list(exact_leaves.values()), exact(ways[0]["y"]))
        size_leaves = {name: value.requires_grad_() for name, value in absolute(values).items()}
        size = epilogue_sum(size_leaves["x"], {k: v for k, v in size_leaves.items() if k != "x"}) * math.sqrt(2)
        sizes = torch.autograd.grad(size, list(size_leaves.values()), exact(ways[0]["y"]).abs())
        assert excess(y, expected.detach(), size.detach()) <= 1
        for name, grad, egrad, magnitude in zip(leaves, grads, egrads, sizes, strict=True):
            assert excess(grad, egrad, magnitude, steps=2, through=dtype) <= 1, (name, shape)
        assert_layout_kept(y, values["x"])
        assert_layout_kept(grads[0], values["x"])


@pytest.mark.parametrize("act", PIECEWISE)
@pytest.mark.parametrize("noisy", ["each", "shared", "none"])
def test_gradcheck_and_gradgradcheck(device, act, noisy):
    for clamp, gain, seed in ((None, None, 0), (0.9, -1.3, 1)):
        combination = (True, noisy, True)
        values = drawn_inputs((2, 2, 2, 2), combination, seed, torch.float64, device)
        options: Options = {"act": act, "alpha": None, "gain": gain, "clamp": clamp}
        v = epilogue_sum(exact(values["x"]), {k: exact(value) for k, value in values.items() if k != "x"})
        y = define(in_float64(values), {**options, "clamp": None})
        assert v.abs().min() > 1e-3, "the numbers drawn lie on a kink: choose another seed"
        assert clamp is None or (y.abs() - clamp).abs().min() > 1e-3, "a number lies at the clamp: choose another seed"
        names = list(values)

        def op(*given: Tensor, names=names, options=options) -> Tensor:
            return call(dict(zip(names, given, strict=True)), options)

        inputs = [value.detach().requires_grad_() for value in values.values()]
        assert torch.autograd.gradcheck(op, inputs)
        assert torch.autograd.gradgradcheck(op, inputs)


def path_length_gradients(weight: Tensor, style: Tensor, rest: Values, fused: bool) -> tuple[Tensor, ...]:
    """A modulated convolution, demodulated in the epilogue, and the gradients of a penalty on its Jacobian."""
    weight, style = weight.detach().requires_grad_(), style.detach().requires_grad_()
    extra = {name: value.detach().requires_grad_() for name, value in rest.items()}
    x = extra.pop("x")
    demodulation = ((weight[None] * style[:, None, :, None, None]).square().sum((2, 3, 4)) + 1e-8).rsqrt()
    hidden = torch.nn.functional.conv2d(x * style[:, :, None, None], weight, padding=1)
    values = {"x": hidden, "demodulation": demodulation, **extra}
    options: Options = {"act": "lrelu", "alpha": None, "gain": None, "clamp": 2.0}
    y = call(values, options) if fused else define(values, options)
    (jacobian,) = torch.autograd.grad((y * y.detach().cos()).sum(), style, create_graph=True)
    penalty = (jacobian.square().sum(1).sqrt() - 0.5).square().mean()
    wanted = (weight, style, x, extra["noise"], extra["noise_strength"])
    (bias,) = torch.autograd.grad(penalty, extra["b"], retain_graph=True, materialize_grads=True, allow_unused=True)
    return (penalty.detach(), *torch.autograd.grad(penalty, wanted, materialize_grads=True), bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=NAMES.get)
def test_a_path_length_penalty(device, dtype):
    rest = {
        "x": drawn((2, 3, 6, 5), 0, dtype, device).to(memory_format=torch.channels_last),
        "noise": drawn((2, 1, 6, 5), 1, dtype, device),
        "noise_strength": drawn((), 2, dtype, device),
        "b": drawn((4,), 3, dtype, device),
    }
    weight, style = drawn((4, 3, 3, 3), 4, dtype, device), drawn((2, 3), 5, dtype, device) + 1
    found = path_length_gradients(weight, style, rest, fused=True)
    with backend("reference"):
        other = path_length_gradients(weight, style, rest, fused=True)
    expected = path_length_gradients(exact(weight), exact(style), in_float64(rest), fused=False)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert all(value.any() for value in expected[:2])
    for value, same, right in zip(found, other, expected, strict=True):
        largest = right.abs().max() + 1e-12
        assert (exact(value) - right).abs().max() <= tolerance * largest
        assert (exact(same) - right).abs().max() <= tolerance * largest


def test_without_modulation_it_is_bias_act(device):
    for dtype, act in itertools.product(DTYPES, PIECEWISE):
        x = drawn((2, 5, 4, 6), 0, dtype, device)
        b = drawn((5,), 1, dtype, device)
        assert torch.equal(epilogue(x, b=b, act=act, clamp=1.5), bias_act(x, b, act=act, clamp=1.5))
        assert torch.equal(epilogue(x, act=act, gain=0.7), bias_act(x, act=act, gain=0.7))
    assert torch.equal(epilogue(x), bias_act(x, act="lrelu"))


def test_nan_passes_and_what_is_beyond_the_clamp_has_no_gradient(device):
    for dtype, act in itertools.product(DTYPES, PIECEWISE):
        x = torch.tensor([math.nan, math.inf, 60.0, 0.25, -0.25], dtype=dtype, device=device).reshape(1, 1, 1, 5)
        b = torch.zeros(1, dtype=dtype, device=device)
        leaves = [x.requires_grad_(), b.requires_grad_()]
        y = epilogue(x, b=b, act=act, gain=1.0, clamp=3.0)
        dx, _ = torch.autograd.grad(y.sum(), leaves)
        assert y.flatten()[0].isnan()
        assert y.flatten()[1:4].tolist() == [3, 3, 0.25]
        assert dx.flatten()[1:4].tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("clamp", [0.1, 0.3, 0.7, 1 / 3, 256.1])
def test_a_clamp_that_the_dtype_does_not_hold_still_stops_the_gradient(device, dtype, clamp):
    x = torch.tensor([-900.0, -clamp / 2, clamp / 2, 900.0], dtype=dtype, device=device).reshape(1, 1, 1, 4)
    x = x.requires_grad_()
    b = torch.zeros(1, dtype=dtype, device=device, requires_grad=True)
    dx, db = torch.autograd.grad(epilogue(x, b=b, act="linear", clamp=clamp).sum(), (x, b))
    assert dx.flatten().tolist() == [0, 1, 1, 0]
    assert db.item() == 2


def test_the_slope_at_zero_is_that_of_the_negative_side(device):
    for act, slope in (("relu", 0.0), ("lrelu", 0.25)):
        x = torch.tensor([0.5, 0.0, -0.0], device=device).reshape(1, 1, 1, 3).requires_grad_()
        noise = torch.tensor([-0.5, 0.0, 0.0], device=device).reshape(1, 1, 1, 3)
        strength = torch.ones((), device=device)
        y = epilogue(x, noise=noise, noise_strength=strength, act=act, gain=1.0, alpha=slope)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.flatten().tolist() == [slope] * 3


@pytest.mark.parametrize("gain", [-1.5, 1.5, 0.0])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0, 2.0])
def test_the_slope_of_lrelu_does_not_depend_on_the_sign_of_the_gain(device, gain, alpha):
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0], device=device).reshape(1, 1, 1, 4).requires_grad_()
    b = torch.zeros(1, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(epilogue(x, b=b, alpha=alpha, gain=gain).sum(), x)
    torch.testing.assert_close(dx.flatten().tolist(), [alpha * gain] * 2 + [gain] * 2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sums_over_a_million_positions(device, layout):
    shape = (2, 2, 500, 1000)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        dy = arranged(torch.rand(shape, generator=generator).to(dtype).to(device), layout)
        x = arranged(torch.rand(shape, generator=generator).to(dtype).to(device), layout).requires_grad_()
        small = {
            "demodulation": torch.rand((2, 2), generator=generator).to(device),
            "noise": torch.rand((1, 1, *shape[2:]), generator=generator).to(device),
            "noise_strength": torch.rand((), generator=generator).to(device),
            "b": torch.rand(2, generator=generator).to(device),
        }
        for value in small.values():
            value.requires_grad_()
        grads = torch.autograd.grad(epilogue(x, **small), list(small.values()), dy)
        precise = {name: value.requires_grad_() for name, value in in_float64(small).items()}
        expected = epilogue_definition(exact(x), precise, "lrelu")
        egrads = torch.autograd.grad(expected, list(precise.values()), exact(dy))
        for name, grad, right in zip(small, grads, egrads, strict=True):
            # The noise's gradient sums few values, a channel each, and these have the precision of x.
            tolerance = 2**-10 if name == "noise" and dtype == torch.float16 else 1e-5
            assert ((exact(grad) - right).abs() <= tolerance * right.abs()).all(), (name, dtype)


def test_an_expanded_gradient_is_right(device):
    values = drawn_inputs((2, 3, 4, 5), (True, "each", True), 3, torch.float32, device)
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    options: Options = {"act": "lrelu", "alpha": None, "gain": None, "clamp": 1.0}
    y = call(leaves, options)
    expanded = torch.autograd.grad(y.sum(), list(leaves.values()), retain_graph=True)
    dense = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
    for one, other in zip(expanded, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_only_what_needs_a_gradient_gets_one(device):
    """Each input alone: its gradient is the one that it has among all."""
    values = drawn_inputs((2, 3, 4, 5), (True, "each", True), 4, torch.float32, device)
    options: Options = {"act": "lrelu", "alpha": None, "gain": None, "clamp": 1.0}
    assert not call(values, options).requires_grad
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    together = torch.autograd.grad(call(leaves, options).sum(), list(leaves.values()))
    for name, grad in zip(values, together, strict=True):
        alone = {k: v.detach().requires_grad_(k == name) for k, v in values.items()}
        (only,) = torch.autograd.grad(call(alone, options).sum(), alone[name])
        torch.testing.assert_close(only, grad, msg=name)


def test_an_empty_batch(device):
    values = drawn_inputs((2, 3, 4, 5), (True, "shared", True), 4, torch.float32, device)
    values["x"], values["demodulation"] = values["x"][:0], values["demodulation"][:0]
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    y = call(leaves, {"act": "lrelu"})
    assert y.shape == (0, 3, 4, 5)
    for name, grad in zip(leaves, torch.autograd.grad(y.sum(), list(leaves.values())), strict=True):
        assert grad.shape == leaves[name].shape
        assert not grad.any()


@pytest.mark.parametrize(("act", "clamp"), [("lrelu", None), ("lrelu", 2.0), ("linear", None)])
@pytest.mark.parametrize("noisy", [True, False])
def test_a_penalty_on_a_penalty_on_gradients(device, act, clamp, noisy):
    """Four orders, where what arrives depends on the inputs and those on each other, as in a network."""

    def orders(choice: str) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(1)
        z, d, b, noise = (
            torch.randn(shape, generator=draw, dtype=torch.float64).to(device)
            for shape in ((2, 3, 4, 4), (2, 3), (3,), (2, 1, 4, 4))
        )
        leaves = [value.requires_grad_() for value in (z, d, b)]
        strength = torch.tensor(0.7, dtype=torch.float64, device=device)
        with backend(choice):
            x, demodulation = z * z.sigmoid(), d * (1 + 0.1 * z.square().mean((2, 3)))
            more = (noise, strength) if noisy else (None, None)
            loss = epilogue(x, demodulation, *more, b, act, clamp=clamp).pow(3).sum()
            found = []
            for _ in range(4):
                gradients = torch.autograd.grad(loss, leaves, create_graph=True)
                found += gradients
                loss = sum(gradient.square().sum() for gradient in gradients)
        return found

    for one, other in zip(orders("native"), orders("reference"), strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()
