"""Progressive GAN's recipe against a transcription of the paper's schedule and a literal form of its losses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from hires_gan.networks.layers import cross_fade
from hires_gan.networks.progressive import Growth
from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.progressive import Progressive, build_generator
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.protocol import Batch, LabelDistribution, Outcome, Stage, Step, stage_at

SMALL = {
    "name": "progressive",
    "resolution": 16,
    "generator": {"latent_size": 5, "fmap_base": 32, "fmap_max": 6},
    "discriminator": {"fmap_base": 32, "fmap_max": 6, "group_size": 2},
    "schedule": {"stable_kimg": 1, "fade_kimg": 1},
}
FADE = 1500  # half-way into the fade of 8x8


def recipe(
    loss: dict[str, Any] | None = None,
    labels: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 7,
    **more: Any,
) -> Progressive:
    block = SMALL | ({"loss": loss} if loss else {}) | ({"labels": True} if labels else {}) | more
    distribution = LabelDistribution(labels) if labels else None
    return Progressive(ProgressiveSettings.model_validate(block), 10, dtype, seed, distribution)


# The schedule, as the paper's code computes it.

PAPER_BATCH = {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}
PAPER_RATE = {4: 0.001, 128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}


def paper_schedule(nimg: float) -> tuple[float, int, int, float]:
    """Level of detail, resolution, batch and learning rate at `nimg` (v2, 8 GPUs; 600 + 600 kimg, from 4x4)."""
    kimg = nimg / 1000.0
    phase_length = 600 + 600
    phase = math.floor(kimg / phase_length)
    within = kimg - phase * phase_length
    lod = 10.0 - math.floor(math.log2(4))
    lod -= phase
    lod -= max(within - 600, 0.0) / 600
    lod = max(lod, 0.0)
    resolution = 2 ** (10 - math.floor(lod))
    batch = {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}.get(resolution, 32)
    rate = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}.get(resolution, 0.001)
    return lod, resolution, batch, rate


@pytest.fixture(scope="module")
def paper() -> Progressive:
    """The paper's schedule on networks of a few channels."""
    block = SMALL | {
        "resolution": 1024,
        "generator": {"latent_size": 4, "fmap_base": 16, "fmap_max": 4},
        "discriminator": {"fmap_base": 16, "fmap_max": 4},
        "schedule": {},
        "generator_optimizer": {"learning_rate": PAPER_RATE},
        "discriminator_optimizer": {"learning_rate": PAPER_RATE},
    }
    return Progressive(ProgressiveSettings.model_validate(block), PAPER_BATCH, torch.float32, 0, None)


def test_the_nominal_starts_are_the_papers(paper: Progressive) -> None:
    kinds = [(stage.resolution, stage.fade) for stage in paper.stages]
    expected = [(4, False)] + [(4 << level, fade) for level in range(1, 9) for fade in (True, False)]
    assert kinds == expected
    for number, stage in enumerate(paper.stages):
        assert 0 <= stage.start - 600_000 * number < 512
    assert paper.stages[0].start == 0
    assert paper.stages[-1].end is None
    # 1024x1024 is fully in after 8 doublings of 1,200 kimg.
    assert 9_600_000 <= paper.stages[-1].start < 9_600_512


