"""MUNIT's steps: micro-batches, rates, crops, constant images, coarse to fine, and translations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import literal_munit_losses as literal
import pytest
import torch
from literal_munit_losses import (
    BATCH,
    DOMAINS,
    GROWING,
    NETWORKS,
    SEED,
    STYLE,
    A,
    B,
    backend_of,
    batch_of,
    model_of,
    step_at,
    take_step,
)
from torch import Tensor

from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.munit import Munit
from hires_gan.recipes.munit_images import random_crops, speckled
from hires_gan.recipes.protocol import Batch, stage_at
from hires_gan.training.backends import Backend

ALL = {"style_prior": 0.5, "r1": 0.3, "r1_interval": 2, "consistency": 2.0}
"""With the default's terms, everything but the perceptual one."""
SPECTRAL = NETWORKS["discriminator"] | {"spectral": True}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def states(model: Munit) -> dict[str, Tensor]:
    """Parameters and buffers of both players."""
    return {
        f"{player}.{name}": value.detach().clone()
        for player, network in model.players.items()
        for name, value in network.state_dict().items()
    }


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Biases start at 0 and are measured against the discriminators' weights, which start at about 0.02.

    Where both terms of the hinge are active, the last bias has a gradient of rounding errors, and Adam makes steps.
    """
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp_min(0.02)) for name in one)


# The step.


@pytest.mark.parametrize(
    "more",
    [{}, {"loss": ALL}, {"loss": ALL | {"name": "hinge", "scales": "mean"}, "crop": 12}],
    ids=["published", "all", "crop"],
)
def test_micro_batches_change_nothing_but_rounding(more: dict[str, Any]) -> None:
    found, means, moments = {}, {}, {}
    for micro in (4, 3, 2, 1):
        model = model_of(**more, discriminator=SPECTRAL)
        backend, before = backend_of(model), states(model)
        for number in range(2):
            means[micro] = take_step(backend, number * BATCH, micro)
        found[micro], moments[micro] = states(model), model.state_dict()["style_moments"]
        assert int(backend.nonfinite) == 0
        assert farthest(before, found[micro]) > 1e-4
    for micro in (3, 2, 1):
        assert farthest(found[4], found[micro]) < 1e-10
        for name, mean in means[4].items():
            torch.testing.assert_close(means[micro][name], mean, rtol=1e-10, atol=1e-13)
        for domain, numbers in moments[4].items():
            torch.testing.assert_close(torch.tensor(moments[micro][domain]), torch.tensor(numbers))


def test_the_samples_of_a_batch_have_nothing_to_do_with_each_other() -> None:
    model = model_of(loss=ALL, crop=12)
    whole = step_at(0)
    for phase in model.phases(0):
        losses = phase.function(whole).losses
        for sample in range(BATCH):
            alone = phase.function(step_at(sample, size=1)).losses
            for name, values in losses.items():
                torch.testing.assert_close(alone[name][0], values[sample], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("r1", [0.0, 0.5])
def test_a_run_is_that_of_adam_whose_rate_is_halved(r1: float) -> None:
    """`torch.optim.Adam` with L2 weight decay and a `StepLR`, one step of the discriminators before the generators."""
    adam = {"learning_rate": 0.001, "betas": (0.5, 0.999), "weight_decay": 1e-4, "halve_kimg": 0.008}
    more = {"generator_optimizer": adam, "discriminator_optimizer": adam, "loss": {"r1": r1, "r1_interval": 1}}
    model, other = model_of(**more), model_of(**more)
    backend = backend_of(model)
    ratio = 0.5 if r1 else 1.0  # of the discriminators: with R1 at every step they take two, where one was meant
    optimizers, schedulers = {}, []
    for name, share in (("discriminator", ratio), ("generator", 1.0)):
        betas = (0.5**share, 0.999**share)
        parameters = list(other.players[name].parameters())
        optimizers[name] = torch.optim.Adam(parameters, 0.001 * share, betas, weight_decay=1e-4)
        schedulers.append(torch.optim.lr_scheduler.StepLR(optimizers[name], step_size=2, gamma=0.5))
    for number in range(6):
        take_step(backend, number * BATCH, micro=2)
        assert backend.optimizers["generator"].param_groups[0]["lr"] == 0.001 * 0.5 ** (number // 2)
        for phase in other.phases(number * BATCH):
            descend(other, phase, optimizers[phase.player], number * BATCH)
        for scheduler in schedulers:
            scheduler.step()
        assert farthest(states(other), states(model)) < 1e-9, number


def descend(model: Munit, phase: Any, optimizer: torch.optim.Adam, nimg: int) -> None:
    parameters = list(model.players[phase.player].parameters())
    losses = phase.function(step_at(nimg)).losses
    total = torch.stack([loss.mean() for loss in losses.values()]).sum()
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
    optimizer.step()


def test_rates_halve_by_images_shown_whatever_the_batch() -> None:
    plan = model_of(generator_optimizer={"learning_rate": 0.01, "halve_kimg": 0.006}).stages[0].optimizers["generator"]
    assert [plan.rate_at(nimg) for nimg in (0, 4, 5, 6, 8, 11, 12, 18)] == [
        0.01 * 0.5**times for times in (0, 0, 0, 1, 1, 1, 2, 3)
    ]
    published = model_of(generator_optimizer={"halve_kimg": 100, "weight_decay": 1e-4}).stages[0]
    plan = published.optimizers["generator"]
    assert (plan.learning_rate, plan.betas, plan.weight_decay, plan.halving) == (1e-4, (0.5, 0.999), 1e-4, 100_000)
    assert published.optimizers["discriminator"].rate_at(10**9) == 1e-4, "each player has its own"
    assert plan.rate_at(999_999) == 1e-4 / 2**9


# Crops.


def labelled(samples: int, side: int) -> dict[str, Tensor]:
    """Images whose three channels say in which row and column a pixel is, and of which sample and domain."""
    rows = torch.arange(side).double()[:, None].expand(side, side)
    images = {}
    for number, domain in enumerate(DOMAINS):
        owners = [torch.full((side, side), 2.0 * sample + number).double() for sample in range(samples)]
        images[domain] = torch.stack([torch.stack((rows, rows.T, owner)) for owner in owners])
    return images


@pytest.mark.parametrize(("side", "crop"), [(16, 12), (16, 15), (16, 16), (5, 4)])
def test_crops_are_slices_at_every_place_both_ends_included(side: int, crop: int) -> None:
    images, n = labelled(400, side), 400
    crops = random_crops(images, crop, SampleRandom(RandomSource(3), torch.arange(n)))
    room = side - crop + 1
    corners = {domain: crops[domain][:, :2, 0, 0].long() for domain in DOMAINS}
    for domain in DOMAINS:
        assert crops[domain].shape == (n, 3, crop, crop)
        assert crops[domain].is_contiguous(memory_format=torch.channels_last)
        for sample, (row, column) in enumerate(corners[domain].tolist()):
            expected = images[domain][sample, :, row : row + crop, column : column + crop]
            assert torch.equal(crops[domain][sample], expected)
        for axis in (0, 1):
            counts = torch.bincount(corners[domain][:, axis], minlength=room)
            assert len(counts) == room
            assert counts.min() > 0.6 * n / room
    places = {*map(tuple, torch.cat((corners[A], corners[B]), 1).tolist())}
    assert len(places) > 0.3 * min(n, room**4), "rows, columns and domains are independent"


def test_the_last_place_is_reached_and_never_passed() -> None:
    class Ends(SampleRandom):
        def uniform(self, purpose: Purpose, *shape: int) -> Tensor:
            assert purpose == Purpose.CROP
            return torch.stack((torch.zeros(shape), torch.full(shape, 1 - 2.0**-24)))

    crops = random_crops(labelled(2, 1024), 256, Ends(RandomSource(0), torch.arange(2)))
    for domain in DOMAINS:
        assert crops[domain][:, :2, 0, 0].tolist() == [[0, 0], [768, 768]]
        assert crops[domain][1, :2, -1, -1].tolist() == [1023, 1023]


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """The images that enter encoders, and those that discriminators see."""
    found: dict[str, list[Tensor]] = {"encoder": [], "discriminator": []}
    encode, judge = Generator.encode_content, MultiScaleDiscriminator.forward

    def encoding(self: Generator, images: Tensor, *arguments: Any, **named: Any) -> Tensor:
        found["encoder"].append(images.detach().clone())
        return encode(self, images, *arguments, **named)

    def judging(self: MultiScaleDiscriminator, images: Tensor, *arguments: Any) -> list[Tensor]:
        found["discriminator"].append(images.detach().clone())
        return judge(self, images, *arguments)

    monkeypatch.setattr(Generator, "encode_content", encoding)
    monkeypatch.setattr(MultiScaleDiscriminator, "forward", judging)
    return found


def test_all_phases_see_the_same_crops_in_any_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = model_of(crop=8, loss={"r1": 1.0, "content": 0, "cycle": 0}), recorded(monkeypatch)
    batch, by_micro = batch_of(8), {}
    for micro in (4, 1):
        seen: dict[str, list[Tensor]] = {}
        for phase in model.phases(0):
            for values in found.values():
                values.clear()
            for first in range(0, BATCH, micro):
                part = slice(first, first + micro)
                random = SampleRandom(RandomSource(SEED), torch.arange(8, 12)[part])
                phase.function(literal.Step(batch.part(part), random))
            of_kind = found["discriminator" if phase.name == "r1" else "encoder"]
            seen[phase.name] = [torch.cat(of_kind[number::2]) for number in (0, 1)]
            if phase.name == "discriminator":
                judged = [torch.cat([one[:micro] for one in found["discriminator"][number::2]]) for number in (0, 1)]
                seen["reals"] = judged
        by_micro[micro] = seen
    expected = random_crops(
        {domain: batch.domain(domain) for domain in DOMAINS},
        8,
        SampleRandom(RandomSource(SEED), torch.arange(8, 12)),
    )
    assert set(by_micro[4]) == {"discriminator", "r1", "generator", "reals"}
    for seen in by_micro.values():
        for images in seen.values():
            assert torch.equal(images[0], expected[A])
            assert torch.equal(images[1], expected[B])


def test_with_crops_whole_images_are_translated() -> None:
    model = model_of(crop=8)
    images = batch_of(0).domain(A)
    found = model.translate(model.generator, images, torch.arange(BATCH), 0, A, B)
    assert found.shape == images.shape
    assert model.describe(0) == "8x8 of 16x16"


# Constant images.


def constant(value: float | None, dtype: torch.dtype = torch.float32) -> Batch:
    """All images of one colour; None: one sample of each domain, among others."""
    batch = batch_of(0, dtype=dtype)
    if value is not None:
        return Batch(torch.full_like(batch.images, value), None, DOMAINS)
    images = batch.images.clone()
    images[1], images[BATCH + 2] = 1.0, -1.0
    return Batch(images, None, DOMAINS)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, None], ids=["white", "black", "gray", "one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("perceptual", [False, True])
def test_constant_images_leave_everything_finite(value: float | None, dtype: torch.dtype, perceptual: bool) -> None:
    loss = ALL | ({"perceptual": 1.0, "perceptual_layer": "relu3_3"} if perceptual else {})
    vgg = literal.random_vgg(torch.float32) if perceptual else None
    # Of the published depth: each normalisation of a constant multiplies a gradient by up to 316.
    deep = NETWORKS["generator"] | {"blocks": 1 if perceptual else 4}
    model = model_of(dtype, vgg, loss=loss, generator=deep, discriminator=SPECTRAL)
    backend = backend_of(model)
    for number in range(2 if perceptual else 4):
        means = take_step(backend, number * BATCH, batch=constant(value))
        assert all(mean.isfinite().all() for mean in means.values()), number
    assert int(backend.nonfinite) == 0
    assert all(value.isfinite().all() for value in states(model).values())


def moments_after_one_image(change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> dict[str, float]:
    """Of the generators' parameters, the largest root of Adam's second moment, after the second of three steps had a
    changed image among others.
    """
    model = model_of(dtype, generator=NETWORKS["generator"] | {"blocks": 4})
    backend = backend_of(model)
    for number in range(3):
        images = batch_of(number * BATCH, dtype=torch.float32).images
        if number == 1:
            images[1] = change(images[1])
        take_step(backend, number * BATCH, batch=Batch(images, None, DOMAINS))
    state = backend.optimizers["generator"].state
    return {name: float(state[p]["exp_avg_sq"].max().sqrt()) for name, p in backend.live["generator"].items()}


def largest_ratio(one: dict[str, float], other: dict[str, float]) -> float:
    return max(one[name] / max(other[name], 1e-3) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_of_almost_one_colour_does_not_outweigh_the_others(dtype: torch.dtype) -> None:
    undisturbed = moments_after_one_image(lambda image: image, dtype)
    noise = (torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1) / 255
    assert largest_ratio(moments_after_one_image(lambda _: 1 + noise, dtype), undisturbed) < 100


@pytest.mark.parametrize("colour", [1.0, -1.0, 0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_image_does_not_outweigh_the_others(dtype: torch.dtype, colour: float) -> None:
    """Finite is not enough: of a gradient that large, Adam's second moments keep everything from learning for long."""
    undisturbed = moments_after_one_image(lambda image: image, dtype)
    one = moments_after_one_image(lambda image: torch.full_like(image, colour), dtype)
    assert largest_ratio(one, undisturbed) < 100


