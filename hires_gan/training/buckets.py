"""The sum of gradients over processes, bucket by bucket, while the backward pass goes on.

Gradients lie in one buffer, in the parameters' order; buckets are parts of it, cut once for a stage, the last
parameters first, since their gradients are there first. A bucket is sent when all its gradients are there and those
before it are sent: so every process sends the same buckets in the same order, and the sums of a number of processes
come out the same to the last bit, whenever they are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hires_gan.training.flat import FlatGradients

BYTES = 25 * 2**20
"""Of a bucket, about: large enough for a network's full rate, small enough to be sent while others are computed."""


class Buckets:
    """Sums the gradients of a player over all processes.

    Args:
        gradients: Of the player.
        overlap: Whether to send buckets while the backward pass goes on; phases that are recorded send them behind it.
        size: Bytes of a bucket, about.
    """

    def __init__(self, gradients: FlatGradients, overlap: bool, size: int = BYTES) -> None:
        self._parts, members = cut(gradients, size)
        self._bucket_of = {p: number for number, group in enumerate(members) for p in group}
        self._counts = [len(group) for group in members]
        self._missing = list(self._counts)
        self._works: list[Any] = []
        self._armed = False
        self._hooks = [_hooked(parameter, self._arrived) for parameter in gradients.parameters] if overlap else []

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()

    def arm(self) -> None:
        """The next backward pass is the last one of the step."""
        self._missing, self._works, self._armed = list(self._counts), [], True

    def finish(self) -> None:
        """Send what was not sent, and wait for all; behind it the buffer holds the sums."""
        self._armed = False
        self._send(len(self._parts))
        for work in self._works:
            work.wait()
        self._works = []

    def _arrived(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        whole = next((n for n, missing in enumerate(self._missing) if missing), len(self._parts))
        self._send(whole)

    def _send(self, end: int) -> None:
        for part in self._parts[len(self._works) : end]:
            self._works.append(dist.all_reduce(part, async_op=True))


def _hooked(parameter: nn.Parameter, hook: Callable[[Tensor], None]) -> Any:
    """Torch takes hooks only of what requires a gradient, and keeps them where it does not any more."""
    required = parameter.requires_grad
    handle = parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(required)
    return handle


def cut(gradients: FlatGradients, size: int) -> tuple[list[Tensor], list[list[nn.Parameter]]]:
    """Parts of the buffer and the parameters in them, from the end of the buffer to its beginning."""
    parts: list[Tensor] = []
    members: list[list[nn.Parameter]] = []
    end = start = gradients.buffer.numel()
    group: list[nn.Parameter] = []
    for parameter in reversed(gradients.parameters):
        start -= parameter.numel()
        group.append(parameter)
        if (end - start) * gradients.buffer.element_size() >= size or start == 0:
            parts.append(gradients.buffer[start:end])
            members.append(group)
            end, group = start, []
    return parts, members
