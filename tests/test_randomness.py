"""The counter-based generator against Random123's published vectors, and its independence of layout."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hires_gan.ops import backend
from hires_gan.randomness import Purpose, RandomSource, SampleRandom, philox

ROOT = Path(__file__).resolve().parent.parent

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


def test_no_samples_and_no_numbers_give_empty_tensors():
    source, none, some = RandomSource(0), torch.arange(0), torch.arange(3)
    for draw in (source.normal, source.uniform):
        assert draw(Purpose.PENALTY, none, (2, 3)).shape == (0, 2, 3)
        assert draw(Purpose.PENALTY, some, (2, 0)).shape == (3, 2, 0)
    assert source.integers(Purpose.PENALTY, none, 5, (2,)).shape == (0, 2)
    assert source.bits(Purpose.PENALTY, some, 0).shape == (3, 0)


def test_a_draw_on_the_cpu_does_not_import_the_ops():
    """Data workers draw there, and would wait for the compiled libraries."""
    code = """
import sys, torch
from hires_gan.randomness import Purpose, RandomSource
source, samples = RandomSource(0), torch.arange(3)
source.bits(Purpose.MIRROR, samples, 1), source.normal(Purpose.MIRROR, samples), source.uniform(Purpose.MIRROR, samples)
assert "hires_gan.ops" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


class Calls(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def drawn(choice: str) -> tuple[list[torch.Tensor], set[str]]:
    """Every kind of draw, and the operators that it took."""
    source, samples = RandomSource(5), torch.tensor([0, 2**32, 2**63 - 1])
    with backend(choice), Calls() as calls:
        numbers = [
            source.bits(Purpose.MIRROR, samples, 5),
            source.uniform(Purpose.PENALTY, samples, (2, 3)),
            source.integers(Purpose.LABEL_SAMPLE, samples, 10, (3,)),
            source.normal(Purpose.LATENT_SAMPLE, samples, (3, 3)),
        ]
    return numbers, calls.names


@pytest.mark.skipif(os.environ.get("HIRES_GAN_BUILD") == "none", reason="there is no native library to test")
def test_the_chosen_implementation_draws_and_both_draw_the_same():
    (native, by_kernel), (reference, by_torch) = drawn("native"), drawn("reference")
    ours = {"hires_gan::philox_words", "hires_gan::philox_uniform", "hires_gan::philox_normal"}
    assert {name for name in by_kernel if name.startswith("hires_gan")} == ours
    assert not {name for name in by_torch if name.startswith("hires_gan")}
    assert not {name for name in drawn("auto")[1] if name.startswith("hires_gan")}
    for one, other in zip(native, reference, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert all(torch.equal(one, other) for one, other in zip(native[:3], reference[:3], strict=True))
    assert torch.allclose(native[3], reference[3], rtol=2.0**-23, atol=0)
