"""StyleGAN2's recipe against a literal form of its losses, and what lazy regularisation makes of the optimizers."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.families import build_for_inference
from hires_gan.recipes.protocol import Batch, LabelDistribution, Outcome, Step
from hires_gan.recipes.stylegan2 import StyleGAN2, build_generator, r1_gamma
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings
from hires_gan.recipes.styles import GENERATOR, draw_styles, mixing_cutoffs
from hires_gan.training.backends import Backend

BATCH = 8
SIDE = 16
SMALL = {
    "name": "stylegan2",
    "resolution": SIDE,
    "generator": {"latent_size": 6, "w_size": 5, "mapping_layers": 2, "fmap_base": 64, "fmap_max": 6},
    "discriminator": {"fmap_base": 64, "fmap_max": 6, "group_size": 4},
}
AUGMENT = {"preset": "bgc", "probability": {"initial": 0.6, "kimg": 0.1, "interval": 2}}
CPU = torch.device("cpu")


def recipe(
    labels: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float64, seed: int = 7, **more: Any
) -> StyleGAN2:
    block = SMALL | ({"labels": True} if labels else {}) | more
    return StyleGAN2(
        StyleGAN2Settings.model_validate(block), BATCH, dtype, seed, LabelDistribution(labels) if labels else None
    )


def reals(nimg: int, labels: bool = False) -> Batch:
    random = RandomSource(99)
    samples = torch.arange(nimg, nimg + BATCH)
    images = random.uniform(Purpose.MIRROR, samples, (3, SIDE, SIDE)).double() * 2 - 1
    return Batch(images, samples % 3 if labels else None)


def step_at(nimg: int, part: slice = slice(None), labels: bool = False, seed: int = 7) -> Step:
    samples = torch.arange(nimg, nimg + BATCH)[part]
    batch = reals(nimg, labels)
    chosen = Batch(batch.images[part], None if batch.labels is None else batch.labels[part])
    return Step(chosen, SampleRandom(RandomSource(seed), samples))


def outcomes(model: StyleGAN2, nimg: int, **how: Any) -> dict[str, Outcome]:
    return {phase.name: phase.function(step_at(nimg, **how)) for phase in model.phases(nimg)}


def trained(model: StyleGAN2, steps: int, micro: int, labels: bool = False) -> Backend:
    backend = Backend(model, CPU, 7)
    backend.enter(model.stages[0])
    for number in range(steps):
        nimg = number * BATCH
        model.advance(nimg + BATCH, backend.step(model.phases(nimg), reals(nimg, labels), nimg, micro))
    return backend


def largest_difference(one: StyleGAN2, other: StyleGAN2) -> float:
    pairs = [
        (a, b)
        for name in one.players
        for a, b in zip(one.players[name].state_dict().values(), other.players[name].state_dict().values(), strict=True)
    ]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


# The schedule of the phases.


def test_phases_are_due_at_their_intervals_in_the_authors_order() -> None:
    model = recipe()
    names = [[phase.name for phase in model.phases(step * BATCH)] for step in range(33)]
    for step, found in enumerate(names):
        path, r1 = ["path_length"] * (step % 4 == 0), ["r1"] * (step % 16 == 0)
        assert found == ["generator", *path, "discriminator", *r1]


def test_a_term_of_weight_0_has_no_phase_and_corrects_no_optimizer() -> None:
    model = recipe(loss={"r1": 0, "path_length": 0})
    assert [phase.name for phase in model.phases(0)] == ["generator", "discriminator"]
    for plan in model.stages[0].optimizers.values():
        assert (plan.learning_rate, plan.betas) == (0.002, (0.0, 0.99))
    assert model.stages[0].group == 4


def test_lazy_regularisation_corrects_learning_rates_and_betas() -> None:
    plans = recipe().stages[0].optimizers
    assert plans["discriminator"].learning_rate == pytest.approx(0.0018824, abs=1e-7)
    assert plans["discriminator"].betas == pytest.approx((0.0, 0.990586), abs=1e-6)
    assert plans["generator"].learning_rate == pytest.approx(0.0016)
    assert plans["generator"].betas == pytest.approx((0.0, 0.991992), abs=1e-6)


@pytest.mark.parametrize(
    ("resolution", "batch", "gamma"), [(1024, 4, 52.4288), (1024, 32, 6.5536), (256, 64, 0.2048), (512, 32, 1.6384)]
)
def test_r1_auto_is_the_authors_rule(resolution: int, batch: int, gamma: float) -> None:
    settings = StyleGAN2Settings.model_validate(SMALL | {"resolution": resolution, "loss": {"r1": "auto"}})
    assert r1_gamma(settings, batch) == pytest.approx(gamma)


# The losses, written out.


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def fakes(model: StyleGAN2, random: SampleRandom, latent: Purpose, mixing: Purpose, noise: Purpose) -> Tensor:
    """One by one, each sample's image from its own numbers."""
    images = []
    for sample in random.samples.tolist():
        own = SampleRandom(random.source, torch.tensor([sample]))
        first, second = own.normal(latent, 2, 6)[0].double()
        chance, place = own.uniform(mixing, 2)[0].tolist()
        cutoff = 1 + int(place * (model.generator.num_ws - 1)) if chance < 0.9 else model.generator.num_ws
        w1, w2 = model.generator.mapping(first[None]), model.generator.mapping(second[None])
        ws = torch.stack([w1 if layer < cutoff else w2 for layer in range(model.generator.num_ws)], 1)
        synthesis = model.generator.synthesis
        numbers = own.normal(noise, synthesis.noise_total).double()
        images.append(synthesis(ws, synthesis.split_noise(numbers)))
    return torch.cat(images)


