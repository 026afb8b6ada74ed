"""MUNIT's losses against their formulas, term by term; what a step computes, and what it leaves out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import literal_munit_losses as literal
import pytest
import torch
from literal_munit_losses import ALONE, BATCH, DOMAINS, STYLE, A, B, backend_of, model_of, step_at, take_step
from torch import Tensor

from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.networks.munit_layers import SpectralNorm
from hires_gan.networks.vgg import VGG16Features
from hires_gan.randomness import Purpose
from hires_gan.recipes.munit import Munit
from hires_gan.recipes.protocol import Outcome

WEIGHTS = {"adversarial": 0.7, "image": 3.0, "content": 0.4, "style": 1.3, "cycle": 2.0, "style_prior": 0.6}
"""All different, so that none can stand for another."""
FADE = {"resolution": 32, "schedule": {"start_resolution": 16, "stable_kimg": 0.008, "fade_kimg": 0.008}}


@pytest.fixture(scope="module")
def vgg() -> VGG16Features:
    return literal.random_vgg()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome_of(model: Munit, phase: str, nimg: int = 0, side: int = literal.SIDE) -> Outcome:
    (found,) = (one for one in model.phases(nimg) if one.name == phase)
    return found.function(step_at(nimg, side))


def gradients(model: Munit, value: Tensor) -> dict[str, Tensor]:
    named = {f"{p}.{n}": q for p, network in model.players.items() for n, q in network.named_parameters()}
    found = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def assert_the_same(model: Munit, found: Mapping[str, Tensor], samples: list[dict[str, Tensor]]) -> None:
    """Values of each sample, and the gradients by all parameters of both players."""
    assert set(found) == set(samples[0])
    for name, values in found.items():
        expected = torch.stack([one[name] for one in samples])
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")
        own, formula = gradients(model, values.sum()), gradients(model, expected.sum())
        assert any(gradient.any() for gradient in formula.values()), name
        for parameter, gradient in formula.items():
            torch.testing.assert_close(
                own[parameter], gradient, rtol=1e-8, atol=1e-11, msg=lambda m, n=(name, parameter): f"{n}: {m}"
            )


def images_of(nimg: int, number: int, side: int, level: Level) -> tuple[Tensor, Tensor]:
    batch = literal.batch_of(nimg, side)
    one, other = (literal.seen(batch.domain(domain)[number : number + 1], level) for domain in DOMAINS)
    return one, other


GAMES: list[dict[str, Any]] = [
    {"name": "least_squares", "scales": "sum"},
    {"name": "least_squares", "scales": "mean", "detach_content": True},
    {"name": "hinge", "scales": "mean"},
    {"name": "hinge", "scales": "sum", "detach_content": True},
    {"name": "non_saturating", "scales": "sum"},
    {"name": "non_saturating", "scales": "mean"},
]
PLACES: dict[str, tuple[dict[str, Any], int, int, Level]] = {
    "full": ({}, 4, 16, Level()),
    "fade": (FADE, 12, 32, Level(0, 0.5)),
    "below": (FADE, 4, 16, Level(1)),
}
"""Full resolution; the middle of a fade; the level before it: more settings, nimg, the images' side, the level."""

CASES = [*((game, "full", False) for game in GAMES), (GAMES[0], "full", True)]
CASES += [(GAMES[0], "fade", True), (GAMES[2], "fade", False), (GAMES[5], "below", False)]
everywhere = pytest.mark.parametrize(
    ("game", "place", "spectral"),
    CASES,
    ids=lambda one: "-".join(map(str, one.values())) if isinstance(one, dict) else None,
)


