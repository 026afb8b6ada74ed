"""bias_act: nine activations to the third derivative, against their formulas and against the reference."""

from __future__ import annotations

import math
import random
import zlib
from typing import Any

import pytest
import torch
from ops_matrix import (
    ACTIVATIONS,
    DTYPES,
    NAMES,
    PIECEWISE,
    SMOOTH,
    absolute,
    arranged,
    assert_layout_kept,
    bias_act_definition,
    differences,
    directions,
    drawn,
    exact,
    excess,
    in_float64,
    orders,
    threshold,
)
from torch import Tensor

from hires_gan.ops import backend, bias_act

BACKENDS = ("native", "reference")
FLOAT32_AND_BELOW = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = {
    1: [(7,), (33,), (1,)],
    2: [(3, 8), (5, 7), (0, 4), (64, 3)],
    3: [(2, 5, 6), (3, 4, 8)],
    4: [(2, 3, 5, 7), (1, 8, 4, 4), (2, 16, 3, 5), (3, 1, 4, 4), (2, 33, 2, 3), (0, 3, 4, 4)],
    5: [(2, 3, 2, 3, 4), (1, 8, 2, 2, 2)],
}
Options = dict[str, Any]


def drawn_inputs(draw: random.Random, seed: int, dtype: torch.dtype, device: torch.device) -> tuple[dict, int]:
    """x in some layout and a bias in some dtype, and the dimension."""
    rank = draw.choice((1, 2, 3, 4, 4, 4, 5))
    x = drawn(draw.choice(SHAPES[rank]), seed, dtype, device) * draw.choice((1.0, 1.0, 3.0))
    x = arranged(x, draw.choice(("contiguous", "channels_last", "sliced", "transposed", "shifted", "narrowed")))
    dim = 0 if rank == 1 else draw.choice((1, 1, *range(-rank, rank)))
    inputs = {"x": x}
    if draw.random() < 0.7:
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        b = drawn((x.shape[dim],), seed + 1, draw.choice((dtype, precise)), device)
        inputs["b"] = arranged(b, draw.choice(("contiguous", "sliced", "shifted")))
    return inputs, dim


def drawn_case(seed: int, act: str, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Tensor], Options]:
    """Inputs and options; the clamp cuts some of the values and is near none."""
    draw = random.Random(seed)
    inputs, dim = drawn_inputs(draw, seed, dtype, device)
    options: Options = {
        "dim": dim,
        "act": act,
        "alpha": draw.choice((None, None, 0.0, 0.1, 0.7, -0.3, 1.5)) if act == "lrelu" else None,
        "gain": draw.choice((None, None, 1.0, 2.5, -1.0, 0.3)),
        "clamp": None,
    }
    if draw.random() < 0.5 and inputs["x"].numel() > 12:
        unclamped = bias_act_definition(exact(inputs["x"]), exact(inputs.get("b")), **options)
        options["clamp"] = threshold(unclamped, dtype)
    return inputs, options


def sizes_of(inputs: dict[str, Tensor], ways: list[dict[str, Tensor]], options: Options) -> dict[str, Tensor]:
    """Bounds on the magnitudes of all that is summed: by a function whose derivatives all equal the largest slope."""
    _, alpha, gain = ACTIVATIONS[options["act"]]
    alpha = abs(alpha if options["alpha"] is None else options["alpha"])
    gain = abs(gain if options["gain"] is None else options["gain"])
    largest = gain * (max(1.0, alpha) if options["act"] in PIECEWISE else 2.0)

    def rising(values: dict[str, Tensor]) -> Tensor:
        return bias_act_definition(values["x"], values.get("b"), options["dim"], "linear").exp() * largest

    nothing = {name: torch.zeros_like(value) for name, value in in_float64(inputs).items()}
    sizes = orders(rising, nothing, [absolute(way) for way in ways])
    sum_of = absolute(inputs)
    total = bias_act_definition(sum_of["x"], sum_of.get("b"), options["dim"], "linear")
    return sizes | {"y": largest * (total + (options["act"] in SMOOTH))}


