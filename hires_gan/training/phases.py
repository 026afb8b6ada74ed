"""A phase of a stage, run again and again: micro-batch by micro-batch to a gradient, then the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hires_gan.randomness import RandomSource, SampleRandom
from hires_gan.recipes.protocol import Batch, Outcome, Phase, Step
from hires_gan.training.compiling import Compiler
from hires_gan.training.graphs import Recorder
from hires_gan.training.learners import Learner, Replica
from hires_gan.training.pace import Pace
from hires_gan.training.profiling import span

Means = dict[str, Tensor]


class PhaseRunner:
    """Runs a phase, compiled and through CUDA graphs where it is told to.

    The losses of micro-batches are divided by `micro`, and what is left of the global batch scales the gradient behind
    them. Dividing by the whole batch before the backward pass would let fp16's gradients vanish: at 1024x1024
    a batch of 32 made the generator's wrong by a third.

    Args:
        phase: What is run; compiled or with graphs, the function that it has now is run for good.
        learner: The phase's player.
        random: The run's.
        recorder: Whether, and how, to record.
        micro: How many samples go through the networks at once, on all processes.
        size: The local batch.
        whole: The global batch; None if that is the local one.
        pace: Measures waits for other processes.
        compiler: Compiles the phase; None: it is computed op by op.
    """

    def __init__(
        self,
        phase: Phase,
        learner: Learner,
        random: RandomSource,
        recorder: Recorder,
        micro: int,
        size: int,
        whole: int | None = None,
        pace: Pace | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        self.phase, self.micro, self.size = phase, micro, size
        self.whole = size if whole is None else whole
        self._full = min(micro, size)  # `micro` is that of all processes, which scale by it; this one may have fewer
        self._learner, self._random, self._recorder = learner, random, recorder
        self._pace = Pace(torch.device("cpu")) if pace is None else pace
        self._input: tuple[Batch, Tensor] | None = None
        self._means: Means = {}
        self._bad: Tensor | None = None
        self._alpha: Tensor | None = None
        self._names, self._domains = tuple[str, ...](), tuple[str, ...]()
        self._replica: Replica | None = None
        if compiler is not None and compiler.enabled and isinstance(learner, Replica):
            self._replica, self._derived = learner, compiler.wrap(self._derive, f"{phase.name} phase")
        self._accumulate = recorder.wrap(self._accumulate_input, f"{phase.name} phase")
        self._complete = recorder.wrap(self._complete_step, f"optimizer's step of the {phase.name} phase")

    def run(self, phase: Phase, batch: Batch, samples: Tensor, at_once: bool = True) -> tuple[Means, Tensor]:
        """Do one step of the player.

        Args:
            phase: As it is now; of one that is recorded or compiled, only its alpha is new.
            batch: The local samples.
            samples: int64 `[n]`, their global indices.
            at_once: Whether every process computes exactly one micro-batch.

        Returns:
            `loss/NAME`, `statistics/NAME` and `average/NAME`: the sums over the local samples, divided by the global
            batch; and how many entries of the gradient were not finite.
        """
        if not (self._recorder.enabled or self._replica):
            self.phase = phase
        self._blend(phase.alpha, samples.device)
        self._learner.begin(at_once)
        try:
            with span(f"phase: {phase.name}"):
                self._step(batch, samples)
        finally:
            self._learner.end()
        # Copies: the tensors themselves are used again in the next step.
        assert self._bad is not None
        return {name: mean.clone() for name, mean in self._means.items()}, self._bad.clone()

    def _blend(self, alpha: float | None, device: torch.device) -> None:
        """Put a fade's alpha where the phase looks, recorded and compiled too; the device is not waited for."""
        if alpha is None:
            return
        if self._alpha is None:
            self._alpha = torch.zeros((), dtype=torch.float64, device=device)
        self._alpha.fill_(alpha)

    def _step(self, batch: Batch, samples: Tensor) -> None:
        for mean in self._means.values():
            mean.zero_()
        for start in range(0, self.size, self.micro):
            part = slice(start, start + self.micro)
            if start + self.micro >= self.size:
                self._learner.arm()
            self._take(batch.part(part), samples[part])
        with self._pace.waiting("sum of gradients"):
            self._learner.sum()
        self._complete()

    def _take(self, batch: Batch, samples: Tensor) -> None:
        """Compute one micro-batch: where it lies or, with graphs, copied to where their kernels look."""
        if not (self._recorder.enabled and self._is_full(samples)):
            self._input, kept = (batch, samples), self._input
            self._accumulate_input()
            self._input = kept if self._recorder.enabled else None
            return
        if self._input is None:
            self._input = _kept(batch), samples.clone()
        else:
            _fill(self._input, batch, samples)
        self._accumulate()

    def _is_full(self, samples: Tensor) -> bool:
        """Whether it is not a last micro-batch that is smaller: that one has kernels of its own."""
        return len(samples) == self._full

    def _accumulate_input(self) -> None:
        """Add the gradient, and the means, of the micro-batch at hand."""
        assert self._input is not None
        batch, samples = self._input
        if self._replica is not None and self._is_full(samples):
            self._accumulate_derived(self._replica, batch, samples)
            return
        outcome, loss = self._losses(batch, samples, self._alpha)
        self._learner.backward(loss)
        self._add({name: values.detach().sum(0) for name, values in _named(outcome).items()})

    def _losses(self, batch: Batch, samples: Tensor, alpha: Tensor | None) -> tuple[Outcome, Tensor]:
        # A phase may ask for gradients by the images: that shall not stick to the tensor that is used again.
        seen = Batch(batch.images.detach(), batch.labels, batch.domains)
        outcome = self.phase.function(Step(seen, SampleRandom(self._random, samples), alpha))
        total = torch.stack([loss.sum() for loss in outcome.losses.values()]).sum()
        return outcome, total / self.micro

    def _accumulate_derived(self, replica: Replica, batch: Batch, samples: Tensor) -> None:
        self._domains = batch.domains
        more = [tensor for tensor in (batch.labels, self._alpha) if tensor is not None]
        gradient, *sums = self._derived(batch.images, samples, *more)
        replica.add(gradient)
        self._add(dict(zip(self._names, sums, strict=True)))

    def _derive(self, images: Tensor, samples: Tensor, *more: Tensor) -> list[Tensor]:
        """The gradient and the sums of all values: what is compiled adds them to nothing.

        Args:
            images: As in `Batch`.
            samples: int64 `[n]`.
            more: The labels, if there are any; and in a fade its alpha: a compiler may take a number that is no
                argument for one that does not change.
        """
        assert self._replica is not None
        labels, alpha = _told_apart(more, fades=self._alpha is not None)
        outcome, loss = self._losses(Batch(images, labels, self._domains), samples, alpha)
        sums = {name: values.detach().sum(0) for name, values in _named(outcome).items()}
        self._names = tuple(sums)
        return [self._replica.derive(loss), *sums.values()]

    def _add(self, sums: Means) -> None:
        for name, value in sums.items():
            mean = value / self.whole
            if name in self._means:
                self._means[name].add_(mean)
            else:
                self._means[name] = mean.clone()

    def _complete_step(self) -> None:
        bad = self._learner.step(self.micro / self.whole)
        if self._bad is None:
            self._bad = bad.clone()
        else:
            self._bad.copy_(bad)


def _told_apart(more: Sequence[Tensor], fades: bool) -> tuple[Tensor | None, Tensor | None]:
    """Labels and alpha, which come last."""
    labels = more[: len(more) - fades]
    return labels[0] if labels else None, more[-1] if fades else None


def _kept(batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.clone()
    return Batch(batch.images.clone(), labels, batch.domains)


def _fill(kept: tuple[Batch, Tensor], batch: Batch, samples: Tensor) -> None:
    kept[0].images.copy_(batch.images)
    if kept[0].labels is not None and batch.labels is not None:
        kept[0].labels.copy_(batch.labels)
    kept[1].copy_(samples)


def _named(outcome: Outcome) -> Means:
    kinds = {"loss": outcome.losses, "statistics": outcome.statistics, "average": outcome.averages}
    return {f"{kind}/{name}": value for kind, values in kinds.items() for name, value in values.items()}
