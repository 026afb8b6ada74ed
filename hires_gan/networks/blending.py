"""How a new resolution is blended with the one before: by a number, or by a tensor that changes from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Alpha = float | Tensor
"""The share of the new, in [0, 1]: a number; or, in a step of a fade, a float64 tensor without dimensions."""


def fades(alpha: Alpha) -> bool:
    """Whether two resolutions are blended: always by a tensor, which nobody reads, and by a number below 1."""
    return isinstance(alpha, Tensor) or alpha < 1.0


def blended(old: Tensor, new: Tensor, alpha: Alpha) -> Tensor:
    """`old + alpha * (new - old)`, as `torch.lerp` computes it with a number, whichever alpha is.

    Half precision is computed in float32, with an alpha in float32, and rounded once.

    Args:
        old: Of any shape, in any floating-point dtype.
        new: Of the same shape and dtype.
        alpha: The share of `new`; a tensor lies on the same device.

    Returns:
        The same shape and dtype; differentiable to any order by `old` and `new`, not by alpha.
    """
    if not isinstance(alpha, Tensor):
        return torch.lerp(old, new, alpha)
    both: Tensor = _Blend.apply(old, new, alpha)  # type: ignore[no-untyped-call]
    return both


class _Blend(torch.autograd.Function):
    """With a tensor, torch.lerp wants all in one dtype, and its own gradient takes `1 - alpha` rounded."""

    @staticmethod
    def forward(ctx: Any, old: Tensor, new: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(alpha)
        wide = _wide(old)
        return torch.lerp(old.to(wide), new.to(wide), alpha.to(wide)).to(old.dtype)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (alpha,), (of_old, of_new, _) = ctx.saved_tensors, ctx.needs_input_grad
        return _scaled(dy[0], 1.0 - alpha) if of_old else None, _scaled(dy[0], alpha) if of_new else None, None


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    wide = _wide(x)
    return (x.to(wide) * factor.to(wide)).to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
