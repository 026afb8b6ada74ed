"""How a player learns in a stage: from the losses of micro-batches to the step of its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from hires_gan.checkpoint import Tensors
from hires_gan.recipes.protocol import OptimizerPlan
from hires_gan.training.buckets import Buckets
from hires_gan.training.flat import FlatGradients

MakeOptimizer = Callable[[list[nn.Parameter], OptimizerPlan, bool], torch.optim.Optimizer]
"""From parameters, settings, and whether a step has to be one kernel, which can be recorded."""


class Learner(Protocol):
    """What a backend asks of a player: from `begin` to `end` in a step, in this order, and the rest between steps.

    Attributes:
        optimizer: Steps the parameters, or this process's part of them.
    """

    optimizer: torch.optim.Optimizer

    def begin(self, at_once: bool) -> None:
        """Let the parameters learn, their gradients zero.

        Args:
            at_once: Whether every process computes exactly one micro-batch in this step.
        """

    def arm(self) -> None:
        """The next backward pass is the last one of this process in the step."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss, a scalar."""

    def sum(self) -> None:
        """Add up the gradients of all processes, whether or not this one had samples."""

    def step(self, factor: float) -> Tensor:
        """Scale the sum, set entries that are not finite to zero, and step.

        Returns:
            How many such entries there were, on all processes: int64, without dimensions, on the device.
        """

    def end(self) -> None:
        """Freeze the parameters."""

    def reread(self) -> None:
        """The weights were changed by others than the optimizer (clipped)."""

    def rate(self, value: float) -> None:
        """Set the learning rate of the steps to come."""

    def moments(self) -> Tensors:
        """The optimizer's state: `PARAMETER.step`, `PARAMETER.exp_avg`, ...; all processes have to ask for it."""

    def load(self, moments: Mapping[str, Tensor]) -> None:
        """Take that state back, on any number of processes."""

    def close(self) -> None:
        """Take everything off the parameters that would outlive the stage."""


class Replica:
    """A player that every process has whole: gradients are summed, and each process steps with the sum.

    Args:
        live: The parameters that learn, by name.
        optimizer: Over these.
        summed: Whether there are other processes, with which to sum gradients.
        overlap: Whether to send buckets while the backward pass goes on.
    """

    def __init__(
        self, live: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, summed: bool, overlap: bool
    ) -> None:
        self.live, self.optimizer = live, optimizer
        self.gradients = FlatGradients(list(live.values()))
        self._buckets = Buckets(self.gradients, overlap) if summed else None

    def begin(self, at_once: bool) -> None:
        """Attach the gradients' buffer, zero."""
        self.gradients.attach()

    def arm(self) -> None:
        """Send buckets as they become whole."""
        if self._buckets is not None:
            self._buckets.arm()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient to the buffer."""
        loss.backward()  # type: ignore[no-untyped-call]

    def derive(self, loss: Tensor) -> Tensor:
        """The gradient of a micro-batch's loss, as it lies in the buffer, where it is not added."""
        parameters = list(self.live.values())
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([_in_memory_order(gradient, p) for gradient, p in zip(found, parameters, strict=True)])

    def add(self, gradient: Tensor) -> None:
        """Add what `derive` gave to the buffer."""
        self.gradients.buffer.add_(gradient)

    def sum(self) -> None:
        """Send what is left, and wait."""
        if self._buckets is not None:
            self._buckets.finish()

    def step(self, factor: float) -> Tensor:
        """Step with the buffer, which is the same everywhere: so is the count."""
        bad = self.gradients.complete(factor)
        self.optimizer.step()
        return bad

    def end(self) -> None:
        """Detach the buffer."""
        self.gradients.detach()

    def reread(self) -> None:
        """The optimizer steps from the weights themselves: nothing to do."""

    def rate(self, value: float) -> None:
        """Set it; where steps are recorded, on the device."""
        set_rate(self.optimizer, value)

    def moments(self) -> Tensors:
        """What the optimizer keeps of each parameter."""
        state = self.optimizer.state
        return {f"{key}.{name}": value for key, p in self.live.items() for name, value in state[p].items()}

    def load(self, moments: Mapping[str, Tensor]) -> None:
        """Take it back, in the parameters' memory formats, as the optimizer itself makes it."""
        for full, value in moments.items():
            key, _, name = full.rpartition(".")
            parameter = self.live[key]
            kept = placed(value, name, self.optimizer, parameter.device)
            self.optimizer.state[parameter][name] = _like(kept, parameter)

    def close(self) -> None:
        """Take the hooks off."""
        if self._buckets is not None:
            self._buckets.close()


def adam(parameters: list[nn.Parameter], plan: OptimizerPlan, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of a plan; fused ones can be recorded, and the others are as torch chooses for the device."""
    # A rate that changes lies on the device: recorded steps read it there.
    moving = fused and plan.halving is not None
    return torch.optim.Adam(
        parameters,
        lr=torch.tensor(plan.learning_rate, device=parameters[0].device) if moving else plan.learning_rate,
        betas=plan.betas,
        eps=plan.eps,
        weight_decay=plan.weight_decay,
        fused=fused or None,  # False would mean a Python loop over the parameters, on a GPU, too
        capturable=fused,
    )


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of an optimizer with one group of parameters."""
    (group,) = optimizer.param_groups
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


def placed(value: Tensor, name: str, optimizer: torch.optim.Optimizer, device: torch.device) -> Tensor:
    """A moment where the optimizer keeps it: Adam has its step counter on the CPU, unless its step is one kernel."""
    on_host = name == "step" and not optimizer.defaults.get("capturable")
    return value.to("cpu" if on_host else device)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.ndim else value


def _in_memory_order(value: Tensor, like: Tensor) -> Tensor:
    """The entries of a tensor, one dimension, in the order in which those of `like` lie in memory without gaps."""
    outermost_first = sorted(range(like.ndim), key=like.stride, reverse=True)
    return value.permute(outermost_first).reshape(-1)
