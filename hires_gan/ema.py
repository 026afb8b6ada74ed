"""The running average of a network's weights: what samples, evaluation and inference use."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def half_life_decay(batch: int, half_life: float) -> float:
    """The factor by which an average forgets in one step of `batch` images, for a half-life in images; 0 for 0."""
    return float(0.5 ** (batch / half_life)) if half_life else 0.0


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy of the network that starts an average: equal weights, no gradients."""
    copied = copy.deepcopy(network)
    return copied.eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network: parameters by `1 - decay`, buffers all the way.

    Args:
        average: What `averaged_copy` gave, changed in place.
        network: The network behind it.
        decay: In [0, 1]; see `half_life_decay`.
    """
    means, values = list(average.parameters()), list(network.parameters())
    if len(means) != len(values):
        raise ValueError(f"the average has {len(means)} parameters and the network {len(values)}; copy it anew")
    if means:
        get_ema_multi_avg_fn(decay)(means, values, 0)  # type: ignore[no-untyped-call]
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
