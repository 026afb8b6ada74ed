"""What all ops ask of their arguments, whichever implementation computes; a sentence names what is wrong."""

from __future__ import annotations

import difflib
import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hires_gan.ops.activations import ACTIVATIONS

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype tensors of `dtype` are computed: float64 in float64, all others in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """`float32` and the like."""
    return str(dtype).removeprefix("torch.")


def checked_dtype(x: Tensor) -> None:
    """Refuse anything but a tensor of a dtype that is computed."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; a tensor is wanted")
    if x.dtype not in FLOATING:
        allowed = ", ".join(name_of(dtype) for dtype in FLOATING)
        raise TypeError(f"x has the dtype {name_of(x.dtype)}; {allowed} are allowed: convert it, as in x.float()")


def checked_images(x: Tensor) -> None:
    """Refuse anything but [N, C, H, W] with pixels."""
    checked_dtype(x)
    if x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions, {tuple(x.shape)}; 4 are allowed: [N, C, H, W]")
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"x is {tuple(x.shape)}; C, H and W of at least 1 are allowed")


def checked_coefficients(name: str, value: Tensor | None, x: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Refuse coefficients of another shape, dtype or device than x asks for; None is none."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; a tensor or None is wanted")
    if tuple(value.shape) not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} has the shape {list(value.shape)}; for x of {list(x.shape)}, {allowed} is allowed")
    if value.dtype not in (x.dtype, accumulation_dtype(x.dtype)):
        both = " or ".join(sorted({name_of(x.dtype), name_of(accumulation_dtype(x.dtype))}))
        raise TypeError(f"{name} has the dtype {name_of(value.dtype)}; for x of {name_of(x.dtype)}, {both} is allowed")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device} and x on {x.device}; both have to be on one device")


def checked_activation(
    act: str, alpha: float | None, gain: float | None, clamp: float | None, allowed: tuple[str, ...]
) -> tuple[float, float, float | None]:
    """Alpha, gain and clamp as numbers, with the activation's defaults."""
    if act not in allowed:
        nearest = difflib.get_close_matches(str(act), allowed, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"act is {act!r}; {', '.join(allowed)} are allowed{hint}")
    default = ACTIVATIONS[act]
    alpha = default.alpha if alpha is None else checked_number("alpha", alpha)
    gain = default.gain if gain is None else checked_number("gain", gain)
    clamp = None if clamp is None else checked_number("clamp", clamp)
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp is {clamp:g}; None, for none, and numbers of 0 or more are allowed")
    return alpha, gain, clamp


def checked_number(name: str, value: float) -> float:
    """A finite number; bool and tensors are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; a number is wanted")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; finite numbers are allowed")
    return float(value)


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Refuse forward-mode differentiation, through which torch passes registered ops with a tangent of nothing."""
    if torch.compiler.is_compiling():
        return
    tangents = [forward_ad.unpack_dual(value)[1] for value in tensors if value is not None]  # type: ignore[no-untyped-call]
    if any(tangent is not None for tangent in tangents):
        raise NotImplementedError(
            "the native ops differentiate backwards only, to any order; for forward-mode derivatives compute with "
            'plain torch: with hires_gan.ops.backend("reference")'
        )


def kept_format(x: Tensor) -> torch.memory_format:
    """The memory format of results: channels_last where x has that and is not contiguous as well."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
