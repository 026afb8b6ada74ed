"""Fades: how far a resolution is blended in is a tensor, which gives the same bits as a number, recorded or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from recipe_pairs import Pair, stay_together
from recipe_steps import RECIPES, built, check_whole, drawn_batch, run_steps, steps_never_wait
from test_graphs import gpu
from torch import Tensor

from hires_gan.recipes.protocol import Phase
from hires_gan.training.backends import Backend
from hires_gan.training.graphs import Recorder
from hires_gan.training.launch import DTYPES
from hires_gan.training.levers import Levers

pytestmark = pytest.mark.usefixtures("as_it_was")

SCHEDULE = {"schedule": {"stable_kimg": 0.016, "fade_kimg": 0.2}}
"""The last fade has 25 steps of 8 images."""
GROWING: dict[str, dict[str, Any]] = {
    "progressive": {**RECIPES["progressive"], **SCHEDULE},
    "progressive, r1 and r2": {
        **RECIPES["progressive"],
        "loss": {"name": "non_saturating", "r1": 1, "r2": 1},
        **SCHEDULE,
    },
    "stylegan": {**RECIPES["stylegan"], **SCHEDULE},
    "munit": {
        "name": "munit",
        "generator": {"base": 4, "most": 16, "blocks": 1, "features": 8, "content_downs": 3, "style_downs": 3},
        "discriminator": {"scales": 3, "layers": 2, "base": 4, "most": 16, "spectral": True},
        "loss": {"scales": "mean", "consistency": 1, "cycle": 1, "r1": 1, "r1_interval": 2},
        "schedule": {"start_resolution": 16, **SCHEDULE["schedule"]},
    },
}
GROWING["munit, recomputed"] = {
    **GROWING["munit"],
    "generator": {**GROWING["munit"]["generator"], "recompute": True},
    "loss": {**GROWING["munit"]["loss"], "scales": "sum"},
}


def in_a_fade(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, performance: str = "fast") -> Backend:
    return built(GROWING[name], device, performance, dtype, fade=True)


def outcome(backend: Backend, steps: int, first: int = 0, micro: int = 4) -> tuple[list[Any], dict[str, Tensor]]:
    """Means and what a checkpoint holds, behind some steps."""
    means = run_steps(backend, steps, first, micro)
    return means, {
        f"{part}.{name}": one for part, tensors in backend.tensors().items() for name, one in tensors.items()
    }


def check_equal(found: tuple[list[Any], dict[str, Tensor]], expected: tuple[list[Any], dict[str, Tensor]]) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


def by_numbers(backend: Backend) -> Backend:
    """The same with phases that are told no alpha: their functions have the number of the step."""
    phases: Callable[[int], Iterable[Phase]] = backend.recipe.phases
    backend.recipe.phases = lambda nimg: [replace(phase, alpha=None) for phase in phases(nimg)]  # type: ignore[method-assign]
    return backend


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", GROWING)
def test_a_tensor_gives_the_bits_of_a_number(name, precision):
    """Losses, penalties, weights, moments and average; from nothing blended in to all but a step."""
    found, expected = in_a_fade(name, dtype=DTYPES[precision]), in_a_fade(name, dtype=DTYPES[precision])
    for first in (0, 23):
        check_equal(outcome(found, 2, first), outcome(by_numbers(expected), 2, first))
    assert all(runner._alpha is not None for runner in found._runners.values())
    assert all(runner._alpha is None for runner in expected._runners.values())
    assert int(found.nonfinite) == 0


@pytest.mark.parametrize("name", GROWING)
def test_phases_are_told_how_far_it_is(name):
    backend = in_a_fade(name)
    recipe, fade = backend.recipe, backend.recipe.stages[-1]
    steps = (fade.end - fade.start) // fade.batch
    for step in range(steps):
        told = {phase.alpha for phase in recipe.phases(fade.start + step * fade.batch)}
        assert told == {step / steps}
    whole = built(GROWING[name], "cpu", "fast").recipe
    assert {phase.alpha for phase in whole.phases(whole.stages[-1].start)} == {None}


class Kept(Recorder):
    """As on a GPU: a phase's function is that of the first step, and looks at the tensors of the first step."""

    def __init__(self, device: torch.device, enabled: bool, awaited: Iterable[str] = ()) -> None:
        super().__init__(device, False, awaited)
        self.enabled, self.recorded = True, 0

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        self.recorded += 1
        return cast(torch.cuda.CUDAGraph, SimpleNamespace(replay=function))


