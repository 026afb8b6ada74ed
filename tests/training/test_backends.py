"""One process: any micro-batches, frozen players, Adam step by step, bad gradients and round trips."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hires_gan.recipes.progressive import Progressive
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.protocol import Batch, LabelDistribution, OptimizerPlan, Outcome, Phase, Stage, Step
from hires_gan.training.backends import Backend

CPU = torch.device("cpu")
SMALL = {
    "name": "progressive",
    "resolution": 16,
    "generator": {"latent_size": 6, "fmap_base": 64, "fmap_max": 8},
    "discriminator": {"fmap_base": 64, "fmap_max": 8, "group_size": 2},
    "schedule": {"stable_kimg": 0.1, "fade_kimg": 0.1},
}


def progressive(dtype: torch.dtype, labels: tuple[int, ...] | None = None, **more: Any) -> Progressive:
    block = ProgressiveSettings.model_validate(SMALL | more)
    return Progressive(block, 8, dtype, 3, LabelDistribution(labels) if labels else None)


def reals(n: int, resolution: int, dtype: torch.dtype = torch.float32, labels: bool = False) -> Batch:
    shape = (n, 3, resolution, resolution)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 - 1
    return Batch(pixels.to(dtype), torch.arange(n) % 2 if labels else None)


def parameters(recipe: Any) -> dict[str, Tensor]:
    return {
        f"{player}.{name}": parameter.detach().clone()
        for player, network in recipe.players.items()
        for name, parameter in network.named_parameters()
    }


def record_gradients(backend: Backend) -> dict[str, Tensor]:
    """The gradients with which each optimizer steps, by player and parameter."""
    seen: dict[str, Tensor] = {}

    def hook_of(player: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for name, parameter in backend.live[player].items():
                assert parameter.grad is not None, name
                seen[f"{player}.{name}"] = parameter.grad.clone()

        return hook

    for player, optimizer in backend.optimizers.items():
        optimizer.register_step_pre_hook(hook_of(player))
    return seen


def one_step(
    dtype: torch.dtype, micro: int, stage: int, **more: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Parameters, gradients and means after one step of 8 samples at the start of the middle of a stage."""
    recipe = progressive(dtype, **more)
    backend = Backend(recipe, CPU, seed=3)
    at = recipe.stages[stage]
    backend.enter(at)
    gradients = record_gradients(backend)
    nimg = at.start + at.batch * 4
    batch = reals(8, at.resolution, dtype, labels="labels" in more)
    means = backend.step(recipe.phases(nimg), batch, nimg, micro)
    return parameters(recipe), gradients, means


LOSSES: list[dict[str, Any]] = [
    {"loss": {"name": "wgan_gp"}},
    {"loss": {"name": "non_saturating", "r1": 1.0, "r2": 0.5}, "labels": (3, 1)},
]


def test_a_micro_batch_of_broken_groups_is_not_computed() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[0])
    for micro in (1, 3):
        with pytest.raises(AssertionError):
            backend.step(recipe.phases(0), reals(8, 4), 0, micro)
    backend.step(recipe.phases(0), reals(8, 4), 0, 9)


def largest(values: Tensor) -> float:
    return float(values.abs().max())


@pytest.mark.parametrize("more", LOSSES, ids=["wgan_gp", "r1_r2_labels"])
@pytest.mark.parametrize("stage", [0, 3, 4])
def test_any_micro_batch_gives_the_same_parameters_after_a_step_of_adam(stage: int, more: dict[str, Any]) -> None:
    whole, gradients, means = one_step(torch.float64, 8, stage, **more)
    for micro in (4, 2):
        parts, part_gradients, part_means = one_step(torch.float64, micro, stage, **more)
        assert means.keys() == part_means.keys()
        for name, value in means.items():
            torch.testing.assert_close(part_means[name], value, rtol=1e-12, atol=1e-14)
        for name, gradient in gradients.items():
            assert largest(part_gradients[name] - gradient) <= 1e-12 * max(largest(gradient), 1e-3), name
        for name, value in whole.items():
            assert largest(parts[name] - value) <= 1e-12 * max(largest(value), 1.0), name


