"""Draws by counter in one kernel: the reference's bits, Random123's answers, torch.compile, and CUDA graphs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.ops import backend, random, self_test
from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.protocol import LabelDistribution

NAMES = ("philox_words", "philox_uniform", "philox_normal")
WORD = st.integers(0, 2**32 - 1)
SAMPLE = st.integers(0, 2**40) | st.integers(0, 2**63 - 1) | st.sampled_from([2**32 - 1, 2**32, 2**63 - 1])
anywhere = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

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


def literal_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al., section 4.3, in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for number in range(10):
        x, y = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        one, other = (k0 + number * 0x9E3779B9) % 2**32, (k1 + number * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = (y >> 32) ^ c1 ^ one, y % 2**32, (x >> 32) ^ c3 ^ other, x % 2**32
    return c0, c1, c2, c3


def reference(name: str, samples: Tensor, count: int, seed: int, purpose: int) -> Tensor:
    """The definition, on the CPU, flat."""
    source, samples = RandomSource(seed), samples.cpu()
    with backend("reference"):
        if name == "philox_words":
            return source.bits(purpose, samples, count)
        return getattr(source, name.removeprefix("philox_"))(purpose, samples, (count,))


def steps_apart(found: Tensor, expected: Tensor) -> Tensor:
    """By how many float32 numbers each pair is apart."""
    ranks = [torch.where(bits < 0, -(2**31) - bits, bits) for bits in (
        value.contiguous().view(torch.int32).long() for value in (found.cpu(), expected))]  # fmt: skip
    return (ranks[0] - ranks[1]).abs()


def assert_reference(name: str, samples: Tensor, count: int, seed: int, purpose: int) -> None:
    found = getattr(random, name)(samples, count, seed, purpose)
    expected = reference(name, samples, count, seed, purpose)
    assert found.device == samples.device
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape) == (expected.dtype, (len(samples), count))
    assert found.is_contiguous()
    assert not found.requires_grad
    if name == "philox_normal":
        assert found.numel() == 0 or steps_apart(found, expected).max() <= 1
    else:
        assert torch.equal(found.cpu(), expected)


# Against the reference


@pytest.mark.parametrize("name", NAMES)
@anywhere
@example(samples=[], count=5, seed=1, purpose=2)
@example(samples=[1, 2], count=0, seed=1, purpose=2)
@example(samples=[], count=0, seed=1, purpose=2)
@given(samples=st.lists(SAMPLE, max_size=9), count=st.integers(0, 9), seed=WORD, purpose=WORD)
def test_a_draw_is_the_reference(device, name, samples, count, seed, purpose):
    assert_reference(name, torch.tensor(samples, dtype=torch.int64, device=device), count, seed, purpose)


@pytest.mark.parametrize("name", ["philox_words", "philox_uniform"])
@pytest.mark.parametrize("count", [1024, 4093, 65_537, 300_002])
def test_a_large_draw_is_the_reference(device, name, count):
    samples = torch.tensor([0, 2**32 + 5, 2**63 - 1], device=device)
    assert_reference(name, samples, count, 0xFEDCBA98, int(Purpose.NOISE_GENERATOR))


def test_normals_are_the_reference_but_for_a_rare_last_bit(device):
    samples = torch.tensor([3, 2**40 + 1, 2**33 - 1], device=device)
    found = random.philox_normal(samples, 700_001, 5, 14)
    steps = steps_apart(found, reference("philox_normal", samples, 700_001, 5, 14))
    assert steps.max() <= 1
    assert (steps == 0).double().mean() > 0.9999


def test_many_samples(device):
    samples = torch.arange(2**32 - 30_000, 2**32 + 30_000, device=device)
    for name, count in itertools.product(NAMES, (1, 6)):
        assert_reference(name, samples, count, 9, 3)


@pytest.mark.parametrize("name", NAMES)
def test_samples_in_any_memory(device, name):
    room = torch.arange(2**32 - 7, 2**32 + 8, device=device)
    for samples in (room[1:], room[::2], room[5:6].expand(4)):
        assert_reference(name, samples, 11, 2, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_draw_begins_with_the_shorter_one(device, name):
    samples = torch.arange(5, device=device)
    draws = [getattr(random, name)(samples, count, 1, 2) for count in range(12)]
    assert all(torch.equal(draw, draws[-1][:, :count]) for count, draw in enumerate(draws))


# Known answers


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_literal_generator_gives_the_published_vectors(counter, key, answer):
    assert literal_philox(counter, key) == answer


def test_a_published_vector_through_the_op(device):
    """Of the three, the one whose position a draw reaches."""
    counter, (seed, purpose), answer = KNOWN[0]
    samples = torch.tensor(counter[:1], device=device)
    assert random.philox_words(samples, 4, seed, purpose).tolist() == [list(answer)]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_samples_and_keys_of_the_published_vectors_at_other_positions(device, counter, key, answer):
    """The samples' upper bit may be set here: as a signed number such an index is negative."""
    low, high = counter[:2]
    index = low + (high << 32)
    samples = torch.tensor([0, index - 2**64 if index >= 2**63 else index], device=device)
    blocks = random.philox_words(samples, 4 * 300, *key)[1].reshape(300, 4).tolist()
    assert [tuple(block) for block in blocks] == [literal_philox((low, high, at, 0), key) for at in range(300)]


@pytest.mark.parametrize("change", ["PHILOX", "NORMALS"])
def test_the_self_test_would_not_pass_a_wrong_answer(native_cpu, monkeypatch, change):
    assert self_test.self_test("cpu") is None
    monkeypatch.setattr(self_test, change, [getattr(self_test, change)[0] + 1, *getattr(self_test, change)[1:]])
    assert "philox_" in str(self_test.self_test("cpu"))


