"""Recorded phases: the same numbers as step by step, on a GPU; on a CPU, nothing is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, LabelDistribution, stage_at
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.graphs import Recorder
from hires_gan.training.launch import DTYPES, choose_float32

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDTH = {"fmap_base": 512, "fmap_max": 32}
STYLE = {"latent_size": 32, "w_size": 32, "mapping_layers": 2, **WIDTH}
RECIPES: dict[str, dict[str, Any]] = {
    "stylegan2": {"name": "stylegan2", "generator": STYLE, "discriminator": {**WIDTH, "group_size": 2}},
    "stylegan2, augmented, classes": {
        "name": "stylegan2",
        "generator": STYLE,
        "discriminator": {**WIDTH, "group_size": 2},
        "augment": {"probability": {"initial": 0.5}},
        "labels": True,
    },
    "stylegan": {"name": "stylegan", "generator": STYLE, "discriminator": {**WIDTH, "group_size": 2}},
    "progressive": {
        "name": "progressive",
        "generator": {"latent_size": 32, **WIDTH},
        "discriminator": {**WIDTH, "group_size": 2},
        "loss": {"name": "wgan_gp"},
    },
    "munit": {
        "name": "munit",
        "generator": {"base": 8, "most": 32, "blocks": 2, "features": 32, "recompute": True},
        "discriminator": {"scales": 2, "layers": 3, "base": 8, "most": 32, "spectral": True},
        "loss": {"name": "hinge", "style_prior": 0.1, "consistency": 1, "r1": 1, "r1_interval": 4},
        "generator_optimizer": {"halve_kimg": 0.08},
        "crop": 24,
    },
}


@pytest.fixture(autouse=True)
def as_it_was():
    """What `choose_float32` sets is set for a whole process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = before


def trained(
    settings: dict[str, Any],
    device: str,
    performance: str,
    steps: int = 20,
    dtype: torch.dtype = torch.float32,
    recorded: bool = True,
    micro: int = 4,
    batch: int = 8,
) -> tuple[dict[str, Tensor], list[dict[str, float]], Backend]:
    """The weights behind some steps at full resolution, the means of every step, and what did it."""
    backend = built(settings, device, performance, dtype, batch)
    if not recorded:
        backend._recorder.enabled = False
    means = run_steps(backend, steps, 0, micro, batch)
    weights = {
        f"{part}.{name}": value.detach().float().cpu()
        for part, tensors in backend.tensors().items()
        for name, value in tensors.items()
    }
    return weights, means, backend


def built(
    settings: dict[str, Any], device: str, performance: str, dtype: torch.dtype = torch.float32, batch: int = 8
) -> Backend:
    """A backend at the last stage of a recipe."""
    block = TypeAdapter(RecipeSettings).validate_python({"resolution": 32, **settings})
    recipe = build_recipe(block, batch, dtype, 3, LabelDistribution((3, 1)) if block.labels else None, ("a", "b"))
    backend = Backend(recipe, torch.device(device), 3, performance)  # type: ignore[arg-type]
    backend.enter(recipe.stages[-1])
    return backend


def run_steps(backend: Backend, count: int, first: int = 0, micro: int = 4, batch: int = 8) -> list[dict[str, float]]:
    """The means of some steps, from number `first` on, on images that are told by their number."""
    recipe, found = backend.recipe, []
    domains = getattr(recipe, "domains", ("image",))
    for number in range(first, first + count):
        nimg = recipe.stages[-1].start + number * batch
        draw = torch.Generator().manual_seed(number)
        images = torch.rand((len(domains) * batch, 3, 32, 32), generator=draw).mul_(2).sub_(1).to(backend.device)
        labels = torch.arange(batch, device=backend.device) % 2
        means = backend.step(recipe.phases(nimg), Batch(images, labels, domains), nimg, micro)
        backend.update_average(0.9)
        recipe.advance(nimg + batch, means)
        found.append({name: float(value) for name, value in means.items() if value.ndim == 0})
    return found


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


class Pair:
    """Two backends of equal recipes: one fast, one reference."""

    def __init__(self, settings: dict[str, Any], dtype: torch.dtype) -> None:
        self.fast, self.reference = (built(settings, "cuda", dial, dtype) for dial in ("fast", "reference"))

    @torch.no_grad()
    def level(self) -> None:
        """Give the fast one the state of the reference, in place."""
        for player, network in self.reference.recipe.players.items():
            other = self.fast.recipe.players[player]
            for kept, value in zip(other.parameters(), network.parameters(), strict=True):
                kept.copy_(value)
            for kept, value in zip(other.buffers(), network.buffers(), strict=True):
                kept.copy_(value)
            states = (backend.optimizers[player].state for backend in (self.fast, self.reference))
            for kept, state in zip(*(list(state.values()) for state in states), strict=True):
                for moment, value in state.items():
                    kept[moment].copy_(value)
        if hasattr(self.reference.recipe, "path_mean"):
            self.fast.recipe.path_mean.copy_(self.reference.recipe.path_mean)
        if getattr(self.reference.recipe, "probability", None) is not None:
            self.fast.recipe.probability.p.copy_(self.reference.recipe.probability.p)
        if hasattr(self.reference.recipe, "terms"):
            for domain, moments in self.reference.recipe.terms.moments.items():
                self.fast.recipe.terms.moments[domain].copy_(moments)


def test_on_a_cpu_both_dials_are_one():
    one, first, _ = trained(RECIPES["stylegan2"], "cpu", "fast", 5)
    other, second, _ = trained(RECIPES["stylegan2"], "cpu", "reference", 5)
    assert first == second
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_on_a_cpu_functions_are_called_as_they_are():
    def function() -> None: ...

    assert Recorder(torch.device("cpu"), True).wrap(function, "test") is function


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_steps_here_too(name):
    """What the tests on a GPU train, for two steps of each phase."""
    _, means, backend = trained(RECIPES[name], "cpu", "fast", 5)
    assert len(means) == 5
    assert int(backend.nonfinite) == 0