def test_only_images_of_one_colour_are_speckled_by_one_grey_level() -> None:
    images = torch.stack([torch.full((3, 16, 16), value) for value in (1.0, -1.0, 0.2, 0.2)])
    images[3, 1, 4, 5] += 0.01
    colours = torch.tensor([0.5, -0.5, 1.0])[:, None, None].expand(3, 16, 16)
    found = speckled(torch.cat((images, colours[None])))
    assert (found[3] == images[3]).all()
    change = (found - torch.cat((images, colours[None])))[[0, 1, 2, 4]] * 255 / 2
    assert set(change.abs().round(decimals=3).unique().tolist()) == {0.0, 1.0}
    assert 0.3 < float(change.abs().mean()) < 0.7
    assert (found.abs() <= 1).all(), "inward"
    assert (change[0, 0] == -change[1, 0]).all(), "the same pixels for every image"


# Coarse to fine.

STAGES = [(0, 12, 16, False), (12, 24, 32, True), (24, 36, 32, False), (36, 48, 64, True), (48, None, 64, False)]
LEVELS = {
    0: Level(2),
    11: Level(2),
    12: Level(1, 0.0),
    16: Level(1, 4 / 12),
    20: Level(1, 8 / 12),
    24: Level(1),
    35: Level(1),
    36: Level(0, 0.0),
    44: Level(0, 8 / 12),
    48: Level(),
    10**6: Level(),
}


