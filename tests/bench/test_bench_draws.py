"""`bench train --without device-draws` and `sample-draws`: random numbers of torch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from steps_without import CPU, Ops, one_step, plan_of, stand_of
from torch import Tensor

from hires_gan.bench.plain_steps import TorchRandom
from hires_gan.ops.leaving_out import leaving_out
from hires_gan.randomness import Purpose, RandomSource


@pytest.mark.parametrize(
    ("parts", "place"),
    [(["device-draws"], "cpu"), (["sample-draws"], None), (["sample-draws", "device-draws"], "cpu")],
)
def test_numbers_are_torchs_own(parts, place, monkeypatch):
    """In the steps, and where their ops are counted."""
    made: list[Any] = []

    class Seen(TorchRandom):
        def __init__(self, seed: int, device: torch.device | None = None) -> None:
            super().__init__(seed, device)
            made.append(None if device is None else device.type)

        def normal(self, purpose: Purpose, samples: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
            made.append("drawn")
            return super().normal(purpose, samples, shape)

    monkeypatch.setattr("hires_gan.bench.train_steps.TorchRandom", Seen)
    plan = plan_of("demo")
    with torch.random.fork_rng(), leaving_out(parts):
        stand, feed = one_step(plan)
        assert made == [place]
        before = stand.recipe.players["generator"].state_dict()["dense.weight"].clone()
        stand.step(feed)
        assert not torch.equal(before, stand.recipe.players["generator"].state_dict()["dense.weight"])
        made.clear()
        stand.record(stand.phases[0], feed.take())
        assert made and set(made) == {"drawn"}
    assert type(stand_of(plan).backend.random) is RandomSource


def test_numbers_are_drawn_on_the_cpu_and_copied_or_where_the_samples_are():
    """Samples that lie nowhere tell: what is drawn for them there has no numbers either."""
    nowhere = torch.empty(5, dtype=torch.int64, device="meta")
    for place, copied in ((CPU, True), (None, False)):
        with torch.random.fork_rng():
            source = TorchRandom(3, place)
        with Ops() as ops:
            drawn = [source.normal(Purpose.CROP, nowhere, (2,)), source.uniform(Purpose.CROP, nowhere)]
            drawn.append(source.bits(Purpose.CROP, nowhere, 3))
        assert {one.device.type for one in drawn} == {"meta"}
        assert ops.names.count("aten._to_copy.default") == (3 if copied else 0)


@pytest.mark.parametrize("place", [CPU, None])
def test_torchs_numbers_are_of_the_same_kinds(place):
    samples, n = torch.arange(64), 64 * 300
    with torch.random.fork_rng():
        other = TorchRandom(4, place).normal(Purpose.LATENT_GENERATOR, samples, (3, 100))
        drawn, own = TorchRandom(3, place), RandomSource(3)
        normal = drawn.normal(Purpose.LATENT_GENERATOR, samples, (3, 100))
        assert not torch.equal(normal, drawn.normal(Purpose.LATENT_GENERATOR, samples, (3, 100)))
        assert not torch.equal(normal, other)
        assert abs(normal.mean()) < 5 / math.sqrt(n) and abs(normal.var() - 1) < 5 * math.sqrt(2 / n)
        uniform = drawn.uniform(Purpose.PENALTY, samples, (300,))
        assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * n)
        bits = drawn.bits(Purpose.CROP, samples, 300)
        assert bits.min() >= 0 and 2**31 < bits.max() < 2**32
        whole = drawn.integers(Purpose.CROP, samples, 7, (300,))
        assert whole.unique().tolist() == list(range(7))
        for method, shape in (("normal", (3,)), ("uniform", ()), ("normal", ())):
            one, expected = (getattr(source, method)(Purpose.CROP, samples, shape) for source in (drawn, own))
            assert (one.shape, one.dtype, one.device) == (expected.shape, expected.dtype, expected.device)
        assert drawn.bits(Purpose.CROP, samples, 3).dtype == own.bits(Purpose.CROP, samples, 3).dtype
        again = TorchRandom(3, place).normal(Purpose.LATENT_GENERATOR, samples, (3, 100))
        assert torch.equal(normal, again), "the seed's"


@pytest.mark.gpu
def test_torchs_numbers_in_a_recorded_step_are_others_at_every_replay():
    device = torch.device("cuda")
    samples, source = torch.arange(4, device=device), TorchRandom(3)
    source.normal(Purpose.CROP, samples, (3,))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = source.normal(Purpose.CROP, samples, (3,))
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(drawn.clone())
    assert not torch.equal(replays[0], replays[1]) and not torch.equal(replays[1], replays[2])