@pytest.mark.parametrize("micro", [4, 6])
def test_a_last_micro_batch_may_be_smaller(micro):
    settings = {**RECIPES["stylegan2"], "loss": {"path_length": 0}}
    whole, means, _ = trained(settings, "cpu", "reference", 2, torch.float64, micro=8)
    parts, other, _ = trained(settings, "cpu", "reference", 2, torch.float64, micro=micro)
    for one, two in zip(means, other, strict=True):
        assert one == pytest.approx(two, rel=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


class TestOnGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("name", RECIPES)
    def test_recorded_phases_compute_the_same_bits(self, name):
        """Same kernels, once launched one by one and once as a graph."""
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        recorded, means, backend = trained(RECIPES[name], "cuda", "fast")
        assert backend._recorder.enabled, "something could not be recorded"
        by_hand, expected, _ = trained(RECIPES[name], "cuda", "fast", recorded=False)
        exact = "augmented" not in name  # grid sampling adds in no fixed order
        if exact:
            assert means == expected
        for key, value in recorded.items():
            if exact:
                assert torch.equal(value, by_hand[key]), key
            else:
                torch.testing.assert_close(value, by_hand[key], rtol=0.05, atol=0.05)

    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_fast_is_reference_within_rounding_over_a_hundred_steps(self, name, precision):
        """Losses and gradients of every step, each from the state that the reference has come to.

        Trained apart, two GANs that round differently part ways; what a step does is told by starting it together.
        """
        tolerance = {"fp32": 5e-3, "bf16": 0.1}[precision]  # the path length's gradient divides by small numbers
        pair = Pair(RECIPES[name], DTYPES[precision])
        for number in range(100):
            choose_float32(precision, "reference")
            (expected,) = run_steps(pair.reference, 1, number)
            choose_float32(precision, "fast")
            (found,) = run_steps(pair.fast, 1, number)
            for key, value in expected.items():
                assert abs(found[key] - value) <= tolerance * max(abs(value), 1.0), (number, key)
            for player, learner in pair.reference.learners.items():
                gradients = learner.gradients
                apart = pair.fast.learners[player].gradients.buffer - gradients.buffer
                assert apart.norm() <= tolerance * gradients.buffer.norm(), (number, player)
            pair.level()
        assert pair.fast._recorder.enabled
        assert int(pair.fast.nonfinite) == int(pair.reference.nonfinite) == 0

    def test_what_cannot_be_recorded_runs_step_by_step_and_says_so_once(self, capsys):
        recorder = Recorder(torch.device("cuda"), True)
        total = torch.zeros((), device="cuda")

        def asks() -> None:
            total.add_(1)
            total.add_(float(total) * 0)  # reads the value back

        calls = [recorder.wrap(asks, name) for name in ("first", "second")]
        for _ in range(3):
            for call in calls:
                call()
        assert float(total) == 6
        said = capsys.readouterr().err
        assert said.count("no CUDA graphs: the first cannot be recorded") == 1
        assert said.count("no CUDA graphs") == 1
        assert "previous error" not in said  # the cause is told, not what came of it
        assert not recorder.enabled
        assert torch.cuda.current_stream() == torch.cuda.default_stream()

    @pytest.mark.parametrize("dials", [("fast", "reference"), ("reference", "fast")])
    def test_a_checkpoint_goes_on_under_the_other_dial(self, dials):
        one, other = (built(RECIPES["stylegan2"], "cuda", dial) for dial in dials)
        run_steps(one, 6)
        other.load_weights({name: clones(tensors) for name, tensors in one.tensors().items()})
        other.load_optimizers({name: clones(tensors) for name, tensors in one.tensors().items()})
        other.recipe.load_state_dict(one.recipe.state_dict())
        first, second = run_steps(one, 6, 6), run_steps(other, 6, 6)
        for step, expected in zip(second, first, strict=True):
            for key, value in expected.items():
                assert abs(step[key] - value) <= 0.01 * max(abs(value), 1.0), key

    def test_a_new_stage_records_anew_and_a_fade_records_nothing(self):
        block = TypeAdapter(RecipeSettings).validate_python(
            {"resolution": 16, "schedule": {"stable_kimg": 0.05, "fade_kimg": 0.05}, **RECIPES["progressive"]}
        )
        recipe = build_recipe(block, 8, torch.float32, 3, None)
        backend = Backend(recipe, torch.device("cuda"), 3, "fast")
        entered = None
        for nimg in range(0, 300, 8):
            stage = recipe.stages[stage_at(recipe.stages, nimg)]
            if stage is not entered:
                backend.enter(stage)
                entered = stage
            assert backend._recorder.enabled == (not stage.fade)
            images = torch.rand((8, 3, stage.resolution, stage.resolution), device="cuda").mul_(2).sub_(1)
            means = backend.step(recipe.phases(nimg), Batch(images, None), nimg, 4)
            assert all(mean.isfinite() for mean in means.values())
        assert backend._recorder.enabled != entered.fade

    def test_a_smaller_last_micro_batch_and_graphs(self):
        settings = {**RECIPES["stylegan2"], "loss": {"path_length": 0}}
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        recorded, means, _ = trained(settings, "cuda", "fast", 6, micro=6)
        by_hand, expected, _ = trained(settings, "cuda", "fast", 6, micro=6, recorded=False)
        assert means == expected
        assert all(torch.equal(value, by_hand[key]) for key, value in recorded.items())