@pytest.mark.parametrize("more", LOSSES, ids=["wgan_gp", "r1_r2_labels"])
def test_in_float32_the_gradients_agree_as_far_as_float32_goes(more: dict[str, Any]) -> None:
    whole, gradients, _ = one_step(torch.float32, 8, 3, **more)
    assert gradients.keys() <= whole.keys()
    for micro in (4, 2):
        _, parts, _ = one_step(torch.float32, micro, 3, **more)
        for name, gradient in gradients.items():
            # As after a step of SGD with rate 1; biases start at 0 and are measured against a weight's 1.
            assert largest(parts[name] - gradient) <= 1e-6 * max(largest(whole[name]), 1.0), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_precision_does_a_full_step_with_finite_results(dtype: torch.dtype) -> None:
    recipe = progressive(dtype, low_precision_resolutions=3, loss={"name": "wgan_gp", "r1": 1.0})
    backend = Backend(recipe, CPU, seed=3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for number in (3, 4):
        stage = recipe.stages[number]
        backend.enter(stage)
        gradients = record_gradients(backend)
        means = backend.step(recipe.phases(stage.start + 8), reals(8, 16, wide), stage.start + 8, 4)
        assert all(mean.isfinite() for mean in means.values())
        assert {gradient.dtype for gradient in gradients.values()} == {wide}
        assert sum(bool(gradient.any()) for gradient in gradients.values()) > 0.9 * len(gradients)
    assert int(backend.nonfinite) == 0
    for player in recipe.players.values():
        assert {parameter.dtype for parameter in player.parameters()} == {wide}
        assert all(parameter.isfinite().all() for parameter in player.parameters())


def test_frozen_players_get_no_gradient_and_everything_is_frozen_between_steps() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[4])
    checked: list[str] = []

    def check(player: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for other, network in recipe.players.items():
                for parameter in network.parameters():
                    alive = other == player and any(parameter is p for p in backend.live[player].values())
                    assert parameter.requires_grad == alive
                    assert (parameter.grad is not None) == alive
            checked.append(player)

        return hook

    for player, optimizer in backend.optimizers.items():
        optimizer.register_step_pre_hook(check(player))
    backend.step(recipe.phases(450), reals(8, 16), 450, 8)
    assert checked == ["discriminator", "generator"]
    for network in recipe.players.values():
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_a_step_of_one_player_moves_its_live_parameters_alone() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[2])
    before = parameters(recipe)
    discriminator_phase = recipe.phases(250)[0]
    backend.step([discriminator_phase], reals(8, 8), 250, 8)
    live = {f"discriminator.{name}" for name in recipe.stages[2].optimizers["discriminator"].live}
    moved = {name for name, value in parameters(recipe).items() if not torch.equal(value, before[name])}
    assert moved <= live
    # Half of the paper's terms ignore the last bias, but the drift does not: everything moves.
    assert live - moved == set()


def test_clipping_comes_after_the_step() -> None:
    clipped = progressive(torch.float32, loss={"name": "wgan", "clip": 0.01})
    free = progressive(torch.float32, loss={"name": "wgan", "clip": 1e9})
    for recipe in (clipped, free):
        backend = Backend(recipe, CPU, seed=3)
        backend.enter(recipe.stages[0])
        backend.step([recipe.phases(0)[0]], reals(8, 4), 0, 8)
    stepped = dict(free.discriminator.named_parameters())
    for path, layer in clipped.discriminator.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            bound = 0.01 / layer.scale if name == "weight" else 0.01  # weights are clipped as they are used
            torch.testing.assert_close(parameter, stepped[f"{path}.{name}"].clamp(-bound, bound), rtol=0, atol=0)
    assert any(largest(parameter) > 0.01 for parameter in stepped.values())


# A recipe of two numbers, of which every step is known.


class Toy:
    """Two players of two parameters each; what their loss is, is up to the test."""

    averaged = "left"

    def __init__(self, losses: Mapping[str, Callable[[nn.Module, Step], Tensor]], beta1: float = 0.9) -> None:
        torch.manual_seed(0)
        self.players: dict[str, nn.Module] = {
            name: nn.ParameterDict({"used": torch.tensor([1.0, 2.0]), "idle": torch.tensor([3.0])}).double()
            for name in ("left", "right")
        }
        self.losses, self.samples = losses, list[tuple[str, list[int]]]()
        self.stages: Sequence[Stage] = [self._stage(0, 40, 0.1, beta1), self._stage(40, None, 0.2, beta1)]

    def _stage(self, start: int, end: int | None, rate: float, beta1: float) -> Stage:
        plan = OptimizerPlan(rate, (beta1, 0.99), 1e-8, ("used", "idle"))
        return Stage(start, end, 4, 4, 1, False, dict.fromkeys(self.players, plan))

    def phases(self, nimg: int) -> list[Phase]:
        return [Phase(name, name, self._phase(name)) for name in self.losses]

    def _phase(self, name: str) -> Callable[[Step], Outcome]:
        def function(step: Step) -> Outcome:
            self.samples.append((name, step.random.samples.tolist()))
            return Outcome({name: self.losses[name](self.players[name], step)})

        return function

    def advance(self, nimg: int, means: Mapping[str, Tensor]) -> None: ...
    def sample(self, network: nn.Module, samples: Tensor, nimg: int) -> Tensor:
        raise NotImplementedError

    def describe(self, nimg: int) -> str:
        return "toy"

    def inference(self, nimg: int) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def weighted(module: nn.Module, step: Step) -> Tensor:
    """One loss per sample: the parameters against the mean colour of the image."""
    colour = step.batch.images.mean((1, 2, 3)).double()
    used: Tensor = module["used"]  # type: ignore[index]
    return used[0] * colour + used[1].square() * colour.square()


