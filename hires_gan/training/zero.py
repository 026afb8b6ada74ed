"""DeepSpeed's ZeRO-1 and ZeRO-2, through accelerate: each player its own engine, over the parameters of a stage.

Engines see plain modules: phases call these, never an engine, whose hooks would take the gradient of a penalty for a
backward pass. Gradients come together only when all of a step are there, scaled by us; DeepSpeed itself neither clips
nor scales nor accumulates. Weights stay whole on every process: ZeRO-3, which hands them out layer by layer, gives them
back before the second backward pass of a penalty.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hires_gan.checkpoint import Tensors
from hires_gan.training.launcher import ZeroStage
from hires_gan.training.learners import placed, set_rate
from hires_gan.training.world import World


class Engines:
    """Makes an engine for each player and stage.

    Args:
        players: Their names.
        stage: 1 divides the optimizers' state among the processes, 2 the gradients too.
        world: The processes, joined before.
    """

    def __init__(self, players: list[str], stage: ZeroStage, world: World) -> None:
        # accelerate launch lists here what its file says, and accelerate refuses that beside a plugin's own settings.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
        os.environ.setdefault("DS_ACCELERATOR", world.device.type)  # else every process looks for one, and says so
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)

        plugins = {name: DeepSpeedPlugin(hf_ds_config=settings(stage)) for name in players}
        self._world, self._state = world, Accelerator(mixed_precision="no", deepspeed_plugins=plugins).state

    def learner(
        self, name: str, player: nn.Module, live: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> Engine:
        """How a player learns in a stage.

        Args:
            name: Of the player.
            player: All of it.
            live: The parameters that learn.
            optimizer: Over these; it goes over to a part of them.
        """
        from accelerate import Accelerator

        for parameter in player.parameters():
            # Else it sends all weights from the first process to the others, which have them, as bytes: that fails for
            # scalars, and for memory formats other than torch's default.
            parameter.ds_optim_param = True  # type: ignore[attr-defined]
        for parameter in live.values():
            parameter.requires_grad_(True)  # it takes no other
        self._state.select_deepspeed_plugin(name)
        engine, _ = Accelerator(mixed_precision="no").prepare(player, optimizer)
        for parameter in live.values():
            parameter.requires_grad_(False)
        return Engine(engine, live, self._world)


def settings(stage: ZeroStage) -> dict[str, Any]:
    """DeepSpeed's configuration: what it would do by itself, and we do, is turned off by name.

    Accelerate fills in what is not there: gradients clipped to 1.0, for one.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # of its bookkeeping alone: shares and micro-batches are ours
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "overlap_comm": False, "compute_grad_norm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
    }


class Engine:
    """A player whose optimizer's state, and in ZeRO-2 whose gradients, are divided among the processes.

    Args:
        engine: DeepSpeed's.
        live: The parameters that learn, by name, in the optimizer's order.
        world: The processes.
    """

    def __init__(self, engine: Any, live: Mapping[str, nn.Parameter], world: World) -> None:
        self.live, self._engine, self._world = live, engine, world
        self.optimizer: torch.optim.Optimizer = engine.optimizer.optimizer
        self._zero = engine.optimizer
        self._later, self._never = contextlib.ExitStack(), contextlib.ExitStack()
        self._check_layout()

    def begin(self, at_once: bool) -> None:
        """Give each parameter a gradient of zero: one that a phase does not reach has none else, and fails.

        Where processes differ in their micro-batches, gradients wait until all have theirs: then all processes send
        all of them, in the same order.
        """
        for parameter in self.live.values():
            parameter.requires_grad_(True)
            parameter.grad = torch.zeros_like(parameter)
        if not at_once:
            self._later.enter_context(self._engine.coalesce_grad_reduction())

    def arm(self) -> None:
        """Nothing: what is sent when was decided in `begin`."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient; sent meanwhile, if there is one micro-batch."""
        self._engine.backward(loss)

    def sum(self) -> None:
        """Send what has waited."""
        self._later.close()

    def step(self, factor: float) -> Tensor:
        """Scale this process's part of the gradients, which are means over processes, and step with it."""
        bad = torch.zeros((), dtype=torch.int64, device=self._part().device)
        for part in self._zero.averaged_gradients[0]:
            part.mul_(factor * self._world.size)
            bad += part.isfinite().logical_not().sum()
            part.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        dist.all_reduce(bad)
        self._engine.step()
        return bad

    def end(self) -> None:
        """Freeze the parameters.

        If the step has failed, what waits to be sent never is: the others may not be there for it.
        """
        self._never = self._later.pop_all()
        for parameter in self.live.values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def reread(self) -> None:
        """Copy the weights to where DeepSpeed steps from."""
        self._zero.refresh_fp32_params()

    def rate(self, value: float) -> None:
        """Set it."""
        set_rate(self.optimizer, value)

    def moments(self) -> Tensors:
        """The parts of all processes, put together and cut by parameters, as if one process had kept them."""
        found: dict[str, Tensors] = {}
        for name, value in self.optimizer.state[self._part()].items():
            found[name] = self._whole(value) if value.ndim else dict.fromkeys(self.live, value)
        return {f"{key}.{name}": values[key] for key in self.live for name, values in found.items()}

    def load(self, moments: Mapping[str, Tensor]) -> None:
        """Keep this process's part of them."""
        names = dict.fromkeys(full.rpartition(".")[2] for full in moments)
        for name in names:
            values = [moments[f"{key}.{name}"] for key in self.live]
            kept = self._own(values) if values[0].ndim else values[0]  # the counter is the same for all
            self.optimizer.state[self._part()][name] = placed(kept, name, self.optimizer, self._part().device).clone()

    def close(self) -> None:
        """Take DeepSpeed's hooks off."""
        self._engine.destroy()

    def _part(self) -> Tensor:
        """What the optimizer steps: this process's part of all live parameters, end to end."""
        part: Tensor = self._zero.single_partition_of_fp32_groups[0]
        return part

    def _own(self, values: list[Tensor]) -> Tensor:
        """This process's part of values that are whole."""
        flat = torch.cat([value.reshape(-1) for value in values])
        size = self._part().numel()
        padded = torch.cat([flat, flat.new_zeros(size * self._world.size - flat.numel())])
        return padded[self._world.rank * size :][:size]

    def _whole(self, part: Tensor) -> Tensors:
        parts = [torch.empty_like(part) for _ in range(self._world.size)]
        if self._world.alone:
            parts = [part]
        else:
            dist.all_gather(parts, part)
        sizes = [parameter.numel() for parameter in self.live.values()]
        pieces = torch.split(torch.cat(parts)[: sum(sizes)], sizes)
        return {key: piece.reshape(p.shape) for (key, p), piece in zip(self.live.items(), pieces, strict=True)}

    def _check_layout(self) -> None:
        """Make sure that parts are what `_own` takes them for: DeepSpeed could lay them out otherwise one day."""
        own = self._own([parameter.detach() for parameter in self.live.values()])
        assert torch.equal(own, self._part().detach()), "DeepSpeed divides parameters in another order than this one"