def test_every_step_agrees_with_the_papers_code(paper: Progressive) -> None:
    tolerance = 512  # images: the paper's code looks at nimg, a stage begins at the next boundary of a step
    for number, stage in enumerate(paper.stages):
        end = stage.end or 12_000_000
        for share in (0.0, 0.01, 0.25, 0.5, 0.9, 1.0):
            step = int(share * ((end - stage.start) // stage.batch - 1))
            nimg = stage.start + step * stage.batch
            lod, resolution, batch, rate = paper_schedule(nimg + 1)  # at an exact boundary the paper is still before it
            growth = paper.growth(nimg)
            ours = math.log2(1024 / growth.resolution) + 1 - growth.alpha
            assert ours == pytest.approx(lod, abs=2 * tolerance / 600_000), (number, nimg)
            if min(nimg - 600_000 * number, 600_000 * (number + 1) - nimg) > tolerance or number == 16:
                assert (growth.resolution, stage.batch) == (resolution, batch)
                assert {plan.learning_rate for plan in stage.optimizers.values()} == {rate}
    for plan in paper.stages[0].optimizers.values():
        assert (plan.betas, plan.eps) == ((0.0, 0.99), 1e-8)


def test_alpha_rises_linearly_from_0_and_is_1_at_the_end(paper: Progressive) -> None:
    fade = paper.stages[3]
    assert fade.fade
    assert fade.end is not None
    length = fade.end - fade.start
    steps = range(0, length, fade.batch)
    assert [paper.growth(fade.start + at) for at in steps] == [Growth(16, at / length) for at in steps]
    assert paper.growth(fade.end) == Growth(16, 1.0)
    assert paper.growth(fade.start - paper.stages[2].batch) == Growth(8, 1.0)


resolutions = st.sampled_from([4, 8, 16, 32])
kimgs = st.one_of(st.just(0.0), st.floats(0.0005, 3.0))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(resolutions, resolutions).map(sorted),
    kimgs,
    kimgs,
    st.fixed_dictionaries({r: st.integers(1, 700) for r in (4, 8, 16, 32)}),
)
def test_stages_begin_where_whole_steps_end(ends: list[int], stable: float, fade: float, batch: dict[int, int]) -> None:
    block = SMALL | {
        "resolution": ends[1],
        "schedule": {"start_resolution": ends[0], "stable_kimg": stable, "fade_kimg": fade},
        "generator": {"latent_size": 2, "fmap_base": 4, "fmap_max": 2},
        "discriminator": {"fmap_base": 4, "fmap_max": 2, "group_size": 3},
    }
    stages = Progressive(ProgressiveSettings.model_validate(block), batch, torch.float32, 0, None).stages
    assert stages[0].start == 0
    assert stages[-1].end is None
    assert stages[-1].resolution == ends[1]
    assert not stages[-1].fade
    nominal = 0.0
    for stage, following in itertools.pairwise(stages):
        nominal += 1000 * (fade if stage.fade else stable)
        assert stage.end == following.start
        assert (stage.end - stage.start) % stage.batch == 0
        assert stage.end >= nominal
        assert stage.end == stage.start or stage.end - stage.batch < nominal
        assert following.resolution == stage.resolution * (1 if stage.fade else 2) or fade == 0 or stable == 0
    assert all(stage.batch == batch[stage.resolution] for stage in stages)
    assert all(stage.group == min(3, stage.batch) for stage in stages)


def test_a_fade_of_no_length_switches_at_once_and_no_stability_fades_on() -> None:
    at_once = recipe(schedule={"stable_kimg": 1, "fade_kimg": 0}).stages
    assert [(s.resolution, s.fade, s.start) for s in at_once] == [(4, False, 0), (8, False, 1000), (16, False, 2000)]
    fading = recipe(schedule={"stable_kimg": 0, "fade_kimg": 1}).stages
    assert [(s.resolution, s.fade, s.start) for s in fading] == [(8, True, 0), (16, True, 1000), (16, False, 2000)]
    fixed = recipe(schedule={"start_resolution": 16}).stages
    assert [(s.resolution, s.fade, s.start, s.end) for s in fixed] == [(16, False, 0, None)]


def test_every_stage_trains_what_lives_in_it(paper: Progressive) -> None:
    for stage in paper.stages:
        growth = Growth(stage.resolution, 0.5 if stage.fade else 1.0)
        for name, network in paper.players.items():
            assert stage.optimizers[name].live == tuple(network.live_parameters(growth))  # type: ignore[operator]
    assert list(paper.players) == ["generator", "discriminator"]
    assert paper.averaged == "generator"


def test_a_start_above_the_end_and_a_rate_without_an_entry_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"start_resolution is 32; it must be at most resolution, 16"):
        recipe(schedule={"start_resolution": 32})
    with pytest.raises(ValidationError, match="no entry for resolution 4; the lowest of the map is 8"):
        recipe(generator_optimizer={"learning_rate": {8: 0.001}})


