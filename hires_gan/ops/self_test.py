"""A test of the compiled ops on answers known in advance, small enough for the doctor to run each time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hires_gan import ops
from hires_gan.ops import random

TOLERANCE = 1e-5

LRELU = [-0.494975, -0.070711, 0.353553, 1.06066, 3.18198]
SWISH = [-0.366398, -0.154794, 0.198759, 0.720378, 2.87858]
GAIN = 2**0.5

PHILOX = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
"""Random123's known answer of philox4x32-10 for a counter and a key of zeros."""
NORMALS = [0.991138, -0.924663, -0.617609, -0.482069]


def self_test(device: torch.device | str) -> str | None:
    """Run the compiled ops forward and backward on a device.

    Args:
        device: Where; its library must be loaded.

    Returns:
        None if every answer is right; else what differed, or what was raised.
    """
    try:
        with ops.backend("native"), torch.enable_grad():
            wrong = [problem for check in (_filters, _activations, _epilogues, _draws) for problem in check(device)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "; ".join(wrong) or None


def _filters(device: torch.device | str) -> Iterator[str]:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=device, requires_grad=True)
    skewed, smooth = torch.tensor([1.0, 2.0], device=device), torch.tensor([1.0, 3.0, 3.0, 1.0], device=device) / 8
    y = ops.upfirdn2d(x, skewed)
    yield from _compare("upfirdn2d", y, [[18.0]])
    yield from _compare("the gradient of upfirdn2d", _gradient(y, x), [[4.0, 2.0], [2.0, 1.0]])
    yield from _compare("upfirdn2d with a flipped filter", ops.upfirdn2d(x, skewed, flip_filter=True), [[27.0]])
    doubled = [[0.5625, 0.9375, 1.3125, 1.125], [1.125, 1.75, 2.25, 1.875]]
    doubled += [[1.875, 2.75, 3.25, 2.625], [1.6875, 2.4375, 2.8125, 2.25]]
    yield from _compare("upsampling", ops.upfirdn2d(x, smooth, up=2, padding=[2, 1, 2, 1], gain=4), doubled)
    ramp = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    halved = [[2.734375, 3.9375], [7.546875, 8.75]]
    yield from _compare("downsampling", ops.upfirdn2d(ramp, smooth, down=2, padding=1), halved)
    odd = ops.upfirdn2d(x, torch.tensor([1.0, 2.0, 3.0], device=device), up=3, down=2, padding=[2, 1, 0, -1])
    yield from _compare("upfirdn2d by 3/2", odd, [[3.0, 9.0, 12.0, 0.0], [6.0, 18.0, 16.0, 0.0]])


def _activations(device: torch.device | str) -> Iterator[str]:
    x = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0]], device=device).T.requires_grad_()
    b = torch.full((1,), 0.25, device=device, requires_grad=True)
    y = ops.bias_act(x, b, act="lrelu")
    yield from _compare("bias_act", y.flatten(), LRELU)
    slopes = [0.2 * GAIN, 0.2 * GAIN, GAIN, GAIN, GAIN]
    yield from _compare("the gradient of bias_act", _gradient(y, x).flatten(), slopes)
    yield from _compare("the gradient of its bias", _gradient(ops.bias_act(x, b, act="lrelu"), b), [sum(slopes)])
    yield from _compare("bias_act with swish", ops.bias_act(x, b, act="swish").flatten(), SWISH)
    clamped = [min(max(value, -0.4), 0.4) for value in LRELU]
    yield from _compare("bias_act with a clamp", ops.bias_act(x, b, act="lrelu", clamp=0.4).flatten(), clamped)


def _epilogues(device: torch.device | str) -> Iterator[str]:
    x = torch.tensor([-1.0, -0.25, 0.0, 0.25], device=device).reshape(1, 1, 2, 2).requires_grad_()
    scale, strength = torch.full((1, 1), 2.0, device=device), torch.tensor(0.5, device=device, requires_grad=True)
    noise, b = torch.zeros(1, 1, 2, 2, device=device), torch.full((1,), 0.25, device=device)
    noise[0, 0, 1, 1] = 2.5
    y = ops.epilogue(x, scale, noise, strength, b)
    answer = [[-1.75 * 0.2 * GAIN, -0.25 * 0.2 * GAIN], [0.25 * GAIN, 2.0 * GAIN]]
    yield from _compare("epilogue", y, answer)
    slopes = [[0.4 * GAIN, 0.4 * GAIN], [2 * GAIN, 2 * GAIN]]
    yield from _compare("the gradient of epilogue", _gradient(y, x), slopes)
    again = ops.epilogue(x, scale, noise, strength, b)
    yield from _compare("the gradient of its noise strength", _gradient(again, strength), 2.5 * GAIN)


def _draws(device: torch.device | str) -> Iterator[str]:
    sample = torch.zeros(1, dtype=torch.int64, device=device)
    words = random.philox_words(sample, 4, 0, 0)[0].tolist()
    if words != PHILOX:
        yield f"philox_words is {words} where {PHILOX} is right"
    yield from _compare("philox_uniform", random.philox_uniform(sample, 4, 0, 0), [word * 2.0**-32 for word in PHILOX])
    yield from _compare("philox_normal", random.philox_normal(sample, 4, 0, 0), NORMALS)


def _gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x)[0]


def _compare(name: str, found: Tensor, answer: object) -> Iterator[str]:
    """Yields a sentence if a result is not the known one; sides of 1 in front are left out."""
    wanted = torch.tensor(answer, dtype=torch.float32)
    result = found.detach().float().cpu()
    if result.numel() != wanted.numel() or not torch.allclose(result.reshape(wanted.shape), wanted, atol=TOLERANCE):
        yield f"{name} is {_shown(result)} where {_shown(wanted)} is right"


def _shown(values: Tensor) -> str:
    return str([round(value, 6) for value in values.flatten().tolist()])