@everywhere
def test_each_term_of_the_generators_is_its_formula(game: dict[str, Any], place: str, spectral: bool) -> None:
    more, nimg, side, level = PLACES[place]
    judges = literal.NETWORKS["discriminator"] | {"spectral": spectral}
    model = model_of(**more, loss=WEIGHTS | game, discriminator=judges)
    numbers = torch.arange(2 * STYLE, dtype=torch.float64).reshape(2, STYLE)
    model.terms.advance({f"average/style_moments_{A}": numbers, f"average/style_moments_{B}": 40 - numbers})
    found = outcome_of(model, "generator", nimg, side)
    samples = []
    for number in range(BATCH):
        drawn = literal.drawn_styles(nimg + number, Purpose.STYLE_GENERATOR)
        terms = literal.generator_terms(model, *images_of(nimg, number, side, level), drawn, level)
        samples.append({name: weighted(name) * value for name, value in terms.items()})
    assert_the_same(model, found.losses, samples)


def weighted(name: str) -> float:
    term = name.rpartition("_")[0]
    return WEIGHTS["adversarial" if term == "generator" else term]


@everywhere
def test_each_term_of_the_discriminators_is_its_formula(game: dict[str, Any], place: str, spectral: bool) -> None:
    more, nimg, side, level = PLACES[place]
    loss = game | {"r1": 0.8, "r1_interval": 1, "consistency": 5.0}
    model = model_of(**more, loss=loss, discriminator=literal.NETWORKS["discriminator"] | {"spectral": spectral})
    losses = [outcome_of(model, phase, nimg, side).losses for phase in ("discriminator", "r1")]
    samples = [
        literal.discriminator_terms(model, *images_of(nimg, number, side, level), nimg + number, level)
        for number in range(BATCH)
    ]
    assert_the_same(model, losses[0] | losses[1], samples)


def test_r1_is_as_many_times_as_strong_as_it_is_rare() -> None:
    model = model_of(loss={"r1": 0.8, "r1_interval": 3})
    names = [[phase.name for phase in model.phases(step * BATCH)] for step in range(7)]
    assert names == [["discriminator", *["r1"] * (step % 3 == 0), "generator"] for step in range(7)]
    samples = [
        {
            k: v
            for k, v in literal.discriminator_terms(model, *images_of(12, n, 16, Level()), 12 + n, Level()).items()
            if k.startswith("r1")
        }
        for n in range(BATCH)
    ]
    assert_the_same(model, outcome_of(model, "r1", 12).losses, samples)


@pytest.mark.parametrize("layer", ["relu3_3", "relu4_3"])
def test_the_perceptual_term_compares_a_translation_with_what_it_is_from(vgg: VGG16Features, layer: str) -> None:
    model = model_of(vgg=vgg, loss=ALONE | {"perceptual": 0.9, "perceptual_layer": layer})
    found = {k: v for k, v in outcome_of(model, "generator", 8).losses.items() if k.startswith("perceptual")}
    samples = []
    for number in range(BATCH):
        drawn = literal.drawn_styles(8 + number, Purpose.STYLE_GENERATOR)
        terms = literal.generator_terms(model, *images_of(8, number, 16, Level()), drawn, Level())
        samples.append({name: 0.9 * terms[name] for name in found})
    assert set(found) == {f"perceptual_{A}", f"perceptual_{B}"}
    assert_the_same(model, found, samples)


def test_a_constant_content_target_stops_the_gradient_of_the_first_encoding_alone() -> None:
    """Live, the content term reaches the source's encoder in two ways; detached, only through the translation."""
    first = f"generator.generator_{A}.content_encoder.downs.0.convolution.weight"
    found = {}
    for detached in (True, False):
        model = model_of(loss=ALONE | {"content": 1.0, "detach_content": detached})
        found[detached] = gradients(model, outcome_of(model, "generator").losses[f"content_{A}"].sum())[first]
    assert found[True].abs().max() > 0
    assert (found[True] - found[False]).abs().max() > 1e-3 * found[True].abs().max()


def test_styles_are_drawn_afresh_for_each_player_and_domain() -> None:
    drawn = [
        style[0].tolist()
        for purpose in (Purpose.STYLE_DISCRIMINATOR, Purpose.STYLE_GENERATOR)
        for sample in range(BATCH)
        for style in literal.drawn_styles(sample, purpose)
    ]
    assert len({tuple(style) for style in drawn}) == 2 * 2 * BATCH


