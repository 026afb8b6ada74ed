"""Numbers by counter, Philox4x32-10, one compiled kernel for a draw; `hires_gan.randomness` defines them in torch.

Results carry no gradient. The kernels read the sample indices where they lie: nothing waits for the device, and a
captured CUDA graph draws for whatever samples then lie there.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PARAMETERS = "Tensor samples, int count, int seed, int purpose"

for _name in ("philox_words", "philox_uniform", "philox_normal"):
    torch.library.define(f"hires_gan::{_name}", f"({_PARAMETERS}) -> Tensor")


def philox_words(samples: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    """The generator's words, as the compiled kernel draws them, whatever backend is chosen.

    Args:
        samples: int64 `[n]`, global sample indices, on the CPU or on a CUDA device.
        count: How many numbers each sample needs, 0 or more; a longer request begins with the shorter one's.
        seed: The first half of the key, in [0, 2^32).
        purpose: The second half, in [0, 2^32).

    Returns:
        int64 `[n, count]`, each in [0, 2^32), on the device of `samples`.

    Raises:
        TypeError: `samples` is not int64.
        ValueError: `samples` is not `[n]`, or a number lies outside its range.
    """
    _check(samples, count, seed, purpose)
    words: Tensor = torch.ops.hires_gan.philox_words(samples, count, seed, purpose)
    return words


def philox_uniform(samples: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    """float32 `[n, count]` in [0, 1), in steps of 2^-24, one from each word; arguments as in `philox_words`."""
    _check(samples, count, seed, purpose)
    numbers: Tensor = torch.ops.hires_gan.philox_uniform(samples, count, seed, purpose)
    return numbers


def philox_normal(samples: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    """float32 `[n, count]` from N(0, 1), by Box and Muller in float64, rounded once; arguments as in `philox_words`.

    The last bit of a library's logarithm or cosine may, rarely, turn that rounding: devices differ then by one unit in
    the last place of float32.
    """
    _check(samples, count, seed, purpose)
    numbers: Tensor = torch.ops.hires_gan.philox_normal(samples, count, seed, purpose)
    return numbers


def _check(samples: Tensor, count: int, seed: int, purpose: int) -> None:
    if samples.dtype != torch.int64:
        raise TypeError(f"samples is {samples.dtype}; torch.int64 is allowed: give global sample indices, .long()")
    if samples.dim() != 1:
        raise ValueError(f"samples has the shape {list(samples.shape)}; [n] is allowed: flatten it")
    if count < 0:
        raise ValueError(f"count is {count}; 0 or more are allowed")
    for name, half in (("seed", seed), ("purpose", purpose)):
        if not 0 <= half < 2**32:
            raise ValueError(f"{name} is {half}; it must lie in [0, 2^32)")


@torch.library.register_fake("hires_gan::philox_words")  # type: ignore[untyped-decorator]
def _fake_words(samples: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    return samples.new_empty(samples.shape[0], count)


@torch.library.register_fake("hires_gan::philox_uniform")  # type: ignore[untyped-decorator]
@torch.library.register_fake("hires_gan::philox_normal")  # type: ignore[untyped-decorator]
def _fake_numbers(samples: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    return samples.new_empty(samples.shape[0], count, dtype=torch.float32)