def test_the_generators_and_the_discriminators_loss_are_the_formulas() -> None:
    model = recipe()
    found, step = outcomes(model, BATCH), step_at(BATCH)
    fake = fakes(model, step.random, Purpose.LATENT_GENERATOR, Purpose.MIXING_GENERATOR, Purpose.NOISE_GENERATOR)
    torch.testing.assert_close(found["generator"].losses["generator"], softplus(-model.discriminator(fake)))
    fake = fakes(
        model, step.random, Purpose.LATENT_DISCRIMINATOR, Purpose.MIXING_DISCRIMINATOR, Purpose.NOISE_DISCRIMINATOR
    )
    terms = found["discriminator"].losses
    torch.testing.assert_close(terms["discriminator_fake"], softplus(model.discriminator(fake)))
    real_scores = model.discriminator(step.batch.images)
    torch.testing.assert_close(terms["discriminator_real"], softplus(-real_scores))
    torch.testing.assert_close(found["discriminator"].statistics["sign_real"], real_scores.sign())


def test_r1_weighs_as_much_as_the_steps_without_it() -> None:
    model = recipe(loss={"r1": 3.0, "r1_interval": 5})
    found, step = outcomes(model, 0), step_at(0)
    images = step.batch.images.clone().requires_grad_(True)
    gradient = torch.autograd.grad(model.discriminator(images).sum(), images)[0]
    expected = torch.stack([(one**2).sum() for one in gradient]) * 3.0 / 2 * 5
    torch.testing.assert_close(found["r1"].losses["r1"], expected)


def image_of(model: StyleGAN2, noise: list[Tensor], ws: Tensor) -> Tensor:
    return model.generator.synthesis(ws[None], noise)[0]


