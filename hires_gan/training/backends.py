"""From a phase's losses to an optimizer step.

The gradient of a phase is the sum over samples divided by the global batch, never a mean of means, so that neither
micro-batches nor ranks change it. In every phase every live parameter of the player gets a gradient; an absent one is
zero, because optimizers treat an absent gradient in different ways.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hires_gan.checkpoint import Tensors, load_exactly
from hires_gan.ema import averaged_copy, update_average
from hires_gan.progress import say
from hires_gan.randomness import RandomSource
from hires_gan.recipes.protocol import Batch, OptimizerPlan, Phase, Recipe, Stage
from hires_gan.training.compiling import Compiler
from hires_gan.training.graphs import Recorder
from hires_gan.training.launcher import refuse_compiled
from hires_gan.training.learners import Learner, MakeOptimizer, Replica, adam
from hires_gan.training.levers import AS_THE_DIAL_SAYS, Levers, pulled
from hires_gan.training.pace import Pace
from hires_gan.training.phases import Means, PhaseRunner
from hires_gan.training.settings import Performance
from hires_gan.training.shares import at_once, share
from hires_gan.training.standing import ranks
from hires_gan.training.world import World
from hires_gan.training.zero import Engines


class Backend:
    """Every process computes its share of the global batch, and all step with the sum of all gradients.

    Args:
        recipe: Whose players learn; they are moved to the device.
        device: Where everything is computed.
        seed: The run's seed.
        performance: "fast" records phases as CUDA graphs and steps with fused optimizers, on a GPU.
        world: The processes; None for one alone.
        engines: DeepSpeed's, which divide the optimizers' state among the processes; None: each process has all of it.
        make_optimizer: What steps.
        levers: What of it is wanted otherwise, and what is compiled.

    Raises:
        UsageError: Phases shall be compiled, and DeepSpeed runs them.

    Attributes:
        pulled: The levers as they stand.
        compiler: What has become of the phases of this stage that are to be compiled.
        average: The running average of the recipe's `averaged` player.
        learners: By player: how it learns in this stage.
        nonfinite: int64 scalar on the device: gradients' entries that were not finite, and were set to zero.
        streak: int64 scalar on the device: the last steps in a row that had such an entry.
        longest_streak: int64 scalar on the device: the longest such row.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        performance: Performance = "reference",
        world: World | None = None,
        engines: Engines | None = None,
        make_optimizer: MakeOptimizer = adam,
        levers: Levers = AS_THE_DIAL_SAYS,
    ) -> None:
        self.recipe, self.device = recipe, device
        self.world = World(device) if world is None else world
        self.random = RandomSource(seed)
        self.pace = Pace(device)
        self.pulled = pulled(levers, performance, device.type)
        refuse_compiled(engines is not None, levers)
        for player in recipe.players.values():
            player.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = averaged_copy(recipe.players[recipe.averaged])
        self.learners: dict[str, Learner] = {}
        self.live: dict[str, dict[str, nn.Parameter]] = {}
        self.group = self.whole = 1
        self._engines, self._make_optimizer = engines, make_optimizer
        self._shapes: dict[tuple[str, ...], dict[str, list[int]]] = {}
        self._plans: Mapping[str, OptimizerPlan] = {}
        self._runners: dict[tuple[str, int, int], PhaseRunner] = {}
        self._recorder, self.compiler = Recorder(device, False), Compiler(False)
        self._remarks: list[list[str]] = []
        self.nonfinite, self.streak, self.longest_streak = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)
        )

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By player: what steps it, on this process."""
        return {name: learner.optimizer for name, learner in self.learners.items()}

    def enter(self, stage: Stage) -> None:
        """Make the optimizers anew, over the parameters that live in this stage."""
        self.group, self.whole, self._plans = stage.group, stage.batch, stage.optimizers
        self._leave()
        own = self._engines is None  # DeepSpeed's engines are neither recorded nor compiled
        due = [phase.name for phase in self.recipe.phases(stage.start)]  # all that there are
        self._recorder = Recorder(self.device, self.pulled.graphs and own, due)
        self.compiler = Compiler(self.pulled.compile != "none" and own)
        for name, plan in stage.optimizers.items():
            parameters = dict(self.recipe.players[name].named_parameters())
            for parameter in parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
            self.live[name] = {key: parameters[key] for key in plan.live}
            self.learners[name] = self._learner(name, plan)

    def _leave(self) -> None:
        """Let go of the old stage."""
        for learner in self.learners.values():
            learner.close()
        self._shapes.clear()
        self.learners.clear()
        if self._runners:
            # The old stage's graphs, gradients and moments refer to themselves; their memory is wanted now.
            self._forget_runners()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what graphs kept stays reserved for them otherwise

    def _forget_runners(self) -> None:
        if self.device.type == "cuda":
            # Graphs may run still, and what takes their memory away waits for the stream that recorded them alone.
            torch.cuda.synchronize(self.device)
        self._runners.clear()

    def _learner(self, name: str, plan: OptimizerPlan) -> Learner:
        live = self.live[name]
        optimizer = self._make_optimizer(list(live.values()), plan, self.pulled.fused)
        if self._engines is not None:
            return self._engines.learner(name, self.recipe.players[name], live, optimizer)
        # What is compiled adds no gradient by itself: its buckets go behind it, and those of the other phases do not.
        return Replica(live, optimizer, summed=not self.world.alone, overlap=not self._recorder.enabled)

    def step(self, phases: Sequence[Phase], batch: Batch, first: int, micro: int) -> Means:
        """Do one step: the phases in order.

        Args:
            phases: What is due.
            batch: The local samples, those of `share`.
            first: The global index of the step's first sample, whosever it is.
            micro: How many samples go through the networks at once: whole groups of the stage, or all.

        Returns:
            The means over the global batch, on the device: scalars `loss/NAME` and `statistics/NAME`, and tensors
            `average/NAME`.
        """
        self._follow_schedule(first)
        # A smaller group would not fail but give other results: the networks take what is there as one group.
        assert micro % self.group == 0 or micro >= len(batch)
        whole = len(batch) if self.world.alone else self.whole
        own = self.share(whole)
        assert len(own) == len(batch)
        samples = torch.arange(first + own.start, first + own.stop, device=self.device)
        micro = min(micro, whole)
        means: Means = {}
        once = at_once(whole, self.group, self.world.size, micro)
        bad = torch.zeros_like(self.nonfinite)
        for phase in phases:
            new, found = self._runner(phase, micro, len(samples), whole).run(phase, batch, samples, once)
            assert not means.keys() & new.keys(), "two phases have a term of the same name"
            means |= new
            bad += found
            self._recorder.ran(phase.name)
            if phase.after is not None:
                phase.after()
                self.learners[phase.player].reread()
        self._count(bad)
        return self._over_all(phases, means)

    def share(self, whole: int) -> range:
        """Which of a step's samples are this process's, counted from the first."""
        return share(whole, self.group, self.world.rank, self.world.size)

    def _over_all(self, phases: Sequence[Phase], means: Means) -> Means:
        """The means over the global batch: each process has the part of its own samples."""
        if self.world.alone:
            return means
        names = tuple(phase.name for phase in phases)
        if names not in self._shapes:  # a process without samples does not know what there is
            self._shapes[names] = self.world.from_first({name: list(mean.shape) for name, mean in means.items()})
        shapes: dict[str, list[int]] = self._shapes[names]
        parts = [means.get(name, torch.zeros(shape, device=self.device)) for name, shape in shapes.items()]
        with self.pace.waiting("means of all"):
            return dict(zip(shapes, self.world.sum(parts), strict=True))

    def _follow_schedule(self, nimg: int) -> None:
        """Set the learning rates of the step that begins at `nimg`."""
        for name, plan in self._plans.items():
            self.learners[name].rate(plan.rate_at(nimg))

    def _runner(self, phase: Phase, micro: int, size: int, whole: int) -> PhaseRunner:
        key = (phase.name, micro, size)
        if key not in self._runners:
            common = self.learners[phase.player], self.random, self._recorder
            compiler = self.compiler if self._compiles(phase) else None
            self._runners[key] = PhaseRunner(phase, *common, micro, size, whole, self.pace, compiler)
        return self._runners[key]

    def _compiles(self, phase: Phase) -> bool:
        return self.pulled.compile == "all" or (self.pulled.compile == "main" and phase.interval == 1)

    def update_average(self, decay: float) -> None:
        """Let the running average follow."""
        update_average(self.average, self.recipe.players[self.recipe.averaged], decay)

    @property
    def remarks(self) -> list[str]:
        """What of this stage this process neither records nor compiles though it was to, and why."""
        return self._recorder.remarks + self.compiler.remarks

    def tell_remarks(self) -> None:
        """Let the first process say the others' remarks, each once: one that launches op by op holds up all.

        All processes have to take part.
        """
        if self.world.alone or not self.pulled.whole:
            return
        before, self._remarks = self._remarks, self.world.gathered(self.remarks)
        for line in dict.fromkeys(line for lines in self._remarks[1:] for line in lines):
            found, known = (
                [n for n, lines in enumerate(told) if n and line in lines] for told in (self._remarks, before)
            )
            if set(found) - set(known):
                say(f"{ranks(found)}: {line}")

    def _count(self, bad: Tensor) -> None:
        """Keep the counts on the device: reading them would make the step wait."""
        self.nonfinite += bad
        self.streak = torch.where(bad > 0, self.streak + 1, torch.zeros_like(self.streak))
        self.longest_streak = torch.maximum(self.longest_streak, self.streak)

    def tensors(self) -> dict[str, Tensors]:
        """Everything that a checkpoint holds: weights, average, optimizer state; all processes have to ask for it."""
        parts: dict[str, Tensors] = {}
        for name, player in self.recipe.players.items():
            parts[name] = dict(player.state_dict())
            parts[f"{name}.optimizer"] = self.learners[name].moments()
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
        self._forget_runners()  # what they have recorded reads the state that is there now
        for name, learner in self.learners.items():
            learner.load(parts[f"{name}.optimizer"])
