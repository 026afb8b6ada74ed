"""`epilogue`: what follows a modulated convolution, in one pass over its output (Karras et al. 2020, section 2.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hires_gan.ops import reference
from hires_gan.ops.activation import LEAST_GAIN, bias_act, derivative_of
from hires_gan.ops.checks import (
    accumulation_dtype,
    checked_activation,
    checked_coefficients,
    checked_images,
    kept_format,
    refuse_tangents,
)
from hires_gan.ops.leaving_out import left_out
from hires_gan.ops.selection import resolve

ACTIVATIONS_OF_EPILOGUE = ("linear", "relu", "lrelu")

_PARAMETERS = "str act, float alpha, float gain, float? clamp"

torch.library.define(
    "hires_gan::epilogue",
    f"(Tensor x, Tensor? demodulation, Tensor? noise, Tensor? noise_strength, Tensor? b, {_PARAMETERS}) -> Tensor",
)
torch.library.define(
    "hires_gan::epilogue_second",
    "(Tensor d_dx, Tensor d_sums, Tensor dy, Tensor y, Tensor x, Tensor? demodulation, Tensor? noise, "
    f"{_PARAMETERS}) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "hires_gan::epilogue_gradient",
    f"(Tensor dy, Tensor y, Tensor x, Tensor? demodulation, Tensor? noise, {_PARAMETERS}) -> (Tensor, Tensor)",
)


def epilogue(
    x: Tensor,
    demodulation: Tensor | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
    b: Tensor | None = None,
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Demodulate, add noise and bias, activate: clamp(gain * act(x * demodulation + noise_strength * noise + b)).

    Args:
        x: The output of a convolution, `[N, C, H, W]` in float64, float32, float16 or bfloat16; contiguous and
            channels_last are both read as they are.
        demodulation: A factor for each sample and channel, `[N, C]`; None for 1.
        noise: A value for each pixel, `[N, 1, H, W]` or, the same for all samples, `[1, 1, H, W]`; None for none.
        noise_strength: The factor of the noise, a tensor of no dimensions; None for 1.
        b: A bias for each channel, `[C]`; None for 0.
        act: linear, relu or lrelu.
        alpha: lrelu's slope below zero, 0 or more, by default 0.2.
        gain: By default 1 for linear, the square root of 2 for relu and lrelu; 0, or 1/16 or more of either sign: the
            derivative is told from the sign of the result.
        clamp: As in `bias_act`.

    Coefficients are in the dtype of x or in float32; all of them, and x, have gradients to any order.

    Returns:
        The shape, dtype and memory format of x; half and bfloat16 are computed in float32 and rounded once.

    Raises:
        ValueError: A shape or number cannot be, or there is no such activation.
        TypeError: An argument is of the wrong type or dtype.
        Failure: The native implementation is chosen and missing.
    """
    checked_images(x)
    alpha, gain, clamp = checked_activation(act, alpha, gain, clamp, ACTIVATIONS_OF_EPILOGUE)
    if alpha < 0:
        raise ValueError(f"alpha is {alpha:g}; the epilogue allows slopes of 0 or more")
    if 0 < abs(gain) < LEAST_GAIN:
        raise ValueError(f"gain is {gain:g}; the epilogue allows 0, {LEAST_GAIN:g} or more, or as much below 0")
    n, c, h, w = x.shape
    checked_coefficients("demodulation", demodulation, x, ((n, c),))
    checked_coefficients("noise", noise, x, ((n, 1, h, w), (1, 1, h, w)))
    checked_coefficients("noise_strength", noise_strength, x, ((),))
    checked_coefficients("b", b, x, ((c,),))
    if noise is None and noise_strength is not None:
        raise ValueError("noise_strength is given, but noise is None; both or neither are allowed")
    if left_out("epilogue"):
        return bias_act(_with_noise(x, demodulation, noise, noise_strength), b, 1, act, alpha, gain, clamp)
    if resolve(x.device) == "reference":
        return reference.epilogue(x, demodulation, noise, noise_strength, b, act, alpha, gain, clamp)
    refuse_tangents(x, demodulation, noise, noise_strength, b)
    native: Tensor = torch.ops.hires_gan.epilogue(x, demodulation, noise, noise_strength, b, act, alpha, gain, clamp)
    return native


