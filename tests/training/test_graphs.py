"""Recorded phases: the same numbers as step by step, on a GPU; on a CPU, nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import TypeAdapter
from recipe_pairs import Pair, stay_together
from recipe_steps import RECIPES, built, check_whole, clones, drawn_batch, run_steps, steps_never_wait
from torch import Tensor

from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Batch, OptimizerPlan, stage_at
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.graphs import Recorder
from hires_gan.training.launch import DTYPES
from hires_gan.training.learners import adam
from hires_gan.training.levers import Levers
from hires_gan.training.phases import PhaseRunner

pytestmark = pytest.mark.usefixtures("as_it_was")
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PRECISIONS = [
    (name, precision)
    for name in RECIPES
    for precision in ("fp32", "bf16", "fp16")
    if (name, precision) != ("munit", "fp16")  # which is refused
]


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

    @pytest.mark.parametrize(("name", "precision"), PRECISIONS)
    def test_fast_is_reference_within_rounding_over_a_hundred_steps(self, name, precision):
        """Losses, gradients and state of every step, each from the state that the reference has come to.

        Trained apart, two GANs that round differently part ways; what a step does is told by starting it together.
        """
        pair = Pair(RECIPES[name], DTYPES[precision])
        stay_together(pair, precision, 100)
        assert pair.fast._recorder.enabled

    @pytest.mark.parametrize(("name", "precision"), PRECISIONS)
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
