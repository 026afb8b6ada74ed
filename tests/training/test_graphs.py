"""Recorded phases: the same numbers as step by step, on a GPU; on a CPU, nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, LabelDistribution, OptimizerPlan, stage_at
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.graphs import Recorder
from hires_gan.training.launch import DTYPES, choose_float32
from hires_gan.training.learners import adam
from hires_gan.training.levers import AS_THE_DIAL_SAYS, Levers
from hires_gan.training.phases import PhaseRunner

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
    settings: dict[str, Any],
    device: str,
    performance: str,
    dtype: torch.dtype = torch.float32,
    batch: int = 8,
    levers: Levers = AS_THE_DIAL_SAYS,
    fade: bool = False,
) -> Backend:
    """A backend at the last stage of a recipe; or, where it grows, at the fade before."""
    block = TypeAdapter(RecipeSettings).validate_python({"resolution": 32, **settings})
    recipe = build_recipe(block, batch, dtype, 3, LabelDistribution((3, 1)) if block.labels else None, ("a", "b"))
    backend = Backend(recipe, torch.device(device), 3, performance, levers=levers)  # type: ignore[arg-type]
    if fade:
        del recipe.stages[-1]  # type: ignore[attr-defined]  # a list
        assert recipe.stages[-1].fade
    backend.enter(recipe.stages[-1])
    return backend


def run_steps(backend: Backend, count: int, first: int = 0, micro: int = 4, batch: int = 8) -> list[dict[str, float]]:
    """The means of some steps, from number `first` on, on images that are told by their number."""
    found = []
    for number in range(first, first + count):
        means = one_step(backend, number, drawn_batch(backend, number, batch), micro)
        found.append({name: float(value) for name, value in means.items() if value.ndim == 0})
    return found


def drawn_batch(backend: Backend, number: int, size: int = 8) -> Batch:
    """Images and labels that are told by the step's number."""
    domains, side = getattr(backend.recipe, "domains", ("image",)), backend.recipe.stages[-1].resolution
    draw = torch.Generator().manual_seed(number)
    images = torch.rand((len(domains) * size, 3, side, side), generator=draw).mul_(2).sub_(1).to(backend.device)
    return Batch(images, torch.arange(size, device=backend.device) % 2, domains)


def one_step(backend: Backend, number: int, batch: Batch, micro: int = 4) -> dict[str, Tensor]:
    """The means of one step."""
    recipe = backend.recipe
    nimg = recipe.stages[-1].start + number * len(batch)
    means = backend.step(recipe.phases(nimg), batch, nimg, micro)
    backend.update_average(0.9)
    recipe.advance(nimg + len(batch), means)
    return means


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


class Pair:
    """Two backends of equal recipes: one fast, one reference."""

    def __init__(
        self, settings: dict[str, Any], dtype: torch.dtype, levers: Levers = AS_THE_DIAL_SAYS, fade: bool = False
    ) -> None:
        self.fast = built(settings, "cuda", "fast", dtype, levers=levers, fade=fade)
        self.reference = built(settings, "cuda", "reference", dtype, fade=fade)

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


def tolerance(precision: str, divides: bool) -> float:
    """The share by which numbers may be apart: the path length and its gradient divide by small ones."""
    return 0.1 if precision == "bf16" else 5e-3 if divides else 1e-4


def check_close(found: dict[str, float], expected: dict[str, float], precision: str) -> None:
    """A loss near zero is a difference of scores, and rounds as these do: a tenth of the largest of the step counts."""
    assert found.keys() == expected.keys()
    least = max(1e-2, 0.1 * max(abs(value) for key, value in expected.items() if "path_length" not in key))
    for key, value in expected.items():
        divides = "path_length" in key
        size = max(abs(value), 1e-2 if divides else least)
        assert abs(found[key] - value) <= tolerance(precision, divides) * size, key


def stay_together(pair: Pair, precision: Any, steps: int) -> None:
    """Every step of one, from the state to which the other has come, gives the same losses and gradients."""
    for number in range(steps):
        choose_float32(precision, "reference")
        (expected,) = run_steps(pair.reference, 1, number)
        choose_float32(precision, "fast")
        (found,) = run_steps(pair.fast, 1, number)
        check_close(found, expected, precision)
        for player, learner in pair.reference.learners.items():
            # The buffer has the gradient of the player's last phase, which may be that of path lengths.
            allowed = tolerance(precision, player == "generator" and "loss/path_length" in expected)
            gradient = learner.gradients.buffer
            apart = pair.fast.learners[player].gradients.buffer - gradient
            assert apart.norm() <= allowed * gradient.norm(), (number, player)
        pair.level()
    assert int(pair.fast.nonfinite) == int(pair.reference.nonfinite) == 0


def test_on_a_cpu_both_dials_are_one():
    one, first, _ = trained(RECIPES["stylegan2"], "cpu", "fast", 5)
    other, second, _ = trained(RECIPES["stylegan2"], "cpu", "reference", 5)
    assert first == second
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class Logged(Recorder):
    """Says in which order functions are called and recorded, on a CPU too."""

    def __init__(self, device: torch.device, enabled: bool, awaited: Iterable[str] = ()) -> None:
        super().__init__(device, False, awaited)
        self.enabled, self.log = enabled, list[str]()

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        self.log.append("recorded")
        return cast(torch.cuda.CUDAGraph, SimpleNamespace(replay=function))

    def ran(self, phase: str) -> None:
        self.log.append(phase)
        super().ran(phase)