def toy_batch(n: int = 4, value: float = 0.5) -> Batch:
    return Batch(torch.arange(1.0, n + 1).reshape(n, 1, 1, 1).expand(n, 3, 4, 4) * value, None)


def toy_backend(
    losses: Mapping[str, Callable[[nn.Module, Step], Tensor]] | None = None,
) -> tuple[Toy, Backend]:
    toy = Toy(losses or {"left": weighted, "right": weighted})
    backend = Backend(toy, CPU, seed=0)
    backend.enter(toy.stages[0])
    return toy, backend


def test_the_phases_see_consecutive_global_samples_in_micro_batches() -> None:
    toy, backend = toy_backend()
    backend.step(toy.phases(0), toy_batch(5), 1000, 2)
    expected = [[1000, 1001], [1002, 1003], [1004]]
    assert toy.samples == [("left", part) for part in expected] + [("right", part) for part in expected]


@pytest.mark.parametrize("micro", [1, 2, 3, 5])
def test_a_mean_is_over_the_whole_batch_even_if_the_parts_are_uneven(micro: int) -> None:
    toy, backend = toy_backend()
    gradients = record_gradients(backend)
    means = backend.step(toy.phases(0), toy_batch(5), 0, micro)
    colours = [0.5, 1.0, 1.5, 2.0, 2.5]
    assert float(means["loss/left"]) == pytest.approx(sum(c + 4 * c * c for c in colours) / 5, rel=1e-14)
    expected = [sum(colours) / 5, 2 * 2 * sum(c * c for c in colours) / 5]
    assert gradients["left.used"].tolist() == pytest.approx(expected, rel=1e-14)


def literal_adam(start: float, gradients: Sequence[float], rate: float, beta1: float) -> float:
    """Kingma and Ba 2015, algorithm 1."""
    value, first, second = start, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        first = beta1 * first + (1 - beta1) * gradient
        second = 0.99 * second + 0.01 * gradient**2
        value -= rate * (first / (1 - beta1**t)) / (math.sqrt(second / (1 - 0.99**t)) + 1e-8)
    return value


def test_adam_steps_every_live_parameter_and_takes_an_absent_gradient_as_zero() -> None:
    uses_idle = lambda module, step: weighted(module, step) + module["idle"].sum() * 2  # noqa: E731
    toy, backend = toy_backend({"left": uses_idle})
    gradients = record_gradients(backend)
    backend.step(toy.phases(0), toy_batch(), 0, 4)
    toy.losses = {"left": weighted}  # from now on nothing depends on `idle`
    history = [2.0, 0.0, 0.0]
    for step in (1, 2):
        backend.step(toy.phases(0), toy_batch(), 4 * step, 4)
        assert gradients["left.idle"].tolist() == [0.0]
        expected = literal_adam(3.0, history[: step + 1], 0.1, 0.9)
        assert toy.players["left"]["idle"].item() == pytest.approx(expected, rel=1e-13)  # type: ignore[index]
    state = backend.optimizers["left"].state
    assert {int(entry["step"]) for entry in state.values()} == {3}
    assert toy.players["left"]["idle"].item() < literal_adam(3.0, [2.0], 0.1, 0.9)  # type: ignore[index]
    assert toy.players["right"]["used"].tolist() == [1.0, 2.0]  # type: ignore[index]


def test_several_steps_equal_adam_by_hand() -> None:
    toy, backend = toy_backend()
    first: list[float] = []
    for step in range(4):
        colours = [0.5 * (step + 1) * k for k in (1, 2, 3, 4)]
        first.append(sum(colours) / 4)
        backend.step(toy.phases(0), toy_batch(value=0.5 * (step + 1)), 4 * step, 3)
    assert toy.players["left"]["used"][0].item() == pytest.approx(literal_adam(1.0, first, 0.1, 0.9), rel=1e-13)  # type: ignore[index]