def test_path_lengths_are_the_norms_of_the_projected_jacobian_of_every_second_sample() -> None:
    model = recipe(loss={"path_length": 1.5, "path_length_interval": 3})
    model.path_mean = torch.tensor(0.25, dtype=torch.float64)
    outcome, step = outcomes(model, 0)["path_length"], step_at(0)
    lengths = []
    for sample in range(0, BATCH, 2):
        own = SampleRandom(step.random.source, torch.tensor([sample]))
        first, second = own.normal(Purpose.LATENT_PATH, 2, 6)[0].double()
        chance, place = own.uniform(Purpose.MIXING_PATH, 2)[0].tolist()
        layers = model.generator.num_ws
        cutoff = 1 + int(place * (layers - 1)) if chance < 0.9 else layers
        w1, w2 = model.generator.mapping(first[None])[0], model.generator.mapping(second[None])[0]
        ws = torch.stack([w1 if layer < cutoff else w2 for layer in range(layers)]).detach()
        synthesis = model.generator.synthesis
        noise = synthesis.split_noise(own.normal(Purpose.NOISE_PATH, synthesis.noise_total).double())
        jacobian = torch.autograd.functional.jacobian(
            lambda ws, noise=noise: model.generator.synthesis(ws[None], noise)[0], ws
        )
        direction = own.normal(Purpose.DIRECTION_PATH, 3, SIDE, SIDE)[0].double() / math.sqrt(SIDE * SIDE)
        projected = torch.tensordot(direction, jacobian, 3)
        lengths.append(math.sqrt(sum(float((layer**2).sum()) for layer in projected) / layers))
    expected = torch.tensor(lengths, dtype=torch.float64)
    torch.testing.assert_close(outcome.statistics["path_length"] / 2, expected)
    # Half of the samples stand for all: the sum over them, divided by the batch, is the mean over them.
    torch.testing.assert_close(outcome.losses["path_length"], (expected - 0.25) ** 2 * 1.5 * 3 * 2)


def test_the_path_penalty_trains_mapping_and_synthesis() -> None:
    model = recipe()
    model.generator.requires_grad_(True)
    outcomes(model, 0)["path_length"].losses["path_length"].sum().backward()
    named = dict(model.generator.named_parameters())
    without = {name for name, parameter in named.items() if parameter.grad is None or not parameter.grad.any()}
    # The last ToRGB's bias moves no gradient of the image; noise strengths are 0 and so is what they multiply.
    assert all("bias" in name or "noise" in name for name in without), without


def test_r1_goes_through_the_augmentation_and_is_taken_before_it() -> None:
    model = recipe(augment={"preset": "blit", "probability": {"fixed": 1.0}})
    found, step = outcomes(model, 0)["r1"], step_at(0)
    seen: list[Tensor] = []
    inner = model.discriminator.forward
    model.discriminator.forward = lambda images, labels=None: seen.append(images) or inner(images, labels)  # type: ignore[method-assign]
    model.phases(0)[-1].function(step)
    assert not torch.equal(seen[0], step.batch.images), "nothing was augmented"
    assert found.losses["r1"].isfinite().all()
    # Flips, turns and shifts move pixels; what they repeat at the border counts twice.
    plain = outcomes(recipe(), 0)["r1"].losses["r1"]
    assert 0.2 < float((found.losses["r1"].mean() / plain.mean()).detach()) < 5


# What no batch may couple.


@pytest.mark.parametrize("more", [{}, {"augment": AUGMENT}, {"labels": (2, 3, 4)}], ids=["plain", "augment", "labels"])
def test_micro_batches_change_nothing_but_rounding(more: dict[str, Any]) -> None:
    whole, halves = recipe(**more), recipe(**more)
    a, b = trained(whole, 5, BATCH, "labels" in more), trained(halves, 5, 4, "labels" in more)
    assert largest_difference(whole, halves) < 1e-9
    assert whole.state_dict().keys() == halves.state_dict().keys()
    assert whole.path_mean == pytest.approx(float(halves.path_mean), abs=1e-9)
    assert a.nonfinite == b.nonfinite == 0


def test_groups_hold_samples_whose_path_is_measured() -> None:
    assert recipe().stages[0].group == 4
    assert recipe(discriminator=SMALL["discriminator"] | {"group_size": 1}).stages[0].group == 2
    assert recipe(loss={"path_length_share": 3}).stages[0].group == 4, "3 does not divide the batch: all are measured"


def test_cutoffs_are_drawn_for_each_sample_evenly_over_all_layers_but_the_first() -> None:
    uniform = RandomSource(1).uniform(Purpose.MIXING_GENERATOR, torch.arange(20_000), (2,))
    cutoffs = mixing_cutoffs(uniform, 0.9, 6)
    counts = Counter(cutoffs.tolist())
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert counts[6] == pytest.approx(2_000, abs=150)
    for place in range(1, 6):
        assert counts[place] == pytest.approx(3_600, abs=200)
    assert set(mixing_cutoffs(uniform, 0.0, 6).tolist()) == {6}


