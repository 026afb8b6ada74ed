"""`bias_act`: bias, activation, gain and clamp in one pass, differentiable as often as the mathematics allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hires_gan.ops import reference
from hires_gan.ops.activations import ACTIVATIONS
from hires_gan.ops.checks import (
    accumulation_dtype,
    checked_activation,
    checked_coefficients,
    checked_dtype,
    kept_format,
    refuse_tangents,
)
from hires_gan.ops.selection import resolve

LEAST_GAIN = 2.0**-4
"""Below it, half precision may round to zero a result whose sign is still asked for."""

_PARAMETERS = "int dim, str act, float alpha, float gain, float? clamp"

torch.library.define("hires_gan::bias_act", f"(Tensor x, Tensor? b, {_PARAMETERS}) -> Tensor")
torch.library.define(
    "hires_gan::bias_act_derivative",
    f"(Tensor u, Tensor saved, Tensor? b, {_PARAMETERS}, int order, bool from_output, bool sum) -> (Tensor, Tensor)",
)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Add a bias, apply an activation, multiply by a gain, clamp: y = clamp(gain * act(x + b)).

    Args:
        x: Any shape, in float64, float32, float16 or bfloat16; contiguous and channels_last are both read as they are.
        b: One value for each entry of x along `dim`, in the dtype of x or in float32; None for none.
        dim: The dimension of the bias; negative ones count from the end.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: lrelu's slope below zero, by default 0.2.
        gain: By default the square root of 2 for relu, lrelu and swish, and 1 for the others.
        clamp: The result is kept within plus and minus this, 0 or more; its gradient is 0 where it is reached. NaN
            stays NaN. None for no limit.

    Returns:
        The shape, dtype and memory format of x; half and bfloat16 are computed in float32 and rounded once. Where there
        is nothing to do (linear, no bias, a gain of 1, no clamp) it is x itself.

    Raises:
        ValueError: A shape or number cannot be, or there is no such activation.
        TypeError: An argument is of the wrong type or dtype.
        Failure: The native implementation is chosen and missing.
    """
    checked_dtype(x)
    alpha, gain, clamp = checked_activation(act, alpha, gain, clamp, tuple(ACTIVATIONS))
    dim = _checked_dim(dim, x, b)
    if b is not None:
        checked_coefficients("b", b, x, ((x.shape[dim],),))
    if b is None and act == "linear" and gain == 1 and clamp is None:
        return x
    if resolve(x.device) == "reference":
        return reference.bias_act(x, b, dim, act, alpha, gain, clamp)
    refuse_tangents(x, b)
    native: Tensor = torch.ops.hires_gan.bias_act(x, b, dim, act, alpha, gain, clamp)
    return native


def _checked_dim(dim: int, x: Tensor, b: Tensor | None) -> int:
    """Counted from the front; 0 where nothing depends on it."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim is {dim!r}, a {type(dim).__name__}; a whole number is wanted")
    if b is None:
        return 0
    if not -x.dim() <= dim < x.dim():
        allowed = f"{-x.dim()} to {x.dim() - 1} are allowed" if x.dim() else "x needs at least one dimension for a bias"
        raise ValueError(f"dim is {dim}, and x has the shape {list(x.shape)}; {allowed}")
    return dim % x.dim()


def reads_output(act: str, alpha: float, gain: float) -> bool:
    """Whether the derivative can be told from the result, whose sign is the input's unless the gain makes it vanish."""
    return ACTIVATIONS[act].piecewise and (act != "lrelu" or alpha >= 0) and abs(gain) >= LEAST_GAIN


