"""The counter-based generator against Random123's published vectors, and its independence of layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.randomness import Purpose, RandomSource, SampleRandom, philox

# Random123's kat_vectors: counter, key, result of philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_vectors(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def test_bits_put_sample_and_position_into_the_counter():
    sample = 0x05A308D3_243F6A88
    words = RandomSource(7).bits(Purpose.PENALTY, torch.tensor([sample]), 8)[0]
    expected = philox(tuple(torch.tensor([c]) for c in (0x243F6A88, 0x05A308D3, 1, 0)), (7, int(Purpose.PENALTY)))
    assert words[4:].tolist() == [int(w) for w in expected]


@settings(max_examples=30, deadline=None)
@given(
    first=st.integers(0, 2**40),
    count=st.integers(1, 40),
    width=st.integers(1, 70),
    cut=st.integers(0, 40),
)
def test_numbers_do_not_depend_on_the_layout(first, count, width, cut):
    samples = torch.arange(first, first + count)
    source = RandomSource(3)
    cut = min(cut, count)
    for draw in (source.normal, source.uniform):
        whole = draw(Purpose.LATENT_GENERATOR, samples, (width,))
        parts = [draw(Purpose.LATENT_GENERATOR, part, (width,)) for part in (samples[:cut], samples[cut:])]
        assert torch.equal(whole, torch.cat(parts))
        single = torch.cat([draw(Purpose.LATENT_GENERATOR, s[None], (width,)) for s in samples])
        assert torch.equal(whole, single)


def test_normals_are_normal_and_independent():
    x = RandomSource(0).normal(Purpose.LATENT_GENERATOR, torch.arange(4000), (256,)).double()
    n = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    correlation = torch.corrcoef(x.T) - torch.eye(256)
    assert correlation.abs().max() < 6 / math.sqrt(4000)


def test_uniforms_fill_the_unit_interval_evenly():
    u = RandomSource(1).uniform(Purpose.PENALTY, torch.arange(100_000))
    assert u.shape == (100_000,)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-square with 19 degrees of freedom: p < 0.001


def test_integers_cover_their_range():
    i = RandomSource(2).integers(Purpose.LABEL_SAMPLE, torch.arange(20_000), 7, (2,))
    assert i.shape == (20_000, 2)
    assert torch.bincount(i.flatten(), minlength=7).min() > 5000
    assert i.max() == 6


def test_seeds_purposes_and_samples_differ():
    samples = torch.arange(64)
    base = RandomSource(0).normal(Purpose.LATENT_GENERATOR, samples, (16,))
    assert not torch.equal(base, RandomSource(1).normal(Purpose.LATENT_GENERATOR, samples, (16,)))
    assert not torch.equal(base, RandomSource(0).normal(Purpose.LATENT_DISCRIMINATOR, samples, (16,)))
    assert base.unique(dim=0).shape[0] == 64
    bound = SampleRandom(RandomSource(0), samples)
    assert torch.equal(base, bound.normal(Purpose.LATENT_GENERATOR, 16))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed is"):
        RandomSource(seed)