def test_nothing_is_recorded_before_every_phase_has_run_once(monkeypatch):
    """Also where a run goes on in the middle of a cycle: R1 is due at its end."""
    monkeypatch.setattr("hires_gan.training.backends.Recorder", Logged)
    backend = built(RECIPES["stylegan2"], "cpu", "fast", levers=Levers(graphs=True))
    recorder = cast(Logged, backend._recorder)
    recorder.enabled = True
    run_steps(backend, 6, 13)
    first = recorder.log.index("recorded")
    assert set(recorder.log[:first]) == {"generator", "discriminator", "path_length", "r1"}
    assert recorder.log[first - 1] == "r1"


def test_without_its_one_kernel_adam_is_torchs_own():
    """On a CPU the same bits as parameter by parameter; on a GPU, torch takes many parameters at once."""

    def stepped(make: Any) -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((4, 3, 3, 3), (7,), ())]
        optimizer = make(parameters)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            optimizer.step()
        return parameters

    plan = OptimizerPlan(0.002, (0.0, 0.99), 1e-8, ())
    found = stepped(lambda parameters: adam(parameters, plan, fused=False))
    one_by_one = stepped(lambda parameters: torch.optim.Adam(parameters, 0.002, (0.0, 0.99), 1e-8, foreach=False))
    assert all(torch.equal(one, other) for one, other in zip(found, one_by_one, strict=True))
    assert adam(found, plan, fused=False).defaults["fused"] is None
    assert adam(found, plan, fused=True).defaults["fused"] is True


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


def steps_never_wait(backend: Backend, first: int, end: int) -> None:
    """Behind `first` steps: in them what is made on first use is made, and phases are recorded."""
    batches = [drawn_batch(backend, number) for number in range(end)]
    for number in range(first):
        one_step(backend, number, batches[number])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(first, end):
            one_step(backend, number, batches[number])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(backend.nonfinite) == 0


def check_whole(backend: Backend) -> None:
    """All phases of its stage are compiled, and recorded."""
    assert backend._recorder.enabled
    assert backend.compiler.refused == {}
    assert len(backend.compiler.seconds) == len(backend.recipe.phases(backend.recipe.stages[-1].start))


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
        pair = Pair(RECIPES[name], DTYPES[precision])
        stay_together(pair, precision, 100)
        assert pair.fast._recorder.enabled

    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_compiled_and_recorded_is_reference_within_rounding(self, name, precision):
        pair = Pair(RECIPES[name], DTYPES[precision], Levers(compile="all"))
        stay_together(pair, precision, 20)
        check_whole(pair.fast)

    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("performance", ["fast", "reference"])
    def test_a_step_never_waits_for_the_device(self, name, performance):
        """Neither launched one by one nor recorded: only what reads a value back does."""
        backend = built(RECIPES[name], "cuda", performance, torch.bfloat16)
        steps_never_wait(backend, 17, 33)  # R1 is due at 16, too

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
        torch.rand(1, device="cuda")  # torch's own generator does not take the recording to be under way
        self.memory_of_two_streams_comes_back()

    @staticmethod
    def memory_of_two_streams_comes_back() -> None:
        """As that of each batch does, which is copied on a stream of its own."""
        side, size = torch.cuda.Stream(), 64 * 2**20
        before = torch.cuda.memory_allocated()
        for _ in range(4):
            with torch.cuda.stream(side):
                images = torch.zeros(size, dtype=torch.uint8, device="cuda")
            images.record_stream(torch.cuda.current_stream())
            del images
            torch.cuda.synchronize()
        torch.empty(1, device="cuda")  # torch looks for what has come back where somebody asks for memory
        assert torch.cuda.memory_allocated() - before < size

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

    def test_every_stage_records_anew_and_so_does_a_fade(self):
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
            images = torch.rand((8, 3, stage.resolution, stage.resolution), device="cuda").mul_(2).sub_(1)
            means = backend.step(recipe.phases(nimg), Batch(images, None), nimg, 4)
            assert all(mean.isfinite() for mean in means.values())
            if nimg + 8 == stage.end:
                graphs = [runner._accumulate._graph for runner in backend._runners.values()]
                assert [type(graph) for graph in graphs] == [torch.cuda.CUDAGraph] * 2
            assert backend._recorder.enabled

    def test_a_share_that_is_less_than_a_micro_batch_is_recorded(self):
        """As on one of several GPUs: 4 of 32 images, where 16 may go through the networks at once."""
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        told = []
        for recorded in (True, False):
            backend = built(RECIPES["stylegan"], "cuda", "fast")
            phase = backend.recipe.phases(backend.recipe.stages[-1].start)[0]
            recorder = Recorder(backend.device, recorded)
            runner = PhaseRunner(phase, backend.learners[phase.player], backend.random, recorder, 16, 4, 32)
            samples = torch.arange(4, device="cuda")
            told.append([runner.run(phase, drawn_batch(backend, number, 4), samples)[0] for number in range(4)])
            assert isinstance(getattr(runner._accumulate, "_graph", None), torch.cuda.CUDAGraph) == recorded
        for one, other in zip(*told, strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    def test_a_smaller_last_micro_batch_and_graphs(self):
        settings = {**RECIPES["stylegan2"], "loss": {"path_length": 0}}
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        recorded, means, _ = trained(settings, "cuda", "fast", 6, micro=6)
        by_hand, expected, _ = trained(settings, "cuda", "fast", 6, micro=6, recorded=False)
        assert means == expected
        assert all(torch.equal(value, by_hand[key]) for key, value in recorded.items())