def live(level: Level) -> dict[str, set[str]]:
    """Beginnings of the names of what a level goes through."""
    ends = {level.number} | ({level.number + 1} if level.alpha < 1 else set())
    encoders = {f"stems.{end}." for end in ends} | {f"downs.{number}." for number in range(level.number, 3)}
    decoder = {f"outputs.{end}." for end in ends} | {f"ups.{number}." for number in range(3 - level.number)}
    generator = {
        *(f"content_encoder.{name}" for name in {*encoders, "blocks."}),
        *(f"style_encoder.{name}" for name in {*encoders, "output."}),
        *(f"decoder.{name}" for name in {*decoder, "blocks.", "mapping."}),
    }
    return {
        "generator": {f"generator_{domain}.{name}" for domain in DOMAINS for name in generator},
        "discriminator": {f"discriminator_{d}.scales.{n}." for d in DOMAINS for n in range(level.number, 3)},
    }


def live_names(model: Munit, level: Level) -> dict[str, set[str]]:
    return {
        player: {n for n, _ in network.named_parameters() if n.startswith(tuple(live(level)[player]))}
        for player, network in model.players.items()
    }


def test_a_schedule_fades_each_resolution_in_and_then_trains_it() -> None:
    model = model_of(**GROWING)
    assert [(one.start, one.end, one.resolution, one.fade) for one in model.stages] == STAGES
    assert {(one.batch, one.group) for one in model.stages} == {(BATCH, 1)}
    for nimg, level in LEVELS.items():
        assert model.level(nimg) == level
        resolution = 64 >> level.number
        assert model.inference(nimg) == {
            "resolution": resolution,
            "domains": list(DOMAINS),
            "level": level.number,
            "alpha": level.alpha,
        }
        plans = model.stages[stage_at(model.stages, nimg)].optimizers
        assert {name: set(plan.live) for name, plan in plans.items()} == live_names(model, level)
    assert [model.describe(nimg) for nimg in (0, 16, 24)] == ["16x16", "32x32 fade 33%", "32x32"]