# One step, literally.


def images(n: int, resolution: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (n, 3, resolution, resolution)
    return torch.rand(shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64).to(dtype) * 2 - 1


def step_of(resolution: int, n: int = 4, first: int = 1500, labels: bool = False, seed: int = 7) -> Step:
    samples = torch.arange(first, first + n)
    given_labels = torch.arange(n) % 3 if labels else None
    return Step(Batch(images(n, resolution), given_labels), SampleRandom(RandomSource(seed), samples))


def outcomes(of: Progressive, step: Step, nimg: int = FADE) -> dict[str, Outcome]:
    return {phase.name: phase.function(step) for phase in of.phases(nimg)}


def literal_latents(purpose: Purpose, samples: Tensor, size: int = 5, seed: int = 7) -> Tensor:
    return RandomSource(seed).normal(purpose, samples, (size,)).double()


def literal_cross_fade(real: Tensor, alpha: float) -> Tensor:
    mixed = real.clone()
    for row in range(0, real.shape[2], 2):
        for column in range(0, real.shape[3], 2):
            block = real[:, :, row : row + 2, column : column + 2]
            mean = block.sum((2, 3), keepdim=True) / 4
            mixed[:, :, row : row + 2, column : column + 2] = alpha * block + (1 - alpha) * mean
    return mixed


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-x)))


# (discriminator on a real, on a fake, generator)
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "minimax": (lambda x: -log_sigmoid(x), lambda x: -log_sigmoid(-x), lambda x: log_sigmoid(-x)),
    "non_saturating": (lambda x: -log_sigmoid(x), lambda x: -log_sigmoid(-x), lambda x: -log_sigmoid(x)),
    "least_squares": (lambda x: (1 - x) ** 2 / 2, lambda x: x**2 / 2, lambda x: (1 - x) ** 2 / 2),
    "wgan": (lambda x: -x, lambda x: x, lambda x: -x),
    "wgan_gp": (lambda x: -x, lambda x: x, lambda x: -x),
    "hinge": (lambda x: (1 - x).clamp(min=0), lambda x: (1 + x).clamp(min=0), lambda x: -x),
}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_both_phases_compute_the_named_loss(name: str) -> None:
    model, step = recipe({"name": name}), step_of(8)
    generator, discriminator, growth = model.generator, model.discriminator, Growth(8, 0.5)
    real_loss, fake_loss, generator_loss = LOSSES[name]
    found = outcomes(model, step)
    assert list(found) == ["discriminator", "generator"]
    judged = generator(literal_latents(Purpose.LATENT_DISCRIMINATOR, step.random.samples), growth=growth)
    real = literal_cross_fade(step.batch.images, 0.5)
    real_scores, fake_scores = discriminator(real, growth)[0], discriminator(judged, growth)[0]
    close(found["discriminator"].losses["discriminator_real"], real_loss(real_scores))
    close(found["discriminator"].losses["discriminator_fake"], fake_loss(fake_scores))
    close(found["discriminator"].statistics["score_real"], real_scores)
    close(found["discriminator"].statistics["score_fake"], fake_scores)
    made = generator(literal_latents(Purpose.LATENT_GENERATOR, step.random.samples), growth=growth)
    close(found["generator"].losses["generator"], generator_loss(discriminator(made, growth)[0]))
    penalties = {"gp", "drift"} if name == "wgan_gp" else set()
    assert set(found["discriminator"].losses) == {"discriminator_real", "discriminator_fake"} | penalties
    assert set(found["generator"].losses) == {"generator"}
    assert not any(value.requires_grad for value in found["discriminator"].statistics.values())