def test_styles_are_mixed_from_two_latents_of_the_same_sample() -> None:
    model = recipe()
    random = SampleRandom(RandomSource(7), torch.arange(40))
    styles = draw_styles(model.generator, random, GENERATOR, 0.9, None)
    changes = (styles.ws[:, 1:] != styles.ws[:, :-1]).any(2).sum(1)
    assert set(changes.tolist()) == {0, 1}
    torch.testing.assert_close(styles.ws[:, 0], styles.w)
    alone = draw_styles(model.generator, SampleRandom(RandomSource(7), torch.tensor([17])), GENERATOR, 0.9, None)
    torch.testing.assert_close(alone.ws[0], styles.ws[17])
    live = draw_styles(model.generator, random, GENERATOR, 1.0, None, layers=3)
    assert (live.ws[:, 2:] == live.ws[:, 2:3]).all(), "a change behind the layers that live would do nothing"


# State.


def test_means_follow_the_global_batch_and_come_back_from_json() -> None:
    model = recipe(augment=AUGMENT)
    trained(model, 5, 4)
    state = json.loads(json.dumps(model.state_dict()))
    other = recipe(augment=AUGMENT)
    other.load_state_dict(state)
    assert other.state_dict() == model.state_dict()
    assert torch.equal(other.path_mean, model.path_mean)
    assert model.path_mean > 0
    assert model.generator.w_average.abs().max() > 0
    assert 0 < state["augment"]["p"] <= 1
    assert state["augment"]["p"] != AUGMENT["probability"]["initial"]


def test_float32_means_come_back_bit_for_bit() -> None:
    model, other = recipe(dtype=torch.float32), recipe(dtype=torch.float32)
    model.path_mean = torch.tensor(0.1, dtype=torch.float32) / 3
    other.load_state_dict(json.loads(json.dumps(model.state_dict())))
    assert torch.equal(other.path_mean, model.path_mean)


def test_the_mean_of_w_moves_by_what_the_settings_say() -> None:
    model = recipe(w_average_decay=0.75)
    mean = torch.arange(5, dtype=torch.float64)
    model.advance(BATCH, {"average/w": mean})
    torch.testing.assert_close(model.generator.w_average, mean / 4)


# Classes, frozen layers, and what is shown.


def test_classes_reach_both_networks_and_fakes_have_them_as_often_as_the_data() -> None:
    model = recipe(labels=(1, 0, 3))
    images = model.sample(model.generator, torch.arange(6), 0)
    assert images.shape == (6, 3, SIDE, SIDE)
    styles = draw_styles(
        model.generator, SampleRandom(RandomSource(7), torch.arange(400)), GENERATOR, 0.0, model.labels
    )
    assert styles.labels is not None
    counts = Counter(styles.labels.tolist())
    assert counts[1] == 0
    assert counts[2] == pytest.approx(300, abs=40)
    assert outcomes(model, 0, labels=True)["discriminator"].losses["discriminator_real"].shape == (BATCH,)
    with pytest.raises(ValueError, match="labels missing"):
        outcomes(model, 0)


def test_frozen_layers_of_the_discriminator_do_not_learn() -> None:
    model = recipe(discriminator=SMALL["discriminator"] | {"freeze": 4})
    before = copy.deepcopy(model.discriminator.state_dict())
    trained(model, 2, BATCH)
    after = model.discriminator.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name]) and name != "filter"}
    frozen = {name for layer in model.discriminator.layers_from_image()[:4] for name in layer}
    assert len(frozen) >= 4
    assert frozen <= still
    assert frozen.isdisjoint(model.stages[0].optimizers["discriminator"].live)
    assert not (still - frozen), "everything else learns"