def wrong_with(seed: int, act: str, dtype: torch.dtype, device: torch.device) -> list[str]:
    inputs, options = drawn_case(seed, act, dtype, device)
    x = inputs["x"]
    what = f"{act} in {NAMES[dtype]}, seed {seed}, {tuple(x.shape)}, strides {x.stride()}, {options}"
    y = bias_act(x, inputs.get("b"), **options)
    assert y.dtype == dtype
    if y.data_ptr() != x.data_ptr():  # where there is nothing to do, the result is x itself
        assert_layout_kept(y, x, what)
    ways = directions(inputs, y, seed)
    found = orders(lambda v: bias_act(v["x"], v.get("b"), **options), inputs, ways)
    precise = in_float64(inputs), [in_float64(way) for way in ways]
    expected = orders(lambda v: bias_act_definition(v["x"], v.get("b"), **options), *precise)
    with backend("reference"):
        other = orders(lambda v: bias_act(v["x"], v.get("b"), **options), *precise)
    sizes = sizes_of(inputs, ways, options)
    wrong = [f"{line}; {what}" for line in differences(found, expected, sizes)]
    return wrong + [f"the reference, {line}; {what}" for line in differences(other, expected, sizes)]


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_three_orders_of_random_cases(device, act, dtype):
    first = zlib.crc32(f"{act} {dtype}".encode()) % 1_000_000
    assert [line for seed in range(first, first + 24) for line in wrong_with(seed, act, dtype, device)] == []


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_rank_and_dimension(device, act):
    for shapes in SHAPES.values():
        for dim in range(-len(shapes[0]), len(shapes[0])):
            x = drawn(shapes[0], 1, torch.float32, device)
            b = drawn((x.shape[dim],), 2, torch.float32, device)
            expected = bias_act_definition(exact(x), exact(b), dim, act)
            y = bias_act(x, b, dim, act)
            assert excess(y, expected, 3 * (exact(x).abs() + exact(b).abs().max() + 1)) <= 1, (shapes[0], dim)


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_layout_is_kept_whatever_computes(device, act, implementation):
    for layout in ("contiguous", "channels_last", "sliced", "transposed"):
        x = arranged(drawn((2, 3, 4, 5), 0, torch.float32, device), layout)
        with backend(implementation):
            assert_layout_kept(bias_act(x, torch.ones(3, device=device), act=act, clamp=1.0), x, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "shifted", "shifted_channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_images_of_several_blocks(device, dtype, layout):
    """Enough elements for several blocks, with a channel count that no vector width divides, and one that all do."""
    for channels, act in ((13, "lrelu"), (64, "lrelu"), (13, "swish"), (32, "tanh")):
        x = arranged(drawn((2, channels, 29, 31), channels, dtype, device), layout).detach().requires_grad_()
        b = drawn((channels,), 3, dtype, device).requires_grad_()
        dy = arranged(drawn(x.shape, 4, dtype, device), layout)
        y = bias_act(x, b, act=act)
        dx, db = torch.autograd.grad(y, (x, b), dy)
        leaves = exact(x).requires_grad_(), exact(b).requires_grad_()
        expected = bias_act_definition(*leaves, 1, act)
        edx, edb = torch.autograd.grad(expected, leaves, exact(dy))
        size = exact(x).abs() + exact(b).abs()[:, None, None] + 1
        assert excess(y, expected.detach(), 2 * size) <= 1
        assert excess(dx, edx, 4 * exact(dy).abs(), steps=4) <= 1
        assert excess(db, edb, 4 * exact(dy).abs().sum((0, 2, 3)), steps=2) <= 1
        assert_layout_kept(y, x)
        assert_layout_kept(dx, x)


@pytest.mark.parametrize("biased", [False, True], ids=["without b", "with b"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck_and_gradgradcheck(device, act, biased):
    for clamp, gain in ((None, None), (0.83, -1.7)):
        x = drawn((2, 3, 3), 5, torch.float64, device)
        b = drawn((3,), 6, torch.float64, device) if biased else None
        y = bias_act_definition(exact(x), exact(b), 1, act, gain=gain)
        near = (exact(x) + (0 if b is None else exact(b)[:, None])).abs() < 1e-3
        if clamp is not None:
            near |= (y.abs() - clamp).abs() < 1e-3
        assert not near.any(), "the numbers drawn lie on a kink: choose another seed"
        inputs = (x.requires_grad_(),) if b is None else (x.requires_grad_(), b.requires_grad_())

        def op(value: Tensor, bias: Tensor | None = None, gain=gain, clamp=clamp) -> Tensor:
            return bias_act(value, bias, act=act, gain=gain, clamp=clamp)

        assert torch.autograd.gradcheck(op, inputs)
        assert torch.autograd.gradgradcheck(op, inputs)


ANSWERS = {
    "linear": (-1.75, -0.25, 0.25, 0.75, 2.25),
    "relu": (0, 0, 0.353553, 1.06066, 3.18198),
    "lrelu": (-0.494975, -0.070711, 0.353553, 1.06066, 3.18198),
    "tanh": (-0.941376, -0.244919, 0.244919, 0.635149, 0.978026),
    "sigmoid": (0.148047, 0.437824, 0.562177, 0.679179, 0.904651),
    "elu": (-0.826226, -0.221199, 0.25, 0.75, 2.25),
    "selu": (-1.452587, -0.38889, 0.262675, 0.788026, 2.364077),
    "softplus": (0.160224, 0.575939, 0.825939, 1.136871, 2.350207),
    "swish": (-0.366398, -0.154794, 0.198759, 0.720378, 2.87858),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("act", ANSWERS)
def test_known_answers(device, act, dtype):
    x = torch.tensor([[-2, -0.5, 0, 0.5, 2]], dtype=dtype, device=device)
    b = torch.tensor([0.25], dtype=dtype, device=device)
    expected = torch.tensor([ANSWERS[act]], dtype=torch.float64)
    y = bias_act(x.T, b, act=act).T
    torch.testing.assert_close(exact(y), expected, atol=2e-6 + float(torch.finfo(dtype).eps) * 2, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_passes_and_what_is_beyond_the_clamp_has_no_gradient(device, act, dtype):
    def both(clamp: float | None) -> tuple[Tensor, Tensor]:
        values = [math.nan, math.inf, 60.0, -60.0, 0.1]
        x = torch.tensor([values], dtype=dtype, device=device, requires_grad=True)
        y = bias_act(x, None, act=act, gain=3.0, alpha=0.5 if act == "lrelu" else None, clamp=clamp)
        (dx,) = torch.autograd.grad(y.sum(), x)
        return y.detach().cpu().double()[0], dx.cpu().double()[0]

    y, dx = both(0.5 if act != "softplus" else 2.5)
    free, slopes = both(None)
    clamp = 0.5 if act != "softplus" else 2.5
    assert y[0].isnan()
    assert torch.equal(dx[0].isnan(), slopes[0].isnan())
    assert dx[0].isnan() or dx[0] == slopes[0]
    assert y[1] == clamp
    assert dx[1] == 0
    beyond = free.abs() >= clamp
    assert torch.equal(y[beyond], free[beyond].sign() * clamp)
    assert not dx[beyond].any()
    inside = ~beyond & ~free.isnan()
    assert torch.equal(y[inside], free[inside])
    assert torch.equal(dx[inside], slopes[inside])


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("clamp", [0.1, 0.3, 0.7, 1 / 3, 2.7, 256.1])
def test_a_clamp_that_the_dtype_does_not_hold_still_stops_the_gradient(device, dtype, clamp):
    x = torch.tensor([[-900.0, -clamp / 2, clamp / 2, 900.0]], dtype=dtype, device=device, requires_grad=True)
    y = bias_act(x, clamp=clamp)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.tolist() == [[0, 1, 1, 0]]
    held = float(torch.tensor(clamp, dtype=dtype))
    assert y.tolist()[0][0] == -held
    assert y.tolist()[0][3] == held


def test_the_gradient_at_the_clamp_itself_is_zero(device):
    x = torch.tensor([[-0.5, 0.5, 0.25]], device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(bias_act(x, clamp=0.5).sum(), x)
    assert dx.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_the_slope_at_zero_is_that_of_the_negative_side(device, dtype):
    for act, slope in (("relu", 0.0), ("lrelu", 0.25), ("elu", 1.0), ("selu", 1.0507009873554805 * 1.6732632423543772)):
        x = torch.tensor([[0.0, -0.0]], dtype=dtype, device=device, requires_grad=True)
        y = bias_act(x, act=act, gain=1.0, alpha=0.25 if act == "lrelu" else None)
        (dx,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(exact(dx), torch.full((1, 2), slope).double(), rtol=float(torch.finfo(dtype).eps),
                                   atol=1e-7)  # fmt: skip
        # The bias decides, not x.
        b = torch.tensor([-0.5], dtype=dtype, device=device)
        x = torch.tensor([[0.5]], dtype=dtype, device=device, requires_grad=True)
        (dx,) = torch.autograd.grad(bias_act(x, b, act="relu", gain=1.0).sum(), x)
        assert dx.item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_infinity(device, dtype):
    x = torch.tensor([[-math.inf, math.inf]], dtype=dtype, device=device, requires_grad=True)
    y = bias_act(x, act="relu")
    assert y.tolist() == [[0, math.inf]]
    assert torch.autograd.grad(y.sum(), x)[0][0, 0].item() == 0
    for act, ends in (("tanh", [-1, 1]), ("sigmoid", [0, 1]), ("elu", [-1, math.inf]), ("softplus", [0, math.inf])):
        y = bias_act(x, act=act)
        assert y.tolist() == [ends], act
        assert torch.autograd.grad(y[0, 0], x)[0][0, 0].item() == 0, act
    assert bias_act(x, act="lrelu", clamp=3.0).tolist() == [[-3, 3]]


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_large_arguments_have_finite_values_and_derivatives(device, act, dtype):
    x = torch.tensor([[-80, -40, -20, -5, 5, 20, 40, 80]], dtype=dtype, device=device)
    inputs = {"x": x, "b": torch.zeros(8, dtype=dtype, device=device)}
    ways = directions(inputs, x, 3)
    found = orders(lambda v: bias_act(v["x"], v["b"], act=act), inputs, ways)
    precise = in_float64(inputs), [in_float64(way) for way in ways]
    expected = orders(lambda v: bias_act_definition(v["x"], v["b"], 1, act), *precise)
    assert all(value.isfinite().all() for value in found.values())
    options = {"act": act, "dim": 1, "alpha": None, "gain": None}
    assert differences(found, expected, sizes_of(inputs, ways, options)) == []


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_a_gain_or_a_clamp_of_zero_gives_zeros_and_no_gradient(device, act):
    for options in ({"gain": 0.0}, {"clamp": 0.0}, {"gain": 0.0, "clamp": 1.0}):
        x = torch.tensor([[-2.0, -0.5, 0.5, 2.0]], device=device, requires_grad=True)
        b = torch.full((4,), 0.1, device=device, requires_grad=True)
        y = bias_act(x, b, act=act, **options)
        assert not y.any()
        dy = torch.ones_like(y).requires_grad_()
        dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
        assert not dx.any(), options
        assert not db.any(), options
        grads = torch.autograd.grad(dx.sum() + db.sum(), (x, b, dy), materialize_grads=True, allow_unused=True)
        assert not any(grad.any() for grad in grads), options


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.2, 1.0, 2.0])
@pytest.mark.parametrize("gain", [-1.5, 1.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_the_slope_of_lrelu_does_not_depend_on_the_signs_of_alpha_and_gain(device, dtype, gain, alpha):
    x = torch.tensor([[-2.0, -1.0, 1.0, 2.0]], dtype=dtype, device=device, requires_grad=True)
    y = bias_act(x, act="lrelu", alpha=alpha, gain=gain)
    (dx,) = torch.autograd.grad(y.sum(), x)
    slopes = torch.tensor([[alpha * gain] * 2 + [gain] * 2], dtype=torch.float64)
    torch.testing.assert_close(exact(dx), slopes, rtol=float(torch.finfo(dtype).eps), atol=1e-12)
    torch.testing.assert_close(exact(y), slopes * exact(x), rtol=float(torch.finfo(dtype).eps), atol=1e-12)


def bias_gradient(dtype: torch.dtype, bias: torch.dtype, layout: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The gradient of the bias over a million positions, and the exact one."""
    x = arranged(torch.zeros((1, 2, 1000, 1000), dtype=dtype, device=device), layout)
    dy = torch.rand((1, 2, 1000, 1000), generator=torch.Generator().manual_seed(0)).to(dtype)
    dy = arranged(dy.to(device), layout)
    b = torch.ones(2, dtype=bias, device=device, requires_grad=True)
    (db,) = torch.autograd.grad(bias_act(x, b, act="lrelu", gain=1.0), b, dy)
    assert db.dtype == bias
    return exact(db), exact(dy).sum((0, 2, 3))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_gradient_of_the_bias_over_a_million_positions(device, layout):
    for dtype, bias in (
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        db, expected = bias_gradient(dtype, bias, layout, device)
        tolerance = 1e-5 if bias == torch.float32 else 2**-8
        assert ((db - expected).abs() <= tolerance * expected).all(), (dtype, bias, db, expected)


def test_the_gradient_of_the_bias_along_other_dimensions(device):
    for shape, dim in (((200_000, 3), 1), ((3, 200_000), 0), ((2, 100_000, 3), -1), ((100_000, 3, 2), 1), ((9,), 0)):
        dy = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)
        b = torch.ones(shape[dim], device=device, requires_grad=True)
        (db,) = torch.autograd.grad(bias_act(torch.zeros_like(dy), b, dim), b, dy)
        others = [axis for axis in range(len(shape)) if axis != dim % len(shape)]
        expected = exact(dy).sum(others) if others else exact(dy)
        assert ((exact(db) - expected).abs() <= 1e-5 * expected).all(), shape


def test_an_expanded_gradient_is_right(device):
    for act in ACTIVATIONS:
        x = drawn((2, 3, 5, 4), 0, torch.float32, device).to(memory_format=torch.channels_last).requires_grad_()
        b = drawn((3,), 1, torch.float32, device).requires_grad_()
        y = bias_act(x, b, act=act)
        expanded = torch.autograd.grad(y.sum(), (x, b), retain_graph=True)
        dense = torch.autograd.grad(y, (x, b), torch.ones_like(y))
        for one, other in zip(expanded, dense, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_only_what_needs_a_gradient_gets_one(device):
    for act in ACTIVATIONS:
        x, b = drawn((2, 3), 0, torch.float32, device), drawn((3,), 1, torch.float32, device)
        assert not bias_act(x, b, act=act).requires_grad
        (only_b,) = torch.autograd.grad(bias_act(x, b.requires_grad_(), act=act).sum(), b)
        (only_x,) = torch.autograd.grad(bias_act(x.requires_grad_(), b.detach(), act=act).sum(), x)
        both = torch.autograd.grad(bias_act(x, b, act=act).sum(), (x, b))
        torch.testing.assert_close((only_x, only_b), both)


def test_nothing_to_do_gives_the_values_back(device):
    x = drawn((2, 3), 0, torch.float16, device)
    assert torch.equal(bias_act(x), x)
    assert torch.equal(bias_act(x, gain=1.0, alpha=0.3), x)


def second_order(device, implementation, act, dtype, value, incoming, gain):
    """The gradient that reaches x and b through both first gradients, all of whose incoming gradients are equal."""
    x = torch.full((1, 4, 8, 8), value, dtype=dtype, device=device, requires_grad=True)
    b = torch.zeros(4, device=device, requires_grad=True)
    dy = torch.full_like(x, incoming).requires_grad_()
    with backend(implementation):
        y = bias_act(x, b, act=act, gain=gain)
    dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
    return torch.autograd.grad((dx.float() * incoming).sum() + db.sum(), (dy, x, b), allow_unused=True)


def test_small_products_of_second_order_do_not_vanish_in_half(device):
    ours, wanted = (second_order(device, which, "swish", torch.float16, 0.5, 1e-4, 1) for which in BACKENDS)
    for found, expected in zip(ours, wanted, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_a_large_gradient_of_the_bias_does_not_overflow_half(device):
    """A gradient of 1e6 that arrives at db becomes 1e4 behind a gain of 0.01, which half can hold."""
    for act in ("lrelu", "tanh"):
        found = []
        for which in BACKENDS:
            x = torch.full((1, 2, 4, 4), 0.01, dtype=torch.float16, device=device, requires_grad=True)
            b = torch.zeros(2, device=device, requires_grad=True)
            dy = torch.ones_like(x, requires_grad=True)
            with backend(which):
                y = bias_act(x, b, act=act, gain=0.01)
            (db,) = torch.autograd.grad(y, b, dy, create_graph=True)
            found += torch.autograd.grad(db, dy, torch.full_like(db, 1e6))
        assert found[1].float().mean().item() == pytest.approx(1e4, rel=1e-2)
        torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=0)


def test_the_side_is_told_even_where_the_gain_makes_the_result_vanish(device):
    for which in BACKENDS:
        x = torch.tensor([[1e-3, -1e-3]], dtype=torch.float16, device=device, requires_grad=True)
        with backend(which):
            bias_act(x, act="lrelu", gain=1e-5).backward(torch.full_like(x, 1000.0))
        torch.testing.assert_close(x.grad.cpu(), torch.tensor([[1e-2, 2e-3]], dtype=torch.float16), rtol=2e-3, atol=0)


def test_a_clamp_beyond_the_dtype_is_its_largest_number(device):
    x = torch.tensor([[math.inf, -math.inf, 1.0]], device=device)
    for which in BACKENDS:
        with backend(which):
            y = bias_act(x, act="linear", clamp=1e300)
        assert y.tolist() == [[torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max, 1.0]]


def test_direct_calls_with_a_negative_slope_cannot_read_it_off_the_result(device):
    x = torch.ones(2, 3, device=device)
    with pytest.raises(RuntimeError, match="slope of 0 or more"):
        torch.ops.hires_gan.bias_act_derivative(x, x, None, 1, "lrelu", -0.1, 1.0, None, 1, True, False)