def test_stages_have_batches_and_rates_of_their_resolution() -> None:
    model = model_of(**GROWING, generator_optimizer={"learning_rate": {16: 0.1, 64: 0.2}})
    assert [one.optimizers["generator"].learning_rate for one in model.stages] == [0.1, 0.1, 0.1, 0.2, 0.2]
    assert [one.optimizers["discriminator"].learning_rate for one in model.stages] == [1e-4] * 5
    other = Munit(model.settings, {16: 6, 32: 4, 64: 2}, torch.float32, SEED, DOMAINS)
    assert [one.batch for one in other.stages] == [6, 4, 4, 2, 2]


def test_reals_fade_in_and_the_newest_scale_counts_as_much_as_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded(monkeypatch)
    for nimg, weights in {16: [4 / 12, 1.0], 44: [8 / 12, 1.0, 1.0], 24: [1.0, 1.0], 0: [1.0]}.items():
        level, side = LEVELS[nimg], 64 >> LEVELS[nimg].number
        for reduction in ("sum", "mean"):
            model = model_of(**GROWING, loss={"scales": reduction, "name": "hinge"})
            found["discriminator"].clear()
            outcome = model.phases(nimg)[0].function(step_at(nimg, side))
            total = sum(weights) if reduction == "mean" else 1.0
            for domain, judged in zip(DOMAINS, found["discriminator"], strict=True):
                real = literal.seen(batch_of(nimg, side).domain(domain), level)
                torch.testing.assert_close(judged[:BATCH], real, rtol=0, atol=1e-15)
                maps = model.discriminator.discriminator(domain)(real, level)
                found["discriminator"].pop()
                assert len(maps) == len(weights)
                terms = [(1 - one).clamp_min(0).mean((1, 2, 3)) * w for one, w in zip(maps, weights, strict=True)]
                expected = torch.stack(terms).sum(0) / total
                torch.testing.assert_close(outcome.losses[f"discriminator_real_{domain}"], expected)