def test_samples_are_of_fixed_latents_in_any_chunks() -> None:
    model = recipe()
    whole = model.sample(model.generator, torch.arange(6), 0)
    parts = [model.sample(model.generator, torch.arange(first, first + 2), 10**6) for first in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_what_inference_needs_is_plain_json_and_rebuilds_the_generator() -> None:
    model = recipe(labels=(1, 2))
    inference = json.loads(json.dumps(model.inference(0)))
    assert inference == {"resolution": SIDE, "classes": 2}
    rebuilt = build_generator(model.settings, torch.float64, inference["classes"])
    rebuilt.load_state_dict(model.generator.state_dict())
    with pytest.raises(RuntimeError):
        build_generator(model.settings, torch.float64, 0).load_state_dict(model.generator.state_dict())


def test_half_precision_holds_for_the_highest_resolutions_alone() -> None:
    model = recipe(dtype=torch.bfloat16, low_precision_resolutions=1)
    assert model.generator.synthesis.dtypes == {SIDE: torch.bfloat16}
    assert {parameter.dtype for parameter in model.generator.parameters()} == {torch.float32}


def test_the_first_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = recipe(seed=1), recipe(seed=1), recipe(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert largest_difference(one, same) == 0
    assert largest_difference(one, other) > 0


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"generator": {"fmap_base": {64: 512}}}, "generator.fmap_base has no entry for resolution 16"),
        ({"discriminator": {"fmap_base": {32: 512}}}, "discriminator.fmap_base has no entry for resolution 16"),
        ({"generator_optimizer": {"learning_rate": {64: 0.1}}}, "generator_optimizer.learning_rate has no entry"),
    ],
)
def test_maps_that_do_not_reach_the_resolution_are_refused(block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        StyleGAN2Settings.model_validate(SMALL | block)


def test_what_was_trained_in_half_precision_clamps_in_full_too() -> None:
    model = recipe(dtype=torch.float32)
    inference = model.inference(0)
    plain = build_for_inference(model.settings, torch.float32, inference)
    clamped = build_for_inference(model.settings, torch.float32, inference, clamped=True)
    for network in (plain, clamped):
        network.load_state_dict(model.generator.state_dict())
    latents = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(latents), clamped(latents))
    for network in (plain, clamped):
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                torch.nn.init.constant_(parameter, 1e4)
    assert plain(latents).abs().max() > 10 * clamped(latents).abs().max()


def test_the_path_mean_stays_the_same_tensor() -> None:
    """A recorded phase goes on reading the tensor that it was given."""
    model = recipe()
    outcomes(model, 0)
    mean = model.path_mean
    model.advance(
        BATCH, {"average/w": torch.zeros(5), "statistics/path_length": torch.tensor(2.0, dtype=torch.float64)}
    )
    assert model.path_mean is mean
    assert mean > 0
    model.load_state_dict({"path_mean": 0.75})
    outcomes(model, 0)
    assert model.path_mean is mean
    assert float(mean) == 0.75


@pytest.mark.parametrize("size", [2, 4, 8])
def test_reals_and_fakes_never_share_a_deviation_group(size: int) -> None:
    model = recipe()
    draw = torch.Generator().manual_seed(0)
    fake, real = (torch.randn((size, 3, SIDE, SIDE), generator=draw, dtype=torch.float64) * k for k in (1, 3))
    found = model._scores(fake, None, real, None)
    for scores, images in zip(found, (fake, real), strict=True):
        torch.testing.assert_close(scores, model.discriminator(images), rtol=1e-12, atol=1e-12)


def test_each_half_of_the_pass_has_its_own_labels() -> None:
    model = recipe(labels=(3, 1, 2))
    draw = torch.Generator().manual_seed(0)
    fake, real = (torch.randn((4, 3, SIDE, SIDE), generator=draw, dtype=torch.float64) for _ in range(2))
    fake_labels, real_labels = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])
    found = model._scores(fake, fake_labels, real, real_labels)
    expected = model.discriminator(fake, fake_labels), model.discriminator(real, real_labels)
    for scores, other in zip(found, expected, strict=True):
        torch.testing.assert_close(scores, other, rtol=1e-12, atol=1e-12)