@pytest.mark.parametrize("micro", [4, 6])
@pytest.mark.parametrize("name", ["progressive", "stylegan", "munit"])
def test_what_was_recorded_follows_the_fade(name, micro, monkeypatch):
    """Also where a last micro-batch is smaller, which is computed op by op."""
    expected = outcome(in_a_fade(name), 5, 10, micro)
    monkeypatch.setattr("hires_gan.training.backends.Recorder", Kept)
    kept = in_a_fade(name)
    first = kept.recipe.phases(kept.recipe.stages[-1].start + 10 * 8)
    check_equal(outcome(kept, 5, 10, micro), expected)
    assert cast(Kept, kept._recorder).recorded == 2 * len(first), "of each phase its gradient and its optimizer's step"
    assert {runner.phase.alpha for runner in kept._runners.values()} == {first[0].alpha}


def test_a_new_stage_has_runners_of_its_own():
    """So that none goes on with the alpha of a fade that has ended."""
    backend = built(GROWING["progressive"], "cpu", "fast")
    *_, fade, whole = backend.recipe.stages
    for stage, fades in ((fade, True), (whole, False)):
        backend.enter(stage)
        backend.step(backend.recipe.phases(stage.start), drawn_batch(backend, 0), stage.start, 4)
        assert [runner._alpha is not None for runner in backend._runners.values()] == [fades] * 2


class TestOnGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("name", GROWING)
    def test_recorded_fades_compute_the_same_bits(self, name, precision):
        """Same kernels, once launched one by one and once as a graph, at every alpha of the fade."""
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        recorded, by_hand = (in_a_fade(name, "cuda", DTYPES[precision]) for _ in range(2))
        by_hand._recorder.enabled = False
        check_equal(outcome(recorded, 25), outcome(by_hand, 25))
        assert recorded._recorder.enabled, "something could not be recorded"
        graphs = [runner._accumulate._graph for runner in recorded._runners.values()]  # type: ignore[attr-defined]
        assert all(isinstance(graph, torch.cuda.CUDAGraph) for graph in graphs)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("name", GROWING)
    def test_a_tensor_gives_the_bits_of_a_number_on_a_gpu(self, name, precision):
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        found, expected = (in_a_fade(name, "cuda", DTYPES[precision], "reference") for _ in range(2))
        check_equal(outcome(found, 5, 10), outcome(by_numbers(expected), 5, 10))

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("name", ["progressive", "stylegan", "munit"])
    def test_a_fade_that_is_recorded_is_reference_within_rounding(self, name, precision):
        pair = Pair(GROWING[name], DTYPES[precision], fade=True)
        stay_together(pair, precision, 25)
        assert pair.fast._recorder.enabled

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("name", ["progressive", "stylegan", "munit"])
    def test_compiled_and_recorded_fades_are_reference_within_rounding(self, name, precision):
        pair = Pair(GROWING[name], DTYPES[precision], Levers(compile="all"), fade=True)
        stay_together(pair, precision, 12)
        check_whole(pair.fast)

    @pytest.mark.parametrize("name", GROWING)
    @pytest.mark.parametrize("performance", ["fast", "reference"])
    def test_a_step_of_a_fade_never_waits_for_the_device(self, name, performance):
        backend = in_a_fade(name, "cuda", torch.bfloat16, performance)
        steps_never_wait(backend, 6, 12)