def squared_slope(discriminator: nn.Module, at: Tensor, growth: Growth) -> Tensor:
    at = at.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(at, growth)[0].sum(), at, create_graph=True)
    return (slope**2).sum((1, 2, 3))


def test_penalties_equal_their_formulas_and_their_gradients() -> None:
    weights = {"r1": 3.0, "r2": 5.0, "gp": 7.0, "gp_target": 0.75, "drift": 0.5}
    model, step = recipe({"name": "non_saturating", **weights}), step_of(8)
    growth, d = Growth(8, 0.5), model.discriminator
    found = outcomes(model, step)["discriminator"].losses
    real = literal_cross_fade(step.batch.images, 0.5)
    fake = model.generator(literal_latents(Purpose.LATENT_DISCRIMINATOR, step.random.samples), growth=growth)
    epsilon = RandomSource(7).uniform(Purpose.PENALTY, step.random.samples).double().reshape(-1, 1, 1, 1)
    between = (1 - epsilon) * real + epsilon * fake
    expected = {
        "r1": 3.0 / 2 * squared_slope(d, real, growth),
        "r2": 5.0 / 2 * squared_slope(d, fake, growth),
        "gp": 7.0 * (squared_slope(d, between, growth).sqrt() - 0.75) ** 2 / 0.75**2,
        "drift": 0.5 * d(real, growth)[0] ** 2,
    }
    live = [dict(d.named_parameters())[name] for name in d.live_parameters(growth)]
    for name, term in expected.items():
        close(found[name], term)
        ours, theirs = (
            torch.autograd.grad(t.sum(), live, allow_unused=True, retain_graph=True) for t in (found[name], term)
        )
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_the_papers_loss_has_the_papers_weights() -> None:
    model, step = recipe(), step_of(8)
    found = outcomes(model, step)["discriminator"].losses
    real = literal_cross_fade(step.batch.images, 0.5)
    fake = model.generator(literal_latents(Purpose.LATENT_DISCRIMINATOR, step.random.samples), growth=Growth(8, 0.5))
    epsilon = RandomSource(7).uniform(Purpose.PENALTY, step.random.samples).double().reshape(-1, 1, 1, 1)
    slope = squared_slope(model.discriminator, real + epsilon * (fake - real), Growth(8, 0.5)).sqrt()
    close(found["gp"], 10 * (slope - 1) ** 2)
    close(found["drift"], 0.001 * model.discriminator(real, Growth(8, 0.5))[0] ** 2)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_classes_are_learned_and_demanded_as_in_ac_gan(weight: float) -> None:
    model, step = recipe({"name": "hinge", "label_weight": weight}, labels=(5, 3, 2)), step_of(8, labels=True)
    samples, growth = step.random.samples, Growth(8, 0.5)
    found = outcomes(model, step)

    def drawn(purpose: Purpose) -> Tensor:
        numbers = RandomSource(7).uniform(purpose, samples).tolist()
        return torch.tensor([0 if u < 0.5 else 1 if u < 0.8 else 2 for u in numbers])

    def literal(pictures: Tensor, labels: Tensor) -> Tensor:
        logits = model.discriminator(pictures, growth)[1]
        assert logits is not None
        chosen = logits.exp() / logits.exp().sum(1, keepdim=True)
        return -weight * torch.stack([chosen[i, label].log() for i, label in enumerate(labels.tolist())])

    labels = drawn(Purpose.LABEL_DISCRIMINATOR)
    fake = model.generator(literal_latents(Purpose.LATENT_DISCRIMINATOR, samples), labels, growth)
    real = literal_cross_fade(step.batch.images, 0.5)
    assert step.batch.labels is not None
    close(found["discriminator"].losses["labels_real"], literal(real, step.batch.labels))
    close(found["discriminator"].losses["labels_fake"], literal(fake, labels))
    labels = drawn(Purpose.LABEL_GENERATOR)
    made = model.generator(literal_latents(Purpose.LATENT_GENERATOR, samples), labels, growth)
    close(found["generator"].losses["labels_generator"], literal(made, labels))


