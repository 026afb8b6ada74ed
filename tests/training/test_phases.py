"""A phase run again and again: its function of the moment, and the tensors that a recorded one looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hires_gan.randomness import RandomSource
from hires_gan.recipes.protocol import Batch, Outcome, Phase, Step
from hires_gan.training.graphs import Recorder
from hires_gan.training.learners import Replica
from hires_gan.training.phases import PhaseRunner

CPU = torch.device("cpu")


class Repeating(Recorder):
    """Calls what it is given as a replayed graph would: with the arguments of the first time, wherever they lie."""

    def __init__(self) -> None:
        super().__init__(CPU, False)
        self.enabled = True
        self.calls = list[str]()

    def wrap(self, function: Callable[[], None], name: str) -> Callable[[], None]:
        def called() -> None:
            self.calls.append(name)
            function()

        return called


def loss_of(parameter: Tensor, factor: float = 1.0) -> Callable[[Step], Outcome]:
    """By every image of every domain, the label and the sample's index."""

    def function(step: Step) -> Outcome:
        batch = step.batch
        seen = [batch.domain(name).flatten(1).mean(1) for name in batch.domains]
        images = torch.stack(seen).cumsum(0).sum(0)
        labels = 0 if batch.labels is None else batch.labels
        values = (images + labels + step.random.samples * 0.5) * factor
        return Outcome({"loss": values * parameter}, {"seen": values.detach()})

    return function


def learner_of(parameter: nn.Parameter) -> Replica:
    return Replica({"weight": parameter}, torch.optim.Adam([parameter], lr=0.1), summed=False, overlap=False)


def run(recorder: Recorder, batches: list[tuple[Batch, int]], micro: int, factors: list[float]) -> list[Any]:
    """What some steps leave behind: weight, gradient and means."""
    parameter = nn.Parameter(torch.ones((), dtype=torch.float64))
    learner = learner_of(parameter)
    runner, found = None, list[Any]()
    for (batch, first), factor in zip(batches, factors, strict=True):
        phase = Phase("phase", "player", loss_of(parameter, factor))
        samples = torch.arange(first, first + len(batch))
        if runner is None:
            runner = PhaseRunner(phase, learner, RandomSource(0), recorder, micro, len(batch))
        means, bad = runner.run(phase, batch, samples)
        gradient, told = float(learner.gradients.buffer), {name: float(mean) for name, mean in means.items()}
        found.append((float(parameter), gradient, told))
        assert int(bad) == 0
    return found


def batches(size: int, labels: bool, domains: tuple[str, ...]) -> list[tuple[Batch, int]]:
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(3):
        images = torch.rand((size * len(domains), 3, 4, 4), generator=draw, dtype=torch.float64)
        made.append((Batch(images, torch.arange(size) if labels else None, domains), number * size))
    return made


@pytest.mark.parametrize("micro", [2, 3, 4, 8])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("domains", [("image",), ("a", "b")])
def test_tensors_that_are_used_again_hold_what_each_micro_batch_brings(micro, labels, domains):
    made = batches(8, labels, domains)
    recorder = Repeating()
    expected = run(Recorder(CPU, False), made, micro, [1.0] * 3)
    assert run(recorder, made, micro, [1.0] * 3) == expected
    whole = 8 // micro
    assert recorder.calls.count("phase phase") == 3 * whole  # a last smaller one is never recorded
    assert recorder.calls.count("optimizer's step of the phase phase") == 3


def test_without_graphs_the_function_of_this_step_is_run():
    """A recipe may give every step a function of its own."""
    made = batches(4, False, ("image",))
    found = run(Recorder(CPU, False), made, 2, [1.0, 2.0, 3.0])
    plain = run(Recorder(CPU, False), made, 2, [1.0, 1.0, 1.0])
    ratios = [one[2]["statistics/seen"] / other[2]["statistics/seen"] for one, other in zip(found, plain, strict=True)]
    assert ratios == pytest.approx([1, 2, 3])


def fading(parameter: Tensor) -> Callable[[Step], Outcome]:
    """By the alpha of the step."""

    def function(step: Step) -> Outcome:
        assert step.alpha is not None
        assert (step.alpha.dtype, step.alpha.shape) == (torch.float64, ())
        values = step.batch.images.flatten(1).mean(1) * step.alpha
        return Outcome({"loss": values * parameter})

    return function


@pytest.mark.parametrize("recorder", [Recorder(CPU, False), Repeating()], ids=["op by op", "recorded"])
def test_a_fade_goes_on_while_the_function_stays(recorder):
    """The alpha is that of the step, at the address of the first one, in a smaller last micro-batch too."""
    parameter = nn.Parameter(torch.ones((), dtype=torch.float64))
    learner, function = learner_of(parameter), fading(parameter)
    runner, places = None, set[int]()
    for (batch, first), alpha in zip(batches(4, False, ("image",)), (0.0, 1 / 3, 0.999), strict=True):
        phase = Phase("phase", "player", function, alpha=alpha)
        runner = runner or PhaseRunner(phase, learner, RandomSource(0), recorder, 3, 4)
        weight = float(parameter.detach())
        means, _ = runner.run(phase, batch, torch.arange(first, first + 4))
        mean = float(batch.images.mean())
        assert float(means["loss/loss"]) == pytest.approx(alpha * mean * weight, rel=1e-12, abs=0)
        assert float(learner.gradients.buffer) == pytest.approx(alpha * mean, rel=1e-12, abs=0)
        assert runner._alpha is not None
        places.add(runner._alpha.data_ptr())
    assert len(places) == 1


def test_outside_of_a_fade_there_is_no_alpha():
    seen = list[Tensor | None]()

    def function(step: Step) -> Outcome:
        seen.append(step.alpha)
        return loss_of(parameter)(step)

    parameter = nn.Parameter(torch.ones((), dtype=torch.float64))
    phase = Phase("phase", "player", function)
    runner = PhaseRunner(phase, learner_of(parameter), RandomSource(0), Recorder(CPU, False), 4, 4)
    ((batch, first), *_) = batches(4, False, ("image",))
    runner.run(phase, batch, torch.arange(first, first + 4))
    assert seen == [None]


def test_means_are_copies_that_the_next_step_does_not_change():
    parameter = nn.Parameter(torch.ones((), dtype=torch.float64))
    phase = Phase("phase", "player", loss_of(parameter))
    learner = learner_of(parameter)
    runner = PhaseRunner(phase, learner, RandomSource(0), Recorder(CPU, False), 2, 4)
    (one, first), (other, second), _ = batches(4, False, ("image",))
    means, _ = runner.run(phase, one, torch.arange(first, first + 4))
    before = {name: float(mean) for name, mean in means.items()}
    runner.run(phase, other, torch.arange(second, second + 4))
    assert {name: float(mean) for name, mean in means.items()} == before


def test_a_gradient_by_the_images_does_not_stick_to_the_tensor_that_is_used_again():
    parameter = nn.Parameter(torch.ones((), dtype=torch.float64))

    def penalised(step: Step) -> Outcome:
        images = step.batch.images.requires_grad_()
        (gradient,) = torch.autograd.grad((images.square() * parameter).sum(), images, create_graph=True)
        return Outcome({"penalty": gradient.flatten(1).square().sum(1)})

    phase = Phase("phase", "player", penalised)
    learner = learner_of(parameter)
    runner = PhaseRunner(phase, learner, RandomSource(0), Repeating(), 2, 4)
    for batch, first in batches(4, False, ("image",)):
        runner.run(phase, batch, torch.arange(first, first + 4))
        assert not batch.images.requires_grad