def _with_noise(x: Tensor, demodulation: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None) -> Tensor:
    """Demodulation and noise as ops of their own, each rounded to the dtype of x."""
    if demodulation is not None:
        x = x * demodulation.to(x.dtype)[:, :, None, None]
    if noise is not None:
        x = x + (noise if noise_strength is None else noise * noise_strength).to(x.dtype)
    return x


@torch.library.register_fake("hires_gan::epilogue")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor,
    demodulation: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    b: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    return torch.empty_like(x, memory_format=kept_format(x))


@torch.library.register_fake("hires_gan::epilogue_gradient")  # type: ignore[untyped-decorator]
def _fake_gradient(
    dy: Tensor,
    y: Tensor,
    x: Tensor,
    demodulation: Tensor | None,
    noise: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    terms = 2 if act == "linear" and clamp is None and noise is None else 3
    sums = x.new_empty((terms, x.shape[0], x.shape[1]), dtype=accumulation_dtype(x.dtype))
    return torch.empty_like(x, memory_format=kept_format(x)), sums


@torch.library.register_fake("hires_gan::epilogue_second")  # type: ignore[untyped-decorator]
def _fake_second(
    d_dx: Tensor,
    d_sums: Tensor,
    dy: Tensor,
    y: Tensor,
    x: Tensor,
    demodulation: Tensor | None,
    noise: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_demodulation = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))
    like = kept_format(x)
    return torch.empty_like(x, memory_format=like), torch.empty_like(x, memory_format=like), d_demodulation


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, demodulation, noise, noise_strength, b, *ctx.parameters = inputs
    ctx.b_dtype = None if b is None else b.dtype
    kept = output if demodulation is None else x  # only the gradient of the demodulation asks for x
    ctx.save_for_backward(kept, demodulation, noise, noise_strength, output)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, demodulation, noise, noise_strength, y = ctx.saved_tensors
    _, need_demodulation, need_noise, need_strength, need_b, *_ = ctx.needs_input_grad
    dx, sums = torch.ops.hires_gan.epilogue_gradient(dy, y, x, demodulation, noise, *ctx.parameters)
    d_demodulation = sums[0].to(demodulation.dtype) if need_demodulation else None
    d_strength = sums[2].sum().to(noise_strength.dtype) if need_strength else None
    db = sums[1].sum(0).to(ctx.b_dtype) if need_b else None
    d_noise = None
    if need_noise:
        g = _behind_bias(dy, y, ctx.parameters).to(sums.dtype).sum(1, keepdim=True)
        strength = 1 if noise_strength is None else noise_strength
        d_noise = (g * strength).sum_to_size(noise.shape).to(noise.dtype)
    return dx, d_demodulation, d_noise, d_strength, db, None, None, None, None


def _behind_bias(dy: Tensor, y: Tensor, parameters: list[Any]) -> Tensor:
    """The gradient of what goes into the activation."""
    return derivative_of(dy, y, None, (1, *parameters), 1, True, False)[0]


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, y, x, demodulation, noise, *ctx.parameters = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, y, x, demodulation, noise)


def _backward_gradient(ctx: Any, d_dx: Tensor | None, d_sums: Tensor | None) -> tuple[Tensor | None, ...]:
    """One pass where everything arrives, as in the path length's penalty; else, whatever is asked for by itself."""
    dy, y, x, demodulation, noise = ctx.saved_tensors
    need_noise = ctx.needs_input_grad[4]
    if d_dx is not None and d_sums is not None and demodulation is not None and not need_noise:
        op = torch.ops.hires_gan.epilogue_second
        d_dy, d_x, d_demodulation = op(d_dx, d_sums, dy, y, x, demodulation, noise, *ctx.parameters)
        return d_dy, None, d_x, d_demodulation.to(demodulation.dtype), None, None, None, None, None
    found = _second(d_dx, d_sums, dy, y, x, demodulation, noise, ctx.parameters, ctx.needs_input_grad)
    d_dy, d_x, d_demodulation, d_noise = found
    return d_dy, None, d_x, d_demodulation, d_noise, None, None, None, None


