"""The gradients of a player in one buffer: what is done to all of them is done at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatGradients:
    """One buffer for the gradients of the parameters that live in a stage.

    While it is attached, every parameter's gradient is its part of the buffer, zero at first: what a phase does not
    reach stays zero, and what it reaches is added there, micro-batch by micro-batch.

    Args:
        parameters: Of one dtype, on one device.

    Attributes:
        buffer: `[total]`, part by part in the parameters' order; a part has its parameter's memory format.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        kinds = {(str(p.dtype).removeprefix("torch."), str(p.device)) for p in self.parameters}
        if len(kinds) != 1:
            raise ValueError(f"parameters are of {sorted(kinds)}; one or more of one dtype on one device are allowed")
        self.buffer = self.parameters[0].new_zeros(sum(p.numel() for p in self.parameters))
        self._parts = list(_parts(self.buffer, self.parameters))

    def attach(self) -> None:
        """Let the parameters learn, their gradients zero."""
        self.buffer.zero_()
        for parameter, part in zip(self.parameters, self._parts, strict=True):
            parameter.requires_grad_(True)
            parameter.grad = part

    def detach(self) -> None:
        """Freeze the parameters, and take their gradients away; the buffer keeps them."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None

    def complete(self, factor: float) -> Tensor:
        """Scale, set entries that are not finite to zero, and count these: int64, without dimensions."""
        self.buffer.mul_(factor)
        bad = self.buffer.isfinite().logical_not().sum()
        self.buffer.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return bad


def _parts(buffer: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """Views of the buffer with shapes and strides of the parameters."""
    starts = [0]
    for parameter in parameters:
        starts.append(starts[-1] + parameter.numel())
    return [
        torch.as_strided(buffer, p.shape, p.stride(), start) for p, start in zip(parameters, starts[:-1], strict=True)
    ]