# What is not computed.

NEEDED = {
    "image": {"encode_style x", "decode own"},
    "content": {"encode_content fake"},
    "style": {"encode_style fake"},
    "cycle": {"encode_style x", "encode_content fake", "decode cycle"},
    "style_prior": {"encode_style x"},
}
"""The passes of each direction besides the translation itself."""


class Calls:
    """Counts the generators' passes, and keeps whether grad mode was on, and whether the results had a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.grad: set[bool] = set()
        for name in ("encode_content", "encode_style", "decode"):
            monkeypatch.setattr(Generator, name, self._counted(name, getattr(Generator, name)))

    def _counted(self, name: str, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*arguments: Any, **named: Any) -> Tensor:
            result = method(*arguments, **named)
            self.counts[name] += 1
            self.grad |= {torch.is_grad_enabled(), result.requires_grad}
            return result

        return counted

    def taken(self) -> Counter[str]:
        counts, self.counts = self.counts, Counter()
        return counts


SUBSETS = [subset for size in range(6) for subset in combinations(NEEDED, size)]


@pytest.mark.parametrize("terms", SUBSETS, ids="-".join)
def test_terms_of_weight_0_cost_no_pass(terms: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(loss=ALONE | dict.fromkeys(terms, 1.0)), Calls(monkeypatch)
    losses = outcome_of(model, "generator").losses
    assert {name.rpartition("_")[0] for name in losses} == {"generator", *terms}
    passes = {"encode_content x", "decode fake"}.union(*(NEEDED[term] for term in terms))
    expected = Counter(one.split()[0] for one in passes for _ in DOMAINS)
    assert calls.taken() == expected
    outcome_of(model, "discriminator")
    assert calls.taken() == {"encode_content": 2, "decode": 2}


def test_without_the_perceptual_term_vgg_is_not_asked(vgg: VGG16Features, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    features = VGG16Features.features_at
    monkeypatch.setattr(VGG16Features, "features_at", lambda *a: asked.append(torch.is_grad_enabled()) or features(*a))
    outcome_of(model_of(vgg=vgg, loss=ALONE), "generator")
    assert asked == []
    outcome_of(model_of(vgg=vgg, loss=ALONE | {"perceptual": 1.0, "perceptual_layer": "relu3_3"}), "generator")
    assert sorted(asked) == [False, False, True, True], "reals need no graph"


def test_without_r1_and_consistency_a_discriminator_sees_reals_and_fakes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = MultiScaleDiscriminator.forward
    monkeypatch.setattr(
        MultiScaleDiscriminator, "forward", lambda self, x, *a: sizes.append(len(x)) or forward(self, x, *a)
    )
    model = model_of()
    assert [phase.name for phase in model.phases(0)] == ["discriminator", "generator"]
    outcome_of(model, "discriminator")
    assert sum(sizes) == 2 * 2 * BATCH
    sizes.clear()
    outcome_of(model, "generator")
    assert sum(sizes) == 2 * BATCH


# Who learns.


def test_the_discriminators_step_keeps_no_graph_of_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(loss={"r1": 1.0, "consistency": 1.0}), Calls(monkeypatch)
    model.generator.requires_grad_(True)
    losses = outcome_of(model, "discriminator").losses | outcome_of(model, "r1").losses
    assert calls.grad == {False}
    assert calls.counts["encode_style"] == 0
    total = torch.stack([loss.sum() for loss in losses.values()]).sum()
    assert not any(g.any() for name, g in gradients(model, total).items() if name.startswith("generator."))
    outcome_of(model, "generator")
    assert calls.grad == {False, True}, "and would be seen"


def test_while_one_player_learns_the_other_is_frozen_and_has_no_gradients() -> None:
    model = model_of()
    backend, seen = backend_of(model), []

    def check(player: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for name, network in model.players.items():
                for parameter in network.parameters():
                    assert parameter.requires_grad == (name == player)
                    assert (parameter.grad is not None) == (name == player)
            assert sum(bool(p.grad.any()) for p in model.players[player].parameters()) > 10
            seen.append(player)

        return hook

    for player, optimizer in backend.optimizers.items():
        optimizer.register_step_pre_hook(check(player))
    take_step(backend, 0)
    assert seen == ["discriminator", "generator"]


@pytest.mark.parametrize(("r1", "steps"), [(0.0, 3), (1.0, 4)])
@pytest.mark.parametrize("micro", [BATCH, 1])
def test_the_power_iteration_goes_once_for_each_step_of_the_discriminators(
    r1: float, steps: int, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = literal.NETWORKS["discriminator"] | {"spectral": True}
    model = model_of(discriminator=judges, loss={"r1": r1, "r1_interval": 3})
    backend, calls = backend_of(model), Counter[int]()
    stepped: list[str] = []
    backend.optimizers["discriminator"].register_step_post_hook(lambda *_: stepped.append("discriminator"))
    iterate = SpectralNorm.iterate
    monkeypatch.setattr(SpectralNorm, "iterate", lambda s, w: calls.update([id(s)]) or iterate(s, w))
    for number in range(3):
        take_step(backend, number * BATCH, micro)
    layers = [one for one in model.discriminator.modules() if isinstance(one, SpectralNorm)]
    assert len(layers) == 2 * 2 * 3, "domains, scales, layers with the last one"
    assert len(stepped) == steps
    assert calls == {id(layer): steps for layer in layers}


# The moments of styles.


def test_moments_follow_the_global_batch_with_the_decay() -> None:
    model = model_of(loss=ALONE | {"style_prior": 1.0, "style_prior_decay": 0.75})
    backend = backend_of(model)
    for micro in (BATCH, 1):
        before = {domain: model.terms.moments[domain].clone() for domain in DOMAINS}
        with torch.no_grad():
            styles = {
                domain: model.generator.generator(domain).encode_style(literal.batch_of(0).domain(domain))
                for domain in DOMAINS
            }
        take_step(backend, 0, micro)
        for domain, style in styles.items():
            now = torch.stack((style.mean(0), (style**2).mean(0)))
            torch.testing.assert_close(model.terms.moments[domain], 0.75 * before[domain] + 0.25 * now)
    assert not torch.equal(*model.terms.moments.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_come_back_from_json_bit_for_bit(dtype: torch.dtype) -> None:
    loss = ALONE | {"style_prior": 1.0}
    one, other = model_of(dtype, loss=loss), model_of(dtype, loss=loss)
    backend = backend_of(one)
    for number in range(3):
        take_step(backend, number * BATCH, batch=literal.batch_of(number * BATCH, dtype=dtype))
    assert one.state_dict() != other.state_dict()
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for domain in DOMAINS:
        assert one.terms.moments[domain].dtype == dtype
        assert torch.equal(one.terms.moments[domain], other.terms.moments[domain])
    other.load_state_dict(model_of(dtype, loss=loss).state_dict())
    assert other.state_dict() == model_of(dtype, loss=loss).state_dict()


def test_without_the_term_there_are_no_moments() -> None:
    assert model_of().state_dict() == {"style_moments": {}}
    model_of().load_state_dict(json.loads(json.dumps(model_of().state_dict())))


def test_moments_stay_the_same_tensors() -> None:
    """A recorded phase goes on reading the tensors that it was given."""
    model = model_of(loss=ALONE | {"style_prior": 1.0})
    outcome_of(model, "generator")
    moments = dict(model.terms.moments)
    numbers = torch.ones(2, STYLE, dtype=torch.float64)
    model.advance(4, {f"average/style_moments_{domain}": numbers for domain in DOMAINS})
    model.load_state_dict({"style_moments": {domain: (2 * numbers).tolist() for domain in DOMAINS}})
    outcome_of(model, "generator")
    for domain in DOMAINS:
        assert model.terms.moments[domain] is moments[domain]
        assert torch.equal(moments[domain], 2 * numbers)
