"""What tells two programs of one recipe apart: it sees what moves otherwise, and no more than rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipe_pairs import Pair, stay_together
from recipe_steps import RECIPES

from hires_gan.ops import selection
from hires_gan.recipes.protocol import OptimizerPlan
from hires_gan.training.learners import adam

pytestmark = pytest.mark.usefixtures("as_it_was")


def pair_of(name: str, dtype: torch.dtype = torch.float32) -> Pair:
    return Pair(RECIPES[name], dtype, device="cpu")


def test_equal_programs_stay_together():
    stay_together(pair_of("progressive"), "fp32", 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("stylegan2", 17), ("munit", 5)])
def test_programs_that_round_otherwise_stay_together(name, steps, monkeypatch):
    """Native ops and plain torch, in bf16, with R1 and path lengths."""
    pair = pair_of(name, torch.bfloat16)
    step = pair.fast.step

    def native(*arguments: Any) -> Any:
        with selection.backend("native"):
            return step(*arguments)

    monkeypatch.setattr(pair.fast, "step", native)
    stay_together(pair, "bf16", steps)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_an_optimizer_that_moves_nothing_is_seen(player, precision, monkeypatch):
    """Also that of the player that steps last, whose weights no later phase of the step looks at."""
    pair = pair_of("progressive")
    stay_together(pair, precision, 1)
    monkeypatch.setattr(pair.fast.learners[player].optimizer, "step", lambda: None)
    with pytest.raises(AssertionError, match=f"{player}|loss/generator"):
        stay_together(pair, precision, 2)


@pytest.mark.slow
def test_weights_that_stand_still_are_seen_beside_buffers_that_move(monkeypatch):
    """As those of spectral norms do, at each step."""
    pair = pair_of("munit")
    stay_together(pair, "bf16", 1)
    monkeypatch.setattr(pair.fast.learners["discriminator"].optimizer, "step", lambda: None)
    with pytest.raises(AssertionError, match="discriminator: weights|discriminator.optimizer"):
        stay_together(pair, "bf16", 2)


def test_an_average_that_does_not_follow_is_seen(monkeypatch):
    pair = pair_of("progressive")
    monkeypatch.setattr(pair.fast, "update_average", lambda decay: None)
    with pytest.raises(AssertionError, match=r"generator\.average"):
        stay_together(pair, "bf16", 3)


def test_a_gradient_that_lacks_a_tenth_is_seen(monkeypatch):
    """At every step, of which none alone is far apart."""
    pair = pair_of("progressive")
    stay_together(pair, "bf16", 1)
    (runner,) = (runner for key, runner in pair.fast._runners.items() if "generator" in key)
    losses = runner._losses

    def less(*arguments: Any) -> Any:
        outcome, total = losses(*arguments)
        return outcome, total * 0.9

    monkeypatch.setattr(runner, "_losses", less)
    with pytest.raises(AssertionError, match="gradient"):
        stay_together(pair, "bf16", 5)


def test_one_kernel_for_all_weights_is_adam():
    """What `fast` steps with on a GPU, here on a CPU, for which torch has it as well."""
    plan = OptimizerPlan(0.002, (0.0, 0.99), 1e-8, ())
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((4, 3, 3, 3), (7,), ())]
    gradients = [[torch.randn(one.shape, generator=draw) for one in start] for _ in range(20)]

    def stepped(fused: bool) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(one.clone()) for one in start]
        optimizer = adam(weights, plan, fused=fused)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return [*(weight.detach() for weight in weights), *moments]

    for fused, default in zip(stepped(True), stepped(False), strict=True):
        torch.testing.assert_close(fused, default, rtol=1e-6, atol=1e-7)
