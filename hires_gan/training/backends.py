"""From a phase's losses to an optimizer step.

The gradient of a phase is the sum over samples divided by the global batch, never a mean of means, so that neither
micro-batches nor ranks change it. In every phase every live parameter of the player gets a gradient; an absent one is
zero, because optimizers treat an absent gradient in different ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hires_gan.checkpoint import Tensors, load_exactly
from hires_gan.ema import averaged_copy, update_average
from hires_gan.randomness import RandomSource, SampleRandom
from hires_gan.recipes.protocol import Batch, Outcome, Phase, Recipe, Stage, Step

Means = dict[str, Tensor]


class SingleProcess:
    """All of the global batch on one device, in as many micro-batches as memory asks for.

    Args:
        recipe: Whose players learn; they are moved to the device.
        device: Where everything is computed.
        seed: The run's seed.

    Attributes:
        average: The running average of the recipe's `averaged` player.
        nonfinite: int64 scalar on the device: gradients' entries that were not finite, and were set to zero.
        streak: int64 scalar on the device: the last steps in a row that had such an entry.
        longest_streak: int64 scalar on the device: the longest such row.
    """

    def __init__(self, recipe: Recipe, device: torch.device, seed: int) -> None:
        self.recipe, self.device = recipe, device
        self.random = RandomSource(seed)
        for player in recipe.players.values():
            player.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = averaged_copy(recipe.players[recipe.averaged])
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self.live: dict[str, dict[str, nn.Parameter]] = {}
        self.group = 1
        self.nonfinite, self.streak, self.longest_streak = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)
        )

    def enter(self, stage: Stage) -> None:
        """Make the optimizers anew, over the parameters that live in this stage."""
        self.group = stage.group
        for name, plan in stage.optimizers.items():
            parameters = dict(self.recipe.players[name].named_parameters())
            for parameter in parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
            self.live[name] = {key: parameters[key] for key in plan.live}
            self.optimizers[name] = torch.optim.Adam(
                list(self.live[name].values()), lr=plan.learning_rate, betas=plan.betas, eps=plan.eps
            )

    def step(self, phases: Sequence[Phase], batch: Batch, first: int, micro: int) -> Means:
        """Do one step: the phases in order.

        Args:
            phases: What is due.
            batch: The local samples.
            first: The global index of the first one.
            micro: How many samples go through the networks at once: whole groups of the stage, or all.

        Returns:
            The means over the global batch, on the device: scalars `loss/NAME` and `statistics/NAME`, and tensors
            `average/NAME`.
        """
        # A smaller group would not fail but give other results: the networks take what is there as one group.
        assert micro % self.group == 0 or micro >= len(batch)
        samples = torch.arange(first, first + len(batch), device=self.device)
        micro = min(micro, len(samples))
        means: Means = {}
        bad = torch.zeros_like(self.nonfinite)
        for phase in phases:
            with self._only(phase.player):
                new = self._accumulate(phase, batch, samples, micro)
                assert not means.keys() & new.keys(), "two phases have a term of the same name"
                means |= new
                bad += self._complete_gradients(phase.player, micro / len(samples))
                self.optimizers[phase.player].step()
            if phase.after is not None:
                phase.after()
        self._count(bad)
        return means

    def update_average(self, decay: float) -> None:
        """Let the running average follow."""
        update_average(self.average, self.recipe.players[self.recipe.averaged], decay)

    def _accumulate(self, phase: Phase, batch: Batch, samples: Tensor, micro: int) -> Means:
        """The means over the batch; the gradients stay as the sum over samples divided by `micro`.

        Dividing by the whole batch already here would let fp16's gradients vanish: at 1024x1024 a batch of 32 made the
        generator's wrong by a third.
        """
        size = len(samples)
        means: Means = {}
        for start in range(0, size, micro):
            outcome = phase.function(_part(batch, samples, slice(start, start + micro), self.random))
            total = torch.stack([loss.sum() for loss in outcome.losses.values()]).sum()
            (total / micro).backward()  # type: ignore[no-untyped-call]
            for name, values in _named(outcome).items():
                means[name] = means.get(name, 0) + values.detach().sum(0) / size
        return means

    @contextmanager
    def _only(self, player: str) -> Iterator[None]:
        """Let the gradients reach this player alone."""
        live = self.live[player].values()
        for parameter in live:
            parameter.requires_grad_(True)
            parameter.grad = None
        try:
            yield
        finally:
            for parameter in live:
                parameter.requires_grad_(False)
                parameter.grad = None

    def _complete_gradients(self, player: str, factor: float) -> Tensor:
        """Scale; fill in zeros for absent gradients and for entries that are not finite, and count the latter."""
        counts = [torch.zeros_like(self.nonfinite)]
        for parameter in self.live[player].values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
                continue
            parameter.grad.mul_(factor)
            counts.append(parameter.grad.isfinite().logical_not().sum())
            parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return torch.stack(counts).sum()

    def _count(self, bad: Tensor) -> None:
        """Keep the counts on the device: reading them would make the step wait."""
        self.nonfinite += bad
        self.streak = torch.where(bad > 0, self.streak + 1, torch.zeros_like(self.streak))
        self.longest_streak = torch.maximum(self.longest_streak, self.streak)

    def tensors(self) -> dict[str, Tensors]:
        """Everything that a checkpoint holds: weights, average, optimizer state."""
        parts: dict[str, Tensors] = {}
        for name, player in self.recipe.players.items():
            parts[name] = dict(player.state_dict())
            parts[f"{name}.optimizer"] = {
                f"{key}.{moment}": value
                for key, parameter in self.live[name].items()
                for moment, value in self.optimizers[name].state[parameter].items()
            }
        parts[f"{self.recipe.averaged}.average"] = dict(self.average.state_dict())
        return parts

    def load_weights(self, parts: Mapping[str, Tensors]) -> None:
        """Take back the players and the average.

        Raises:
            Failure: If a checkpoint is of another architecture: names what differs.
        """
        for name, player in self.recipe.players.items():
            load_exactly(player, parts[name], name)
        load_exactly(self.average, parts[f"{self.recipe.averaged}.average"], f"{self.recipe.averaged}.average")

    def load_optimizers(self, parts: Mapping[str, Tensors]) -> None:
        """Take back the optimizers' state, after `enter` made them for the same stage."""
        for name, parameters in self.live.items():
            state = self.optimizers[name].state
            for full, value in parts[f"{name}.optimizer"].items():
                key, _, moment = full.rpartition(".")
                # Adam keeps its step counter on the CPU.
                kept = value if moment == "step" else value.to(self.device)
                state[parameters[key]][moment] = _like(kept, parameters[key])


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """The moments in the parameter's memory format, as the optimizer itself makes them."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.ndim else value


def _part(batch: Batch, samples: Tensor, part: slice, random: RandomSource) -> Step:
    return Step(batch.part(part), SampleRandom(random, samples[part]))


def _named(outcome: Outcome) -> dict[str, Tensor]:
    kinds = {"loss": outcome.losses, "statistics": outcome.statistics, "average": outcome.averages}
    return {f"{kind}/{name}": value for kind, values in kinds.items() for name, value in values.items()}