@contextmanager
def forwards(network: nn.Module) -> Iterator[list[tuple[Tensor, Any]]]:
    """What went into every forward pass of a network, and what came out."""
    seen: list[tuple[Tensor, Any]] = []
    handle = network.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("loss", "passes", "terms"),
    [
        ({"name": "wgan_gp"}, 2, {"gp", "drift"}),
        ({"name": "wgan_gp", "drift": 0}, 2, {"gp"}),
        ({"name": "hinge"}, 1, set()),
        ({"name": "hinge", "r1": 1}, 2, {"r1"}),
        ({"name": "hinge", "r1": 1, "r2": 1}, 2, {"r1", "r2"}),
        ({"name": "hinge", "gp": 1}, 2, {"gp"}),
        ({"name": "hinge", "label_weight": 0}, 1, set()),
    ],
)
def test_a_term_without_weight_costs_nothing(loss: dict[str, Any], passes: int, terms: set[str]) -> None:
    labelled = "label_weight" in loss
    model = recipe(loss, labels=(2, 1, 1) if labelled else None)
    step = step_of(8, labels=labelled)
    discriminator_phase, generator_phase = model.phases(FADE)
    with forwards(model.discriminator) as judged, forwards(model.generator) as made:
        found = discriminator_phase.function(step)
    assert (len(judged), len(made)) == (passes, 1)
    assert set(found.losses) == {"discriminator_real", "discriminator_fake"} | terms
    apart = bool({"r1", "r2"} & terms)
    differentiated = ["r1" in terms, "r2" in terms] if apart else [False]
    assert [inputs.requires_grad for inputs, _ in judged[: len(differentiated)]] == differentiated
    with forwards(model.discriminator) as judged, forwards(model.generator) as made:
        found = generator_phase.function(step)
    assert (len(judged), len(made)) == (1, 1)
    assert set(found.losses) == {"generator"}


@pytest.mark.parametrize("loss", [{"name": "wgan_gp"}, {"name": "hinge", "r1": 1, "r2": 1, "gp": 1}])
def test_the_discriminators_phase_builds_no_graph_of_the_generator(loss: dict[str, Any]) -> None:
    model, step = recipe(loss), step_of(8)
    with forwards(model.generator) as made, forwards(model.discriminator) as judged:
        found = model.phases(FADE)[0].function(step)
    assert made[0][1].grad_fn is None
    assert all(inputs.grad_fn is None for inputs, _ in judged)
    torch.stack([term.sum() for term in found.losses.values()]).sum().backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    assert step.batch.images.grad is None
    assert not step.batch.images.requires_grad


def test_reals_are_cross_faded_during_a_fade_alone() -> None:
    model = recipe({"name": "hinge"})
    for nimg, resolution, alpha in ((500, 4, 1.0), (1000, 8, 0.0), (1250, 8, 0.25), (2500, 8, 1.0), (4000, 16, 1.0)):
        step = step_of(resolution)
        with forwards(model.discriminator) as judged:
            model.phases(nimg)[0].function(step)
        seen = judged[0][0][: len(step.batch.images)]
        torch.testing.assert_close(seen, literal_cross_fade(step.batch.images, alpha), rtol=0, atol=1e-14)
    assert torch.equal(cross_fade(step.batch.images, 1.0), step.batch.images)


def test_losses_do_not_depend_on_the_split_into_whole_groups() -> None:
    model = recipe({"name": "wgan_gp", "r1": 1.0}, labels=(1, 1, 1))
    whole = step_of(8, n=8, labels=True)
    assert whole.batch.labels is not None
    together = outcomes(model, whole)
    for part in (slice(0, 2), slice(2, 8)):
        batch = Batch(whole.batch.images[part], whole.batch.labels[part])
        alone = outcomes(model, Step(batch, SampleRandom(RandomSource(7), whole.random.samples[part])))
        for phase, outcome in alone.items():
            for name, values in outcome.losses.items():
                torch.testing.assert_close(values, together[phase].losses[name][part], rtol=1e-10, atol=1e-12)


