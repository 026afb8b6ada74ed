"""Compiled phases: the same numbers as op by op, of every family and phase; and what cannot be compiled is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import compiled_ranks
import pytest
import torch
from forked_ranks import Ranks
from recipe_steps import built, clones, drawn_batch, one_step, run_steps
from safetensors.torch import load_file
from torch import Tensor, nn
from whole_runs import changed, run

from hires_gan import ops
from hires_gan.networks.blending import blended
from hires_gan.networks.layers import double_nearest, halve_box
from hires_gan.ops import bias_act, upfirdn2d
from hires_gan.ops.native import available
from hires_gan.randomness import Purpose, RandomSource
from hires_gan.recipes.protocol import Batch, Outcome, Phase, Step
from hires_gan.training import backends, compiling
from hires_gan.training.activity import current
from hires_gan.training.compiling import CACHE, Compiler
from hires_gan.training.graphs import Recorder
from hires_gan.training.learners import Replica
from hires_gan.training.levers import Levers
from hires_gan.training.phases import PhaseRunner
from hires_gan.training.world import World

CPU = torch.device("cpu")
WIDTH = {"fmap_base": 64, "fmap_max": 8}
STYLE = {"latent_size": 8, "w_size": 8, "mapping_layers": 2, **WIDTH}
JUDGE = {**WIDTH, "group_size": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "stylegan2": {
        "name": "stylegan2",
        "resolution": 8,
        "generator": STYLE,
        "discriminator": JUDGE,
        "augment": {"probability": {"initial": 0.5}},
    },
    "stylegan": {"name": "stylegan", "resolution": 8, "generator": STYLE, "discriminator": JUDGE},
    "progressive": {
        "name": "progressive",
        "resolution": 8,
        "generator": {"latent_size": 8, **WIDTH},
        "discriminator": JUDGE,
        "loss": {"name": "wgan_gp"},
    },
    "munit": {
        "name": "munit",
        "resolution": 32,
        "generator": {"base": 4, "most": 8, "blocks": 1, "features": 8, "content_downs": 2, "style_downs": 2},
        "discriminator": {"scales": 1, "layers": 2, "base": 4, "most": 8, "spectral": True},
        "loss": {"name": "hinge", "r1": 1, "r1_interval": 4},
    },
}
SCHEDULE = {"stable_kimg": 0.016, "fade_kimg": 0.08}
GROWING: dict[str, dict[str, Any]] = {
    "progressive": {**FAMILIES["progressive"], "schedule": SCHEDULE},
    "stylegan": {**FAMILIES["stylegan"], "schedule": {"start_resolution": 4, **SCHEDULE}},
    "munit": {
        **FAMILIES["munit"],
        "discriminator": {"scales": 2, "layers": 2, "base": 4, "most": 8},
        "loss": {"scales": "mean", "r1": 1, "r1_interval": 2},
        "schedule": {"start_resolution": 16, **SCHEDULE},
    },
}
PHASES = {
    "stylegan2": {"generator", "path_length", "discriminator", "r1"},
    "stylegan": {"generator", "discriminator"},
    "progressive": {"generator", "discriminator"},
    "munit": {"generator", "discriminator", "r1"},
}


@pytest.fixture
def op_by_op_behind_the_compiler(monkeypatch):
    """Everything of torch.compile but its code generator, which takes minutes: results are the same bits."""
    monkeypatch.setattr(backends, "Compiler", lambda enabled: Compiler(enabled, "aot_eager"))


def state(backend: backends.Backend) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value
        for part, tensors in backend.tensors().items()
        for name, value in clones(tensors).items()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("op_by_op_behind_the_compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_phase_of_every_family_compiles_and_computes_the_same(family, capsys):
    """Penalties and path lengths included; means, weights, moments and average, over more than a cycle of the lazy."""
    with ops.backend("native" if available("cpu") else "reference"):  # a draw is one op there, and not a hundred
        plain = built(FAMILIES[family], "cpu", "reference")
        compiled = built(FAMILIES[family], "cpu", "reference", levers=Levers(compile="all"))
        expected, found = run_steps(plain, 5), run_steps(compiled, 5)
    assert compiled.compiler.refused == {}
    assert compiled.compiler.seconds.keys() == {f"{name} phase" for name in PHASES[family]}
    assert found == expected
    for name, value in state(plain).items():
        assert torch.equal(state(compiled)[name], value), name
    said = capsys.readouterr().err
    assert said.count("compiled the generator phase in ") == 1
    assert CACHE in said


@pytest.mark.slow
@pytest.mark.usefixtures("op_by_op_behind_the_compiler")
@pytest.mark.parametrize("micro", [4, 6])
@pytest.mark.parametrize("family", GROWING)
def test_what_is_compiled_follows_a_fade(family, micro):
    """With the alpha of each step, in a smaller last micro-batch too."""
    with ops.backend("native" if available("cpu") else "reference"):
        plain = built(GROWING[family], "cpu", "reference", fade=True)
        compiled = built(GROWING[family], "cpu", "reference", levers=Levers(compile="all"), fade=True)
        expected, found = run_steps(plain, 3, 2, micro), run_steps(compiled, 3, 2, micro)
    assert compiled.compiler.refused == {}
    assert compiled.compiler.seconds.keys() == {f"{name} phase" for name in PHASES[family]}
    assert found == expected
    for name, value in state(plain).items():
        assert torch.equal(state(compiled)[name], value), name


class Coarse(RandomSource):
    """Normal numbers in steps of 1/1024: the last bit, in which a compiler's logarithm may differ, does not show."""

    def normal(self, purpose: Purpose, samples: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        return super().normal(purpose, samples, shape).mul(1024).round().div(1024)


@pytest.mark.slow
@pytest.mark.parametrize("fade", [False, True])
def test_generated_code_computes_the_same_in_a_fade_and_outside(fade, tmp_path, monkeypatch):
    """To float64's rounding, from the first step of a stage on, where what fades in counts for nothing yet."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    both = []
    for levers in (Levers(), Levers(compile="main")):
        made = built(GROWING["progressive"], "cpu", "reference", torch.float64, levers=levers, fade=fade)
        made.random = Coarse(3)
        for number in range(3):
            batch = drawn_batch(made, number)
            one_step(made, number, replace(batch, images=batch.images.double()))
        both.append(made)
    plain, compiled = both
    assert compiled.compiler.refused == {} and len(compiled.compiler.seconds) == 2
    for name, value in state(plain).items():
        torch.testing.assert_close(
            state(compiled)[name], value, rtol=1e-9, atol=1e-13, msg=lambda text, n=name: n + text
        )


@pytest.mark.slow
@pytest.mark.usefixtures("op_by_op_behind_the_compiler")
def test_main_leaves_out_what_is_due_now_and_then():
    backend = built(FAMILIES["stylegan2"], "cpu", "reference", levers=Levers(compile="main"))
    one_step(backend, 0, drawn_batch(backend, 0))
    assert backend.compiler.seconds.keys() == {"generator phase", "discriminator phase"}


def test_every_stage_compiles_anew_and_so_does_a_fade():
    settings = {**FAMILIES["progressive"], "schedule": {"stable_kimg": 0.05, "fade_kimg": 0.05}}
    backend = built(settings, "cpu", "reference", levers=Levers(compile="all"))
    compilers = []
    for stage in backend.recipe.stages:
        backend.enter(stage)
        assert backend.compiler.enabled
        compilers.append(backend.compiler)
    assert [stage.fade for stage in backend.recipe.stages] == [False, True, False]
    assert len(set(map(id, compilers))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("micro", [4, 8])
def test_two_processes_that_compile_are_one_that_does_not(micro, tmp_path):
    """Buckets are sent behind what is compiled; gradients, hence weights, are those of all samples.

    Each process has 4 of the 8 images of a step: as many as a micro-batch, or less.
    """
    ranks = Ranks(tmp_path)
    try:
        ranks.start(2, compiled_ranks.compiled, micro)
        for rank in ranks.numbers:
            ranks.ended(rank, 0)
    finally:
        ranks.close()
    expected = compiled_ranks.stepped(World(CPU), Levers(), micro)
    for rank in ranks.numbers:
        for name, value in load_file(tmp_path / f"{rank}.safetensors").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_what_other_processes_cannot_compile_is_said_once_by_the_first(tmp_path):
    """One that goes on op by op holds up all, and does not speak itself."""
    ranks = Ranks(tmp_path)
    try:
        ranks.start(3, compiled_ranks.refused)
        said = ranks.ended(0, 0)
        assert [ranks.ended(rank, 0) for rank in (1, 2)] == ["", ""]
    finally:
        ranks.close()
    assert said.splitlines() == [
        "ranks 1-2: not compiled: the generator phase goes on op by op (OSError: no compiler)",
        "rank 2: not compiled: the discriminator phase goes on op by op (OSError: no space)",
    ]


def test_a_run_asks_for_what_others_cannot_compile_at_every_log(settings, monkeypatch):
    asked = list[backends.Backend]()
    monkeypatch.setattr(backends.Backend, "tell_remarks", lambda backend: asked.append(backend))
    blocks = {"run": {"total_kimg": 0.096}, "samples": {"every_kimg": None}, "evaluation": {"every_kimg": None}}
    assert run(changed(settings, **blocks))
    assert len(asked) == 3


# One phase by itself


class Judge(nn.Module):
    """Filter, convolution, bias and activation, in a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(
            torch.randn((4, 3, 3, 3), generator=draw).contiguous(memory_format=torch.channels_last)
        )
        self.bias = nn.Parameter(torch.randn(4, generator=draw))
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("f", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, images: Tensor) -> Tensor:
        hidden = upfirdn2d(ops.conv2d(images, self.weight, padding=(1, 1)), self.f, down=2, padding=1)
        return bias_act(hidden, self.bias, act="swish").mean((1, 2, 3))


def penalised(judge: Judge) -> Callable[[Step], Outcome]:
    """The score and R1: a second derivative."""

    def function(step: Step) -> Outcome:
        images = step.batch.images.detach().requires_grad_(True)
        scores = judge(images)
        (slopes,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        penalty = slopes.square().sum((1, 2, 3))
        return Outcome({"score": scores, "r1": penalty * 10}, {"samples": step.random.samples.to(scores)})

    return function


def reading(judge: Judge) -> Callable[[Step], Outcome]:
    """Takes a way that depends on a value: what neither a graph nor the compiler can write down."""

    def function(step: Step) -> Outcome:
        scores = judge(step.batch.images)
        return Outcome({"score": scores * (2.0 if float(scores.detach().sum()) > 0 else 3.0)})

    return function


def fading(judge: Judge) -> Callable[[Step], Outcome]:
    """The score of what is blended of an image and its half, and R1 through the blend, by the alpha of the step."""

    def function(step: Step) -> Outcome:
        assert step.alpha is not None
        images = step.batch.images.detach().requires_grad_(True)
        scores = judge(blended(double_nearest(halve_box(images)), images, step.alpha))
        (slopes,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        labels = 0 if step.batch.labels is None else step.batch.labels
        return Outcome({"score": scores * 3 + labels, "r1": slopes.square().sum((1, 2, 3)) * 10})

    return function


def stepped(
    make: Callable[[Judge], Callable[[Step], Outcome]],
    compiler: Compiler,
    sizes: tuple[int, ...] = (6, 6, 6),
    recorder: Recorder | None = None,
    alphas: tuple[float | None, ...] = (None, None, None),
    labels: bool = False,
) -> tuple[list[dict[str, float]], Tensor, Judge]:
    """Means of some steps of micro-batches of four, the last gradient, and the weights."""
    judge = Judge()
    live = dict(judge.named_parameters())
    learner = Replica(live, torch.optim.SGD(live.values(), lr=0.1), summed=False, overlap=False)
    function, random, found = make(judge), RandomSource(0), []
    phases = [Phase("judge", "player", function, alpha=alpha) for alpha in alphas]
    runner = PhaseRunner(phases[0], learner, random, recorder or Recorder(CPU, False), 4, sizes[0], compiler=compiler)
    for number, (size, phase) in enumerate(zip(sizes, phases, strict=True)):
        images = torch.randn((size, 3, 8, 8), generator=torch.Generator().manual_seed(number))
        batch = Batch(images, torch.arange(size) if labels else None)
        means, bad = runner.run(phase, batch, torch.arange(size) + 10 * number)
        assert int(bad) == 0
        found.append({name: float(mean) for name, mean in means.items()})
    return found, learner.gradients.buffer.clone(), judge


def agree(one: tuple[Any, Tensor, Judge], other: tuple[Any, Tensor, Judge]) -> None:
    for found, expected in zip(one[0], other[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-6)
    for name, value in one[2].state_dict().items():
        torch.testing.assert_close(value, other[2].state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_phase_with_a_second_derivative(backend, tmp_path, monkeypatch, capsys):
    """A channels_last weight, one that the loss does not reach, and a last micro-batch that is smaller."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    compiler = Compiler(True, backend)
    agree(stepped(penalised, compiler), stepped(penalised, Compiler(False)))
    assert compiler.refused == {} and compiler.seconds["judge phase"] > 0
    assert f"kept in {tmp_path}" in capsys.readouterr().err
    if backend == "inductor":
        assert any(tmp_path.rglob("*.so")), "compiled code was to be kept there"


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_phase_in_a_fade(backend, labels, tmp_path, monkeypatch):
    """The alpha is that of the step; the first one is 0, which no compiler may take for all."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    compiler, fade = Compiler(True, backend), {"alphas": (0.0, 1 / 3, 0.999), "labels": labels}
    agree(stepped(fading, compiler, **fade), stepped(fading, Compiler(False), **fade))
    assert compiler.refused == {} and compiler.seconds["judge phase"] > 0


@pytest.mark.parametrize(("size", "micros"), [(8, 2), (4, 1), (3, 1)])
def test_compiled_and_recorded(size, micros):
    """What a recorder is given is compiled by its first call, and reads the tensors of the first time from then on.

    So it is with a share that is smaller than a micro-batch of four.
    """
    calls = list[str]()

    class Repeating(Recorder):
        """As on a GPU: inputs are copied to where they lay the first time."""

        def wrap(self, function: Callable[[], None], name: str) -> Callable[[], None]:
            self.enabled = True
            return lambda: (calls.append(name), function())[-1]

    compiler = Compiler(True, "aot_eager")
    recorded = stepped(penalised, compiler, (size,) * 3, Repeating(CPU, False))
    agree(recorded, stepped(penalised, Compiler(False), (size,) * 3))
    assert compiler.refused == {} and calls.count("judge phase") == 3 * micros
    assert list(compiler.seconds) == ["judge phase"]


def test_a_phase_that_cannot_be_written_down_goes_on_and_says_so_once(capsys):
    compiler = Compiler(True, "aot_eager")
    agree(stepped(reading, compiler), stepped(reading, Compiler(False)))
    assert list(compiler.refused) == ["judge phase"] and compiler.seconds == {}
    said = capsys.readouterr().err
    assert said.count("not compiled: the judge phase goes on op by op (") == 1
    assert compiler.refused["judge phase"] in said


def test_a_compiler_that_fails_does_not_end_the_run(capsys):
    compiler = Compiler(True, "no-such-backend")
    agree(stepped(penalised, compiler), stepped(penalised, Compiler(False)))
    assert "no-such-backend" in compiler.refused["judge phase"]
    assert capsys.readouterr().err.count("not compiled") == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")],
    ids=["torch", "cudnn"],
)
def test_an_exhausted_memory_is_no_matter_of_the_compiler(error, monkeypatch):
    def exhausted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Compiler, "compile", exhausted)
    compiler = Compiler(True)
    with pytest.raises(type(error), match=str(error)):
        stepped(penalised, compiler)
    assert compiler.refused == {}


def test_who_compiles_gets_on(monkeypatch):
    """Else the watch would end a run that compiles for long."""

    def slow(compiler: Compiler, function: Any, inputs: Any) -> Any:
        begun, end = current().progress, time.monotonic() + 30
        while current().progress < begun + 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        return function

    monkeypatch.setattr(Compiler, "compile", slow)
    compiler = Compiler(True)
    agree(stepped(penalised, compiler), stepped(penalised, Compiler(False)))
    assert compiler.refused == {} and compiler.seconds.keys() == {"judge phase"}


def test_who_compiles_for_ever_does_not_get_on(monkeypatch):
    monkeypatch.setattr(compiling, "_SIGN_OF_LIFE", 0.0)
    begun = current().progress
    with compiling._getting_on(0.0):
        pass
    assert current().progress == begun
    assert not [thread for thread in threading.enumerate() if thread.name == "signs of life"]


def test_another_shape_does_not_compile_again_but_goes_on_op_by_op(capsys):
    compiler = Compiler(True, "aot_eager")
    double = compiler.wrap(lambda x: [2 * x], "test")
    for size in (3, 3, 5, 3):
        (found,) = double(torch.ones(size))
        assert torch.equal(found, torch.full((size,), 2.0))
    assert list(compiler.seconds) == list(compiler.refused) == ["test"]
    assert capsys.readouterr().err.count("not compiled: the test goes on op by op") == 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_what_changes_in_place_is_seen(backend):
    """As recorded phases, compiled ones look at tensors that the recipe changes between steps."""
    scale, compiler = torch.ones(()), Compiler(True, backend)
    scaled = compiler.wrap(lambda x: [x * scale], "test")
    assert torch.equal(scaled(torch.ones(2))[0], torch.ones(2))
    scale.fill_(5)
    assert torch.equal(scaled(torch.ones(2))[0], torch.full((2,), 5.0))
    assert compiler.refused == {}


def test_nothing_is_wrapped_where_nothing_is_compiled():
    def function(x: Tensor) -> list[Tensor]:
        return [x]

    assert Compiler(False).wrap(function, "test") is function