@torch.library.register_fake("hires_gan::bias_act")  # type: ignore[untyped-decorator]
def _fake(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> Tensor:
    return torch.empty_like(x, memory_format=kept_format(x))


@torch.library.register_fake("hires_gan::bias_act_derivative")  # type: ignore[untyped-decorator]
def _fake_derivative(
    u: Tensor,
    saved: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
    order: int,
    from_output: bool,
    sum: bool,  # noqa: A002 - the name in the schema
) -> tuple[Tensor, Tensor]:
    sums = saved.new_empty(saved.shape[dim] if sum else 0, dtype=accumulation_dtype(saved.dtype))
    return torch.empty_like(saved, memory_format=kept_format(saved)), sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, b, ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp = inputs
    ctx.b_dtype = None if b is None else b.dtype
    ctx.from_output = reads_output(ctx.act, ctx.alpha, ctx.gain)
    ctx.constant = ctx.act == "linear" and ctx.clamp is None  # the derivative depends on nothing
    if ctx.constant:
        ctx.save_for_backward(None, None)
    elif ctx.from_output:
        ctx.save_for_backward(output, None)
    else:
        ctx.save_for_backward(x, b)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    saved, b = ctx.saved_tensors
    with_sum = ctx.b_dtype is not None and ctx.needs_input_grad[1]
    dx, db = torch.ops.hires_gan.bias_act_derivative(
        dy,
        dy if ctx.constant else saved,
        b,
        ctx.dim,
        ctx.act,
        ctx.alpha,
        ctx.gain,
        ctx.clamp,
        1,
        ctx.from_output,
        with_sum,
    )
    return dx, db.to(ctx.b_dtype) if with_sum else None, None, None, None, None, None


def _save_derivative(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, saved, b, *ctx.parameters, ctx.order, ctx.from_output, ctx.sum = inputs
    ctx.b_dtype = None if b is None else b.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(None if ctx.from_output else u, saved, b)


def _backward_derivative(ctx: Any, d_out: Tensor | None, d_sums: Tensor | None) -> tuple[Tensor | None, ...]:
    """The op is linear in u; its derivative by the saved input is the op of the next order."""
    u, saved, b = ctx.saved_tensors
    dim, act = ctx.parameters[:2]
    total = _with_sums(d_out, d_sums if ctx.sum else None, saved, dim)
    du = d_saved = db = None
    if total is not None and ctx.needs_input_grad[0]:
        du, _ = derivative_of(total, saved, b, ctx.parameters, ctx.order, ctx.from_output, False)
    curved = not ctx.from_output and not ACTIVATIONS[act].piecewise
    if total is not None and curved and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        wide = accumulation_dtype(saved.dtype)
        product = total.to(wide) * u.to(wide)
        with_sum = ctx.b_dtype is not None and ctx.needs_input_grad[2]
        d_saved, sums = derivative_of(product, saved, b, ctx.parameters, ctx.order + 1, False, with_sum)
        db = sums.to(ctx.b_dtype) if with_sum else None
    return du, d_saved, db, None, None, None, None, None, None, None, None


def _with_sums(d_out: Tensor | None, d_sums: Tensor | None, like: Tensor, dim: int) -> Tensor | None:
    """The gradient that reaches every element, directly and through the sums over all but `dim`."""
    if d_sums is None:
        return d_out
    shape = [1] * like.dim()
    shape[dim] = -1
    spread = d_sums.reshape(shape)
    return spread.expand_as(like) if d_out is None else d_out + spread


def derivative_of(
    u: Tensor, saved: Tensor, b: Tensor | None, parameters: Sequence[Any], order: int, from_output: bool, with_sum: bool
) -> tuple[Tensor, Tensor]:
    """`bias_act_derivative`, also for a u that is wider than what was saved: it is rounded once, behind the op.

    Args:
        u: In the dtype of `saved`, or float32.
        saved: The input or the result of `bias_act`.
        b: The bias, where the input was saved.
        parameters: dim, act, alpha, gain, clamp.
        order: Of the derivative.
        from_output: Whether `saved` is the result.
        with_sum: Whether the sums over all but dim are wanted.
    """
    op = torch.ops.hires_gan.bias_act_derivative
    dtype = saved.dtype
    if u.dtype == dtype:
        narrow: tuple[Tensor, Tensor] = op(u, saved, b, *parameters, order, from_output, with_sum)
        return narrow
    dim, act, alpha, gain, clamp = parameters
    if clamp is not None:
        # Where the rounded result reached the limit is a matter of the narrow dtype.
        y = saved if from_output else torch.ops.hires_gan.bias_act(saved.detach(), b, *parameters).detach()
        u = torch.where(y.abs() >= clamp, 0, u)
    b = None if b is None else b.to(u.dtype)
    out, sums = op(u, saved.to(u.dtype), b, dim, act, alpha, gain, None, order, from_output, with_sum)
    return out.to(dtype), sums


torch.library.register_autograd("hires_gan::bias_act", _backward, setup_context=_save)
torch.library.register_autograd("hires_gan::bias_act_derivative", _backward_derivative, setup_context=_save_derivative)