def cannot_move(name: str) -> bool:
    """Biases before instance normalisations: nothing depends on them."""
    normalised = ".content_encoder." in name or ".decoder.blocks." in name
    return normalised and name.endswith("convolution.bias")


def test_a_run_through_all_stages_moves_what_lives_and_nothing_else() -> None:
    model = model_of(**GROWING, loss=ALL)
    backend = Backend(model, literal.CPU, SEED)
    for stage in model.stages:
        backend.enter(stage)
        before = states(model)
        for nimg in range(stage.start, stage.end or stage.start + 12, BATCH):
            take_step(backend, nimg, side=stage.resolution)
        after = states(model)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        alive = live_names(model, LEVELS[stage.start])
        expected = {f"{player}.{name}" for player, names in alive.items() for name in names}
        assert moved == {name for name in expected if not cannot_move(name)}, stage
        for player, parameters in backend.live.items():
            state = backend.optimizers[player].state
            assert {int(state[parameter]["step"]) for parameter in parameters.values()} == {
                3 + 2 * (player == "discriminator")
            }
    assert int(backend.nonfinite) == 0


def test_at_the_end_of_a_fade_nothing_jumps() -> None:
    model = model_of(**GROWING)
    images, samples = batch_of(0, 64).domain(A), torch.arange(BATCH)
    found = [model.translate(model.generator, images, samples, nimg, A, B) for nimg in (24, 48)]
    model.stages[:] = [*model.stages[:1]] + [
        type(one)(**{**vars(one), "end": one.start + 10**9}) if one.fade else one for one in model.stages[1:2]
    ]
    almost = model.translate(model.generator, images, samples, 12 + 10**9 - 1, A, B)
    torch.testing.assert_close(almost, found[0], rtol=0, atol=1e-7)


# Translations.


@pytest.mark.parametrize("nimg", [0, 16, 24, 44, 48])
@pytest.mark.parametrize(("source", "target"), [(A, B), (B, A), (A, A)])
def test_translations_are_decoded_contents_in_fixed_styles(nimg: int, source: str, target: str) -> None:
    model, level = model_of(**GROWING), LEVELS[nimg]
    images, samples = batch_of(3, 64).domain(source), torch.tensor([5, 0, 5, 9])
    found = model.translate(model.generator, images, samples, nimg, source, target)
    own, other = model.generator.generator(source), model.generator.generator(target)
    for number, sample in enumerate(samples.tolist()):
        image = images[number : number + 1]
        for _ in range(level.number):
            image = sum(image[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        style = RandomSource(SEED).normal(Purpose.LATENT_SAMPLE, torch.tensor([sample]), (STYLE,)).double()
        content = own.encode_content(literal.seen(image, level), level=level)
        expected = other.decode(content, style, level=level)
        torch.testing.assert_close(found[number : number + 1], expected, rtol=1e-10, atol=1e-12)
    assert found.shape == (4, 3, 64 >> level.number, 64 >> level.number)


def test_translations_are_those_of_the_network_that_is_given() -> None:
    model = model_of()
    backend = backend_of(model)
    images, samples = batch_of(0).domain(A), torch.arange(BATCH)
    before = model.translate(backend.average, images, samples, 0, A, B)
    take_step(backend, 0)
    assert torch.equal(model.translate(backend.average, images, samples, 4, A, B), before)
    assert not torch.equal(model.translate(model.generator, images, samples, 4, A, B), before)


def test_the_first_weights_follow_from_the_seed_and_differ_between_domains() -> None:
    one, same = model_of(), model_of()
    assert farthest(states(one), states(same)) == 0
    for player, network in one.players.items():
        weights = dict(network.named_parameters())
        for name, value in weights.items():
            twin = weights[name.replace(f"{player}_{A}.", f"{player}_{B}.")]
            assert name.endswith(("bias", "beta")) or f"_{B}." in name or not torch.equal(value, twin)