def test_entering_a_stage_makes_the_optimizers_anew() -> None:
    toy, backend = toy_backend()
    backend.step(toy.phases(0), toy_batch(), 0, 4)
    old = backend.optimizers["left"]
    backend.enter(toy.stages[1])
    assert backend.optimizers["left"] is not old
    assert not backend.optimizers["left"].state
    assert backend.optimizers["left"].param_groups[0]["lr"] == 0.2
    before = toy.players["left"]["used"][0].item()  # type: ignore[index]
    gradients = record_gradients(backend)
    backend.step(toy.phases(0), toy_batch(), 4, 4)
    expected = literal_adam(before, [gradients["left.used"][0].item()], 0.2, 0.9)
    assert toy.players["left"]["used"][0].item() == pytest.approx(expected, rel=1e-13)  # type: ignore[index]


def test_entering_a_stage_frees_what_lives_no_more() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    for stage in recipe.stages:
        backend.enter(stage)
        assert not any(p.requires_grad for player in recipe.players.values() for p in player.parameters())
        for name, plan in stage.optimizers.items():
            assert list(backend.live[name]) == list(plan.live)
            assert len(backend.optimizers[name].param_groups[0]["params"]) == len(plan.live)


def poison(value: float, when: Callable[[list[int]], bool]) -> Callable[[nn.Module, Step], Tensor]:
    """A loss whose gradient for the first parameter is `value` times infinity-like at some samples."""

    def loss(module: nn.Module, step: Step) -> Tensor:
        clean = weighted(module, step)
        if not when(step.random.samples.tolist()):
            return clean
        used: Tensor = module["used"]  # type: ignore[index]
        return clean + used[0] * torch.tensor([value] + [0.0] * (len(clean) - 1), dtype=torch.float64)

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_counted_and_becomes_zero(value: float) -> None:
    toy, backend = toy_backend({"left": poison(value, lambda samples: 5 in samples), "right": weighted})
    gradients = record_gradients(backend)
    backend.step(toy.phases(0), toy_batch(), 0, 2)
    assert (int(backend.nonfinite), int(backend.streak), int(backend.longest_streak)) == (0, 0, 0)
    backend.step(toy.phases(4), toy_batch(), 4, 2)
    assert (int(backend.nonfinite), int(backend.streak), int(backend.longest_streak)) == (1, 1, 1)
    assert gradients["left.used"][0].item() == 0.0
    assert gradients["left.used"][1].item() > 0
    assert gradients["right.used"].isfinite().all()
    assert all(p.isfinite().all() for player in toy.players.values() for p in player.parameters())
    backend.step(toy.phases(8), toy_batch(), 8, 2)
    assert (int(backend.nonfinite), int(backend.streak), int(backend.longest_streak)) == (1, 0, 1)


def test_streaks_count_steps_and_not_phases_or_entries() -> None:
    bad = {4, 8, 20, 24, 28, 32}
    loss = poison(math.nan, lambda samples: samples[0] in bad)
    toy, backend = toy_backend({"left": loss, "right": loss})
    streaks = []
    for nimg in range(0, 40, 4):
        backend.step(toy.phases(nimg), toy_batch(), nimg, 4)
        streaks.append(int(backend.streak))
    assert streaks == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0]
    assert int(backend.longest_streak) == 4
    assert int(backend.nonfinite) == 2 * len(bad)


def test_the_running_average_follows_the_averaged_player_alone() -> None:
    toy, backend = toy_backend()
    start = {name: value.clone() for name, value in backend.average.state_dict().items()}
    backend.step(toy.phases(0), toy_batch(), 0, 4)
    assert all(torch.equal(value, start[name]) for name, value in backend.average.state_dict().items())
    backend.update_average(0.75)
    for name, value in backend.average.state_dict().items():
        now = toy.players["left"].state_dict()[name]
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * now, rtol=1e-14, atol=0)


def test_a_large_batch_does_not_make_gradients_in_fp16_vanish() -> None:
    def faint(module: nn.Module, step: Step) -> Tensor:
        used: Tensor = module["used"]  # type: ignore[index]
        return (used[0].half() * step.batch.images.new_full((len(step.batch.images),), 2.0**-20).half()).double()

    toy, backend = toy_backend({"left": faint})
    gradients = record_gradients(backend)
    backend.step(toy.phases(0), toy_batch(64), 0, 1)  # 2^-20 / 64 is zero in fp16
    assert gradients["left.used"].tolist() == [2.0**-20, 0.0]


def test_a_new_stage_lets_go_of_the_old_ones_memory() -> None:
    recipe = progressive(torch.float32)
    backend = Backend(recipe, CPU, seed=3)
    backend.enter(recipe.stages[0])
    backend.step(recipe.phases(0), reals(8, 4), 0, 8)
    kept = [weakref.ref(one) for one in (*backend._runners.values(), *backend.learners.values())]
    assert len(kept) == 4
    gc.collect()
    gc.disable()  # else it may happen by itself, sooner or later
    try:
        backend.enter(recipe.stages[1])
        assert [one() for one in kept] == [None] * 4
    finally:
        gc.enable()