# Bad input


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"samples": torch.zeros(3)}, TypeError, "samples is torch.float32; torch.int64 is allowed"),
        ({"samples": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"samples has the shape \[3, 1\]; \[n\] is"),
        ({"count": -1}, ValueError, "count is -1; 0 or more are allowed"),
        ({"seed": -1}, ValueError, r"seed is -1; it must lie in \[0, 2\^32\)"),
        ({"purpose": 2**32}, ValueError, r"purpose is 4294967296; it must lie in \[0, 2\^32\)"),
    ],
)
def test_what_cannot_be_is_refused(device, name, changed, error, says):
    given = {"samples": torch.zeros(3, dtype=torch.int64), "count": 4, "seed": 1, "purpose": 2, **changed}
    with pytest.raises(error, match=says):
        getattr(random, name)(**{**given, "samples": given["samples"].to(device)})
    with pytest.raises(RuntimeError):  # and by the kernel, which would read memory that is not there
        getattr(torch.ops.hires_gan, name)(**{**given, "samples": given["samples"].to(device)})


# torch.library and torch.compile


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("first", "count"), [(0, 7), (2**32 - 2, 8)])
def test_opcheck(device, name, first, count):
    samples = torch.arange(first, first + 3, device=device)
    torch.library.opcheck(getattr(torch.ops.hires_gan, name).default, (samples, count, 3, 4))


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_give_shapes_without_computing(device, name):
    real = getattr(random, name)(torch.arange(3, device=device), 5, 1, 2)
    meta = getattr(random, name)(torch.empty(3, dtype=torch.int64, device="meta"), 5, 1, 2)
    assert meta.device.type == "meta"
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def step(samples: Tensor, weight: Tensor) -> Tensor:
    """What a phase does with its draws."""
    drawn = SampleRandom(RandomSource(11), samples)
    latents = drawn.normal(Purpose.LATENT_GENERATOR, 3, 5)
    labels = RandomSource(11).integers(Purpose.LABEL_GENERATOR, samples, 7)
    return (latents * weight).sum((1, 2)) + drawn.uniform(Purpose.PENALTY) + labels


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_function_draws_the_same(device, fresh_compiler, compiler):
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    weight = torch.linspace(-1, 1, 5, device=device).requires_grad_()
    for samples in (torch.arange(4, device=device), torch.arange(2**33, 2**33 + 6, device=device)):
        found, expected = compiled(samples, weight), step(samples, weight)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
        slopes = [torch.autograd.grad(value.sum(), weight)[0] for value in (found, expected)]
        assert torch.allclose(*slopes, rtol=1e-6, atol=1e-6)


# On a GPU alone

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


def draws(samples: Tensor) -> list[Tensor]:
    """Every kind of draw, with and without whole blocks, and labels."""
    drawn, source = SampleRandom(RandomSource(7), samples), RandomSource(8)
    labels = LabelDistribution((3, 0, 5, 2)).draw(drawn.uniform(Purpose.LABEL_GENERATOR))
    return [
        drawn.normal(Purpose.NOISE_GENERATOR, 64, 64),
        drawn.normal(Purpose.LATENT_GENERATOR, 7),
        drawn.uniform(Purpose.PENALTY, 1, 1, 1),
        source.integers(Purpose.SWD_PATCH, samples, 1000, (3,)),
        source.bits(Purpose.MIRROR, samples, 8),
        labels,
    ]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@on_gpu
def test_the_gpu_draws_natively_by_itself_what_the_cpu_draws():
    samples = torch.arange(2**32 - 3, 2**32 + 3, device="cuda")
    with torch.profiler.profile() as profile:
        found = draws(samples)
    assert {"hires_gan::philox_normal", "hires_gan::philox_uniform"} <= {event.key for event in profile.key_averages()}
    expected = draws(samples.cpu())
    assert all(value.is_cuda for value in found)
    assert all(steps_apart(one, other).max() <= 1 for one, other in zip(found[:2], expected[:2], strict=True))
    assert same_bits([value.cpu() for value in found[2:]], expected[2:])


@on_gpu
def test_the_reference_on_the_gpu_is_the_reference():
    samples = torch.arange(2**32 - 3, 2**32 + 3, device="cuda")
    with backend("reference"):
        found = draws(samples)
    assert same_bits([value.cpu() for value in found[2:]], draws(samples.cpu())[2:])


@on_gpu
def test_draws_do_not_synchronise():
    samples = torch.arange(5, device="cuda")
    draws(samples)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        draws(samples)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_a_captured_draw_follows_its_samples():
    """Each replay draws for the sample indices that then lie in the graph's input."""
    samples = torch.arange(4, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        draws(samples)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = draws(samples)
    for first in (0, 100, 2**32 - 2, 2**62):
        samples.copy_(torch.arange(first, first + 4))
        graph.replay()
        assert same_bits(found, draws(samples.clone()))
        assert torch.equal(found[4].cpu(), reference("philox_words", samples, 8, 8, int(Purpose.MIRROR)))


@on_gpu
def test_nothing_is_allocated_but_the_result():
    samples = torch.arange(16, device="cuda")
    random.philox_normal(samples, 4, 1, 2)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    noise = RandomSource(1).normal(Purpose.NOISE_GENERATOR, samples, (1, 512, 512))
    used = torch.cuda.max_memory_allocated() - before
    assert used <= noise.numel() * noise.element_size() + 2**20


@on_gpu
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 1023, 1024, 4098])
def test_sanitizer_draws(count):
    """Rows that begin on 16 bytes and rows that do not, to the end of their memory."""
    torch.cuda.empty_cache()
    for n in (1, 2, 7):
        for name in NAMES:
            getattr(random, name)(torch.arange(n, device="cuda"), count, 1, 2)
    torch.cuda.synchronize()
