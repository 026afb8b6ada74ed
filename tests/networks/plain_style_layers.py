"""StyleGAN's operations from their formulas, with torch's plainest operators: slow, and differentiable by autograd."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESAMPLE = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
BLUR = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, 0.2 * x)


def bounded(x: Tensor, clamp: float | None) -> Tensor:
    return x if clamp is None else x.clamp(-clamp, clamp)


def unit_vectors(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()


def filtered(x: Tensor, taps: Tensor) -> Tensor:
    """Each channel with the outer product of symmetric taps, where all of them fit."""
    kernel = torch.outer(taps, taps).to(x.dtype)
    channels = [F.conv2d(channel, kernel[None, None]) for channel in x.split(1, 1)]
    return torch.cat(channels, 1)


def stuffed(x: Tensor) -> Tensor:
    """Twice as large, with zeros to the right of and below each pixel."""
    n, c, h, w = x.shape
    large = torch.zeros(n, c, 2 * h, 2 * w, dtype=x.dtype)
    large[:, :, ::2, ::2] = x
    return large


def doubled(x: Tensor) -> Tensor:
    """Twice as large, filtered with [1, 3, 3, 1] and a gain of 4."""
    return filtered(F.pad(stuffed(x), (2, 1, 2, 1)), RESAMPLE) * 4


def convolved_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """Zeros between the pixels and around the image, filtered, then a 3x3 kernel: the size is doubled."""
    return F.conv2d(filtered(F.pad(stuffed(x), (3, 2, 3, 2)), RESAMPLE) * 4, weight)


def convolved_halved(x: Tensor, weight: Tensor) -> Tensor:
    """Filtered with [1, 3, 3, 1] and convolved; every other pixel of every other row is kept."""
    around = 1 + weight.shape[2] // 2
    return F.conv2d(filtered(F.pad(x, (around,) * 4), RESAMPLE), weight)[:, :, ::2, ::2]


def dense(x: Tensor, w: dict[str, Tensor], name: str, gain: float = 1.0, rate: float = 1.0) -> Tensor:
    weight = w[f"{name}.weight"]
    return x @ (weight * (rate * gain / math.sqrt(weight.shape[1]))).T + rate * w[f"{name}.bias"]


def spread(x: Tensor, group: int) -> Tensor:
    """One channel more: the mean standard deviation of each group of consecutive samples."""
    parts = []
    for part in x.split(group):
        deviation = (part - part.mean(0, keepdim=True)).pow(2).mean(0).add(1e-8).sqrt().mean()
        parts.append(torch.cat([part, deviation.expand(len(part), 1, *x.shape[2:])], 1))
    return torch.cat(parts)


def modulated(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool = True,
    up: int = 1,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "lrelu",
    gain: float = math.sqrt(2),
    clamp: float | None = None,
) -> Tensor:
    """Sample by sample: the weights times the styles, over their norms, then convolution, noise, bias, rectifier."""
    rows = []
    for n in range(len(x)):
        own = weight * styles[n][None, :, None, None]
        if demodulate:
            own = torch.stack([one / (one.pow(2).sum() + 1e-8).sqrt() for one in own])
        one = x[n : n + 1]
        y = convolved_doubled(one, own) if up == 2 else F.conv2d(one, own, padding=weight.shape[2] // 2)
        if noise is not None:
            y = y + noise[n if len(noise) > 1 else 0] * (1 if strength is None else strength)
        if bias is not None:
            y = y + bias[None, :, None, None]
        rows.append(bounded((leaky(y) if act == "lrelu" else y) * gain, clamp))
    return torch.cat(rows)


def randomise(network: nn.Module, seed: int = 5) -> nn.Module:
    """Move every parameter: what starts at zero, or at one, could be forgotten without being missed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """No entry is off by more than a share of the largest one."""
    assert found.shape == expected.shape
    largest = expected.detach().abs().max().item()
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * max(largest, 1e-30))