def _second(
    d_dx: Tensor | None,
    d_sums: Tensor | None,
    dy: Tensor,
    y: Tensor,
    x: Tensor,
    demodulation: Tensor | None,
    noise: Tensor | None,
    parameters: list[Any],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """With g = dy * slope(y): dx = g * demodulation, and the sums over the pixels are of g x, g and g noise."""
    need_dy, _, need_x, need_demodulation, need_noise, *_ = needs
    wide = accumulation_dtype(x.dtype)
    by_x, by_one, by_noise = _columns(d_sums)
    d_dy = d_x = d_demodulation = d_noise = None
    if need_dy:
        total = by_one
        if total is not None and by_x is not None and demodulation is not None:
            total = total + x * by_x
        if total is not None and by_noise is not None and noise is not None:
            total = total + noise * by_noise
        if d_dx is not None:
            through_dx = d_dx if demodulation is None else d_dx.to(wide) * demodulation[:, :, None, None]
            total = through_dx if total is None else total + through_dx
        d_dy = None if total is None else _behind_bias(total.expand_as(y), y, parameters)
    if need_x or need_demodulation or need_noise:
        g = _behind_bias(dy, y, parameters).to(wide)
        d_x = (g * by_x).to(x.dtype) if need_x and demodulation is not None and by_x is not None else None
        if need_demodulation and d_dx is not None:
            assert demodulation is not None
            d_demodulation = (d_dx * g).sum((2, 3)).to(demodulation.dtype)
        if need_noise and by_noise is not None:
            assert noise is not None
            d_noise = (g * by_noise).sum(1, keepdim=True).sum_to_size(noise.shape).to(noise.dtype)
    return d_dy, d_x, d_demodulation, d_noise


def _columns(d_sums: Tensor | None) -> tuple[Tensor | None, ...]:
    """What arrives at the sums of g x, g and g noise, `[n, c, 1, 1]` each; the last one is not always there."""
    if d_sums is None:
        return None, None, None
    columns = d_sums[:, :, :, None, None].unbind(0)
    return (*columns, None)[:3]


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, act, alpha, gain, clamp = inputs
    ctx.parameters = [act, alpha, gain, clamp]
    ctx.save_for_backward(*tensors)


def _backward_second(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
    """The third order, and those above it, by way of the same formulas step by step."""
    with torch.enable_grad():
        # Aliases: one of the saved tensors may depend on another, and that way belongs to the graph behind this one.
        tensors: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        needs_grad = zip(ctx.needs_input_grad, tensors, strict=False)
        wanted = [bool(need and tensor is not None) for need, tensor in needs_grad]
        d_dx, d_sums, dy, y, x, demodulation, noise = tensors
        needs = (True, False, True, True, False)
        parts = _second(d_dx, d_sums, dy, y, x, demodulation, noise, ctx.parameters, needs)[:3]
        pairs = [(one, end) for one, end in zip(parts, arriving, strict=True) if one is not None and one.requires_grad]
        asked = [tensor for tensor, want in zip(tensors, wanted, strict=True) if want]
        ends = [end.to(one.dtype) for one, end in pairs]
        found = torch.autograd.grad([one for one, _ in pairs], asked, ends, create_graph=True, allow_unused=True)
    grads = iter(found)
    return (*(next(grads) if want else None for want in wanted), None, None, None, None)


torch.library.register_autograd("hires_gan::epilogue", _backward, setup_context=_save)
torch.library.register_autograd("hires_gan::epilogue_gradient", _backward_gradient, setup_context=_save_gradient)
torch.library.register_autograd("hires_gan::epilogue_second", _backward_second, setup_context=_save_second)