def test_only_the_clipped_critic_is_clipped_after_its_step() -> None:
    discriminator_phase, generator_phase = recipe({"name": "wgan", "clip": 0.25}).phases(0)
    assert generator_phase.after is None
    assert discriminator_phase.after is not None
    assert all(phase.after is None for phase in recipe().phases(0))
    model = recipe({"name": "wgan", "clip": 0.25})
    before = {name: p.detach().clone() for name, p in model.discriminator.named_parameters()}
    after = model.phases(0)[0].after
    assert after is not None
    after()
    for path, layer in model.discriminator.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            bound = 0.25 / layer.scale if name == "weight" else 0.25  # weights are clipped as they are used
            assert torch.equal(parameter, before[f"{path}.{name}"].clamp(-bound, bound))


# Everything else that the loop asks for.


def test_the_first_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    one, again, other = recipe(seed=1), recipe(seed=1), recipe(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for player in ("generator", "discriminator"):
        first, second, third = (dict(r.players[player].state_dict()) for r in (one, again, other))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not all(torch.equal(first[name], third[name]) for name in first)


def test_samples_are_of_fixed_latents_in_any_chunks_and_of_labels_as_often_as_in_the_data() -> None:
    model = recipe(labels=(3, 1))
    samples = torch.arange(6)
    together = model.sample(model.generator, samples, FADE)
    assert together.shape == (6, 3, 8, 8)
    chunks = [model.sample(model.generator, part, FADE) for part in samples.split(4)]
    torch.testing.assert_close(torch.cat(chunks), together, rtol=1e-12, atol=1e-12)
    labels = torch.tensor([int(u >= 0.75) for u in RandomSource(7).uniform(Purpose.LABEL_SAMPLE, samples).tolist()])
    expected = model.generator(literal_latents(Purpose.LATENT_SAMPLE, samples), labels, Growth(8, 0.5))
    close(together, expected)


def test_what_inference_needs_is_plain_json() -> None:
    model = recipe(labels=(3, 1))
    assert json.loads(json.dumps(model.inference(FADE))) == {"resolution": 8, "alpha": 0.5, "classes": 2}
    assert model.inference(5000) == {"resolution": 16, "alpha": 1.0, "classes": 2}
    assert (model.describe(FADE), model.describe(5000)) == ("8x8 fade 50%", "16x16")
    state = model.state_dict()
    assert json.loads(json.dumps(state)) == state
    model.load_state_dict(state)


@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_precision_holds_for_the_highest_resolutions(dtype: torch.dtype, parameters: torch.dtype) -> None:
    model = recipe(dtype=dtype, low_precision_resolutions=2)
    for network in (model.generator, model.discriminator):
        assert network.dtypes == {16: dtype, 8: dtype}
        assert {parameter.dtype for parameter in network.parameters()} == {parameters}
    assert recipe(dtype=dtype, low_precision_resolutions=0).generator.dtypes == {}


def test_build_generator_makes_the_same_architecture_for_inference() -> None:
    model = recipe(labels=(1, 1))
    built = build_generator(model.settings, torch.float32, 2)
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in model.generator.state_dict().items()
    }


def test_stages_and_growth_agree_with_stage_at() -> None:
    model = recipe()
    stages: list[Stage] = model.stages
    for nimg in range(0, 6000, 10):
        stage = stages[stage_at(stages, nimg)]
        growth = model.growth(nimg)
        assert growth.resolution == stage.resolution
        assert (growth.alpha < 1) == stage.fade
        assert 0 <= growth.alpha <= 1
