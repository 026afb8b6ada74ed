"""Plain convolutions: values and derivatives up to the third order, against torch's own and by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.ops import conv2d, conv_transpose2d, inputs_only

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]

CASES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel": 3, "padding": (1, 1)},
    "1x1": {"kernel": 1},
    "strided, a row that no step reaches": {"kernel": 3, "stride": 2},
    "strided, padded": {"kernel": 3, "stride": 2, "padding": (1, 0)},
    "groups": {"kernel": 3, "padding": (1, 1), "groups": 2},
    "transposed": {"kernel": 3, "stride": 2, "transposed": True},
    "transposed, padded, groups": {"kernel": 4, "stride": 2, "padding": (1, 1), "groups": 2, "transposed": True},
}


def posed(
    kernel: int,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    transposed: bool = False,
    shape: tuple[int, ...] = (2, 4, 6, 7),
    outputs: int = 6,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor, Tensor]:
    """Ours, torch's, and a pair of arguments in float64."""
    draw = torch.Generator().manual_seed(seed)
    inputs = shape[1]
    sides = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    x = torch.randn(shape, generator=draw, dtype=torch.float64).to(device)
    w = torch.randn((*sides, kernel, kernel), generator=draw, dtype=torch.float64).to(device)
    own, theirs = (conv_transpose2d, F.conv_transpose2d) if transposed else (conv2d, F.conv2d)
    return (
        lambda a, b: own(a, b, stride, padding, groups),
        lambda a, b: theirs(a, b, stride=stride, padding=padding, groups=groups),
        x.requires_grad_(),
        w.requires_grad_(),
    )


def derivatives(op: Callable[..., Tensor], x: Tensor, w: Tensor) -> list[Tensor]:
    """The value, and derivatives of penalties on derivatives, each by both arguments."""
    y = op(x, w)
    first = torch.autograd.grad(y.pow(3).sum(), (x, w), create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, w), create_graph=True)
    third = torch.autograd.grad(sum(g.pow(2).sum() for g in second), (x, w))
    return [y, *first, *second, *third]


def same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_three_orders_of_derivatives_are_those_of_torch(case, device):
    own, theirs, x, w = posed(**case, device=device)
    same(derivatives(own, x, w), derivatives(theirs, x, w), 1e-11)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_finite_differences(case):
    own, _, x, w = posed(**case, shape=(1, 2, 4, 5), outputs=2)
    assert torch.autograd.gradcheck(own, (x, w))
    assert torch.autograd.gradgradcheck(own, (x, w))


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    groups=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    sides=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    seed=st.integers(0, 100),
)
def test_any_geometry(kernel, stride, padding, groups, transposed, sides, seed):
    own, theirs, x, w = posed(kernel, stride, padding, groups, transposed, (2, 2, *sides), 4, seed)
    try:
        expected = derivatives(theirs, x, w)
    except RuntimeError:  # torch refuses what would leave no pixel; so does ours
        with pytest.raises(RuntimeError):
            own(x, w)
        return
    same(derivatives(own, x, w), expected, 1e-10)


def test_no_graph_is_built_where_none_is_wanted():
    own, theirs, x, w = posed(3)
    with torch.no_grad():
        y = own(x, w)
    assert not y.requires_grad
    assert torch.equal(y, theirs(x, w).detach())
    assert not own(x.detach(), w.detach()).requires_grad
    assert torch.autograd.grad(own(x.detach(), w).sum(), w)[0].shape == w.shape
    assert torch.autograd.grad(own(x, w.detach()).sum(), x)[0].shape == x.shape


def test_inputs_only_leaves_the_gradient_of_weights_out_and_a_penalty_still_reaches_them():
    own, theirs, x, w = posed(3, padding=(1, 1))

    def penalty(op: Callable[..., Tensor], only: bool) -> Tensor:
        loss = op(op(x, w[:4]), w[:4]).pow(2).sum()
        if only:
            with inputs_only():
                (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        else:
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), w)[0]

    expected = penalty(theirs, False)
    same([penalty(own, True), penalty(own, False)], [expected, expected], 1e-12)
    with inputs_only():
        assert torch.autograd.grad(own(x, w).sum(), w, allow_unused=True) == (None,)
    assert torch.autograd.grad(own(x, w).sum(), w)[0].any()


def test_a_weight_that_carries_what_is_asked_for_keeps_its_gradient():
    style = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    with inputs_only():
        found = torch.autograd.grad(conv2d(x, w * style, carries=True).sum(), style)[0]
    assert torch.allclose(found, F.conv2d(x, w).sum())


def test_inputs_only_ends_with_an_error_too():
    own, _, x, w = posed(3)
    with pytest.raises(ZeroDivisionError), inputs_only():
        raise ZeroDivisionError
    assert torch.autograd.grad(own(x, w).sum(), w)[0].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_on_a_gpu_in_the_dtypes_of_training(case, dtype):
    own, theirs, x, w = posed(**case, shape=(2, 16, 24, 20), outputs=8)

    def penalised(op: Callable[..., Tensor], x: Tensor, w: Tensor) -> list[Tensor]:
        y = op(x, w)
        first = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
        return [y, first, torch.autograd.grad(first.float().square().sum() + y.float().sum(), w)[0]]

    x, w = (value.detach().to(dtype).requires_grad_() for value in (x, w))
    there = penalised(own, *(value.detach().cuda().requires_grad_() for value in (x, w)))
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in there[:2])
    here = penalised(theirs, *(value.detach().double().requires_grad_() for value in (x, w)))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    same([value.cpu().double() for value in there], here, tolerance)
