"""The reference of bias_act and of the epilogue against the literal definitions, and their edges."""

from __future__ import annotations

import math
import random

import literal
import numpy as np
import pytest
import torch
from torch import Tensor

from hires_gan.ops import reference


def normal(rng: random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


POINTS = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
ANSWERS = {
    "linear": [-1.75, -0.25, 0.25, 0.75, 2.25],
    "relu": [0, 0, 0.353553, 1.06066, 3.18198],
    "lrelu": [-0.494975, -0.070711, 0.353553, 1.06066, 3.18198],
    "tanh": [-0.941376, -0.244919, 0.244919, 0.635149, 0.978026],
    "sigmoid": [0.148047, 0.437824, 0.562177, 0.679179, 0.904651],
    "elu": [-0.826226, -0.221199, 0.25, 0.75, 2.25],
    "selu": [-1.452587, -0.38889, 0.262675, 0.788026, 2.364077],
    "softplus": [0.160224, 0.575939, 0.825939, 1.136871, 2.350207],
    "swish": [-0.366398, -0.154794, 0.198759, 0.720378, 2.87858],
}


def run_act(x: Tensor, act: str, b: Tensor | None = None, dim: int = 0, clamp: float | None = None) -> Tensor:
    alpha, gain = literal.DEFAULTS[act]
    return reference.bias_act(x, b, dim, act, alpha, float(gain), clamp)


@pytest.mark.parametrize("act", ANSWERS)
def test_published_answers_of_bias_act(act: str) -> None:
    answer = np.array(ANSWERS[act])
    by_definition = literal.bias_act(POINTS, np.full(5, 0.25), 0, act, *literal.DEFAULTS[act])
    assert np.abs(by_definition - answer).max() < 1e-6
    found = run_act(torch.from_numpy(POINTS), act, torch.full((5,), 0.25, dtype=torch.float64))
    assert np.abs(found.numpy() - by_definition).max() < 1e-14


def derivatives(v: Tensor, act: str, orders: int) -> list[Tensor]:
    """Value, first, second, ... derivative with gain 1."""
    v = v.clone().requires_grad_()
    found = [reference.bias_act(v, None, 0, act, 0.2, 1.0, None)]
    for _ in range(orders):
        last = found[-1]
        found.append(
            torch.autograd.grad(last.sum(), v, create_graph=True, materialize_grads=True)[0]
            if last.requires_grad
            else torch.zeros_like(v)
        )
    return [item.detach() for item in found]


@pytest.mark.parametrize("act", ANSWERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_derivatives_are_right_and_finite_everywhere(act: str, dtype: torch.dtype, tolerance: float) -> None:
    extremes = [-1000.0, -200.0, -100.0, -88.8, -80.0, -30.0, 0.0, -0.0, 1e-30, 30.0, 80.0, 88.8, 100.0, 200.0, 1000.0]
    v = torch.cat((torch.linspace(-25, 25, 1001), torch.tensor(extremes))).to(dtype)
    found = derivatives(v, act, 3)
    expected = literal.activation(v.numpy(), act, 0.2)
    for order, values in enumerate(expected):
        error = np.abs(found[order].double().numpy() - values)
        assert (error <= tolerance * np.maximum(1, np.abs(values))).all(), (order, v[int(error.argmax())])
    assert found[3].isfinite().all()


@pytest.mark.parametrize("act", ANSWERS)
def test_gradients_of_bias_act(act: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    b = torch.randn(3, dtype=torch.float64).requires_grad_()
    run = lambda x, b: run_act(x, act, b, dim=-2, clamp=1.7)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, b))
    assert torch.autograd.gradgradcheck(run, (x, b))
    expected = literal.bias_act(x.detach(), b.detach(), 1, act, *literal.DEFAULTS[act], clamp=1.7)
    assert np.abs(run(x, b).detach().numpy() - expected).max() < 1e-14


def test_the_slope_at_zero_is_that_of_the_negative_side() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    slopes = {act: derivatives(zero, act, 1)[1].item() for act in ("relu", "lrelu", "elu", "selu")}
    assert slopes == {"relu": 0.0, "lrelu": 0.2, "elu": 1.0, "selu": pytest.approx(1.0507009873554805 * 1.67326324235)}


def test_infinities() -> None:
    ends = torch.tensor([-math.inf, math.inf])
    assert run_act(ends, "relu").tolist() == [0.0, math.inf]
    assert run_act(ends, "lrelu").tolist() == [-math.inf, math.inf]
    assert run_act(ends, "elu").tolist() == [-1.0, math.inf]
    assert run_act(ends, "softplus").tolist() == [0.0, math.inf]
    assert run_act(ends, "tanh").tolist() == [-1.0, 1.0]
    assert run_act(ends, "linear", clamp=256.0).tolist() == [-256.0, 256.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_clamp_saturates_and_stops_the_gradient(dtype: torch.dtype) -> None:
    limit = torch.tensor(0.3).to(dtype).item()
    x = torch.tensor([-9.0, -limit, -0.25, 0.0, 0.25, limit, 9.0, math.nan], dtype=dtype).requires_grad_()
    y = reference.bias_act(x, None, 0, "linear", 0.0, 1.0, 0.3 if dtype != torch.float64 else limit)
    assert y[:-1].tolist() == [-limit, -limit, -0.25, 0.0, 0.25, limit, limit]
    assert y[-1].isnan()
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


def test_a_limit_beyond_the_type_is_no_limit() -> None:
    x = torch.tensor([-60000.0, 5.0], dtype=torch.float16)
    assert torch.equal(reference.bias_act(x, None, 0, "linear", 0.0, 1.0, 1e6), x)
    assert torch.equal(reference.bias_act(x.float(), None, 0, "linear", 0.0, 1.0, 1e300), x.float())


@pytest.mark.parametrize("act", ANSWERS)
def test_nan_passes_with_and_without_a_clamp(act: str) -> None:
    x = torch.tensor([math.nan, 1.0], dtype=torch.float64)
    for clamp in (None, 0.5):
        y = run_act(x, act, clamp=clamp)
        assert y.isnan().tolist() == [True, False]
        assert np.array_equal(np.isnan(literal.limited(y.numpy(), clamp)), [True, False])


@pytest.mark.parametrize("act", ANSWERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_types_are_rounded_once(act: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    b = torch.randn(8, generator=torch.Generator().manual_seed(3))
    for bias in (b, b.to(dtype)):
        y = run_act(x, act, bias, dim=1)
        assert y.dtype == dtype
        assert torch.equal(y, run_act(x.float(), act, bias.float(), dim=1).to(dtype))


def test_ranks_and_axes_of_bias_act() -> None:
    rng = random.Random(0)
    for shape in ((5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 2), (0, 3, 2, 2)):
        x = normal(rng, *shape)
        for dim in range(-len(shape), len(shape)):
            b = normal(rng, shape[dim])
            y = reference.bias_act(x, b, dim, "lrelu", 0.1, 2.0, 1.5)
            assert np.array_equal(y.numpy(), literal.bias_act(x, b, dim, "lrelu", 0.1, 2.0, 1.5))


EPILOGUE = ("x", "demodulation", "noise", "noise_strength", "b")


def epilogue_inputs(dtype: torch.dtype, noises: int = 2) -> dict[str, Tensor]:
    rng = random.Random(noises)
    shapes = ((2, 3, 4, 5), (2, 3), (noises, 1, 4, 5), (), (3,))
    return {name: normal(rng, *shape).to(dtype) for name, shape in zip(EPILOGUE, shapes, strict=True)}


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
@pytest.mark.parametrize("noises", [1, 2])
@pytest.mark.parametrize("left_out", [(), ("demodulation",), ("noise", "noise_strength"), ("noise_strength",), ("b",)])
def test_epilogue_against_its_definition(act: str, noises: int, left_out: tuple[str, ...]) -> None:
    given_inputs = {k: None if k in left_out else v for k, v in epilogue_inputs(torch.float64, noises).items()}
    y = reference.epilogue(**given_inputs, act=act, alpha=0.2, gain=1.5, clamp=1.0)  # type: ignore[arg-type]
    plain = {k: None if v is None else v.numpy() for k, v in given_inputs.items()}
    expected = literal.epilogue(**plain, act=act, alpha=0.2, gain=1.5, clamp=1.0)  # type: ignore[arg-type]
    assert np.abs(y.numpy() - expected).max() < 1e-14


def test_gradients_of_the_epilogue() -> None:
    inputs = [value.requires_grad_() for value in epilogue_inputs(torch.float64, 1).values()]
    run = lambda *tensors: reference.epilogue(*tensors, "lrelu", 0.2, 1.4, 2.0)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_gradients_come_back_in_their_own_dtype() -> None:
    inputs = {k: v.to(torch.float16 if k in ("x", "noise") else torch.float32) for k, v in EXAMPLE.items()}
    leaves = [value.requires_grad_() for value in inputs.values()]
    y = reference.epilogue(*leaves, "lrelu", 0.2, 1.4, 2.0)
    assert y.dtype == torch.float16
    grads = torch.autograd.grad(y.float().sum(), leaves)
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves]


EXAMPLE = epilogue_inputs(torch.float64)
