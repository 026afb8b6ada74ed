"""Modulated convolution: two forms against a sample-by-sample reference, to the second derivative, in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from plain_style_layers import RESAMPLE, close, modulated, normal
from torch import Tensor

from hires_gan.networks import modulation
from hires_gan.networks.modulation import HALF_CLAMP, Form, demodulation, modulated_conv2d
from hires_gan.ops import backend

FORMS: tuple[Form, ...] = ("scaled", "grouped")
BACKENDS = ("reference", "native")
FILTER = torch.outer(RESAMPLE, RESAMPLE)

Case = dict[str, Tensor]


def case(n: int = 3, inputs: int = 4, outputs: int = 5, side: int = 6, kernel: int = 3, up: int = 1) -> Case:
    """Everything that has a gradient, in float64."""
    return {
        "x": normal(n, inputs, side, side, seed=1),
        "weight": normal(outputs, inputs, kernel, kernel, seed=2),
        "styles": normal(n, inputs, seed=3) + 1,
        "noise": normal(n, 1, side * up, side * up, seed=4),
        "noise_strength": torch.tensor(0.7, dtype=torch.float64),
        "bias": normal(outputs, seed=5),
    }


def ours(given: Case, form: Form = "scaled", up: int = 1, **more: object) -> Tensor:
    return modulated_conv2d(**given, up=up, f=FILTER if up > 1 else None, form=form, **more)  # type: ignore[arg-type]


def plain(given: Case, up: int = 1, **more: object) -> Tensor:
    given = dict(given)
    strength = given.pop("noise_strength")
    return modulated(**given, strength=strength, up=up, **more)  # type: ignore[arg-type]


def derivatives(function: Callable[[Case], Tensor], given: Case, dtype: torch.dtype) -> list[Tensor]:
    """The result, its gradients, and the gradients of these, in the order of the case."""
    leaves = {name: value.to(dtype).requires_grad_() for name, value in given.items()}
    y = function(leaves)
    u = normal(*y.shape, seed=8).to(dtype)
    first = torch.autograd.grad((y * u).sum(), list(leaves.values()), create_graph=True)
    total = sum((gradient * normal(*gradient.shape, seed=9).to(dtype)).sum() for gradient in first)
    assert isinstance(total, Tensor)
    return [y, *first, *torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "up"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_forms_agree_with_samples_one_by_one_in_value_gradient_and_double_gradient(
    name: str, form: Form, up: int, demodulate: bool, kernel: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = case(kernel=kernel, up=up, inputs=6, outputs=7, side=8)
    expected = derivatives(lambda c: plain(c, up, demodulate=demodulate), given, torch.float64)
    with backend(name):
        found = derivatives(lambda c: ours(c, form, up, demodulate=demodulate), given, dtype)
    assert len(found) == len(expected) == 1 + 2 * len(given)
    assert found[0].dtype == dtype
    for value, right in zip(found, expected, strict=True):
        close(value, right, tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("up", [1, 2])
def test_forms_agree_in_float32_at_the_width_of_a_network(form: Form, up: int) -> None:
    given = case(2, 96, 64, 16, up=up)
    expected = derivatives(lambda c: plain(c, up), given, torch.float64)
    for value, right in zip(derivatives(lambda c: ours(c, form, up), given, torch.float32), expected, strict=True):
        close(value, right, 1e-5)


def test_one_sample_by_hand() -> None:
    given = case(n=1, inputs=2, outputs=2, side=3)
    x, weight, style = given["x"][0].tolist(), given["weight"].tolist(), given["styles"][0].tolist()
    found = modulated_conv2d(given["x"], given["weight"], given["styles"], act="linear")
    for o in range(2):
        own = [[[weight[o][i][r][c] * style[i] for c in range(3)] for r in range(3)] for i in range(2)]
        norm = math.sqrt(sum(v * v for plane in own for row in plane for v in row) + 1e-8)
        for row in range(3):
            for column in range(3):
                total = 0.0
                for i in range(2):
                    for r in range(3):
                        for c in range(3):
                            y, z = row + r - 1, column + c - 1
                            if 0 <= y < 3 and 0 <= z < 3:
                                total += own[i][r][c] * x[i][y][z]
                assert found[0, o, row, column].item() == pytest.approx(total / norm, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("up", [1, 2])
def test_derivatives_against_finite_differences(form: Form, up: int) -> None:
    given = {name: value.requires_grad_() for name, value in case(2, 2, 2, 3, up=up).items()}
    names = list(given)

    def function(*values: Tensor) -> Tensor:
        return ours(dict(zip(names, values, strict=True)), form, up, clamp=1.5)

    assert torch.autograd.gradcheck(function, tuple(given.values()))
    assert torch.autograd.gradgradcheck(function, tuple(given.values()))


def test_demodulation_is_the_inverse_norm_of_each_samples_weights() -> None:
    weight, styles = normal(3, 4, 3, 3), normal(2, 4, seed=1)
    for n in range(2):
        for o in range(3):
            norm = (weight[o] * styles[n][:, None, None]).square().sum().sqrt()
            assert demodulation(weight, styles)[n, o].item() == pytest.approx(1 / norm.item(), rel=1e-8)


def test_demodulated_white_input_comes_out_with_power_one() -> None:
    x, weight = normal(4, 32, 24, 24), normal(16, 32, 3, 3, seed=1)
    for scale in (1e-2, 1.0, 1e4):
        styles = normal(4, 32, seed=2) * scale
        inside = modulated_conv2d(x, weight, styles, act="linear")[:, :, 1:-1, 1:-1]
        assert float(inside.square().mean()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_does_not_depend_on_the_others(form: Form) -> None:
    given = case(4)
    together = ours(given, form, clamp=2.0)
    per_sample = ("x", "styles", "noise")
    for n in range(4):
        one = {name: value[n : n + 1] if name in per_sample else value for name, value in given.items()}
        torch.testing.assert_close(ours(one, form, clamp=2.0), together[n : n + 1], rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        given["x"][1] *= 1e3
        given["styles"][1] *= 1e3
    changed = ours(given, form, clamp=2.0) != together
    assert changed.flatten(1).any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("up", [1, 2])
def test_channels_last_equals_contiguous(name: str, form: Form, up: int) -> None:
    given = case(up=up)
    last = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in given.items()}
    with backend(name):
        found = derivatives(lambda c: ours(c, form, up), last, torch.float64)
        expected = derivatives(lambda c: ours(c, form, up), given, torch.float64)
        scaled = ours(last, "scaled", up)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    for value, right in zip(found, expected, strict=True):
        close(value, right, 1e-13)


def test_noise_of_one_sample_serves_all() -> None:
    given = case(3)
    given["noise"] = given["noise"][:1]
    torch.testing.assert_close(ours(given), plain(given), rtol=1e-12, atol=1e-12)


# Half precision.


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_what_keeps_sums_in_range_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, demodulate: bool, form: Form, scale: float
) -> None:
    """In float64, the divisors cancel out, in the derivatives as well."""
    given = case()
    given["styles"] = given["styles"] * scale
    expected = derivatives(lambda c: ours(c, form, demodulate=demodulate), given, torch.float64)
    monkeypatch.setattr(modulation, "HALF", (torch.float64,))
    found = derivatives(lambda c: ours(c, form, demodulate=demodulate), given, torch.float64)
    for value, right in zip(found, expected, strict=True):
        close(value, right, 1e-11)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_half_precision_is_close_to_the_reference(
    name: str, form: Form, dtype: torch.dtype, tolerance: float, demodulate: bool
) -> None:
    given = case(3, 16, 12, 8)
    expected = plain(given, demodulate=demodulate)
    wide = {k: v.float().requires_grad_() for k, v in given.items() if k != "x"}
    x = given["x"].to(dtype).requires_grad_()
    with backend(name):
        found = ours({"x": x, **wide}, form, demodulate=demodulate)
        found.float().square().mean().backward()
    assert found.dtype == dtype
    close(found, expected, tolerance)
    for key, value in {"x": x, **wide}.items():
        assert value.grad is not None
        assert value.grad.dtype == value.dtype, key
        assert value.grad.isfinite().all(), key


def extreme(inputs: int, kernel: int, kind: str, up: int = 1) -> Case:
    """An input at the clamp everywhere, and the largest sums that weights and styles can make of it."""
    given = case(2, inputs, 3, 4, kernel, up)
    given["x"] = torch.full_like(given["x"], HALF_CLAMP)
    given["weight"] = given["weight"].abs()
    if kind == "huge":
        given["styles"] = torch.full_like(given["styles"], 1e4)
    elif kind == "one huge":
        given["styles"] = torch.ones_like(given["styles"])
        given["styles"][:, 0] = 1e4
    elif kind == "mixed":
        given["styles"] = given["styles"] * torch.logspace(-4, 4, inputs, dtype=torch.float64)
    else:
        given["styles"] = torch.zeros_like(given["styles"])
    return given


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("demodulate", "up"), [(True, 1), (True, 2), (False, 1)])
@pytest.mark.parametrize("kind", ["huge", "one huge", "mixed", "zero"])
def test_extreme_styles_stay_finite_with_their_gradients(
    name: str, form: Form, dtype: torch.dtype, demodulate: bool, kind: str, up: int
) -> None:
    given = extreme(512, 3 if demodulate else 1, kind, up)
    narrow = given["x"].to(dtype).requires_grad_()
    leaves = {k: v.float().requires_grad_() for k, v in given.items() if k != "x"}
    with backend(name):
        y = ours({"x": narrow, **leaves}, form, up, demodulate=demodulate, clamp=HALF_CLAMP)
        inputs = [narrow, *leaves.values()]
        first = torch.autograd.grad(y.float().mean(), inputs, create_graph=True)
        total = sum(gradient.float().square().mean() for gradient in first)
        assert isinstance(total, Tensor)
        second = torch.autograd.grad(total, inputs, materialize_grads=True)
    assert [name for name, value in zip(["y", *given], (y, *first), strict=True) if not value.isfinite().all()] == []
    if kind != "zero":  # there, the inverse norm is 1e4, and the second derivative by x does not fit into fp16
        assert all(value.isfinite().all() for value in second)
    close(y.clamp(-256, 256), plain(given, up, demodulate=demodulate, clamp=HALF_CLAMP), 2e-2)


def test_without_care_fp16_would_overflow_there(monkeypatch: pytest.MonkeyPatch) -> None:
    given = extreme(512, 3, "huge")
    half = {k: v.half() if k == "x" else v.float() for k, v in given.items()}
    assert ours(half, clamp=HALF_CLAMP).isfinite().all()
    monkeypatch.setattr(modulation, "HALF", ())
    unprotected = modulated_conv2d(half["x"], half["weight"], half["styles"], act="linear")
    assert not unprotected.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_clamp_holds(dtype: torch.dtype) -> None:
    given = case()
    given["bias"] = given["bias"] * 1e4
    half = {k: v.to(dtype) if k == "x" else v.float() for k, v in given.items()}
    assert ours(half, clamp=HALF_CLAMP).abs().max().item() == HALF_CLAMP
