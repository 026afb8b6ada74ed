"""Perceptual path length: known answers, a literal reference, and each family of generators."""

from __future__ import annotations

import math
import random

import pair_metrics as small
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.path_length import EPSILON, PATHS, PathLength, great_circle, path_length
from hires_gan.evaluation.perceptual import LPIPS
from hires_gan.networks.growth import Growth
from hires_gan.randomness import Purpose, RandomSource
from hires_gan.recipes.protocol import LabelDistribution

CLASSES = LabelDistribution((1, 3))
SAMPLES = torch.arange(11)


def drawn_latents(samples: Tensor, size: int = small.LATENT) -> tuple[Tensor, Tensor]:
    both = RandomSource(0).normal(Purpose.LATENT_LENGTH, samples, (2, size)).double()
    return both[:, 0], both[:, 1]


@pytest.fixture(scope="module")
def linear() -> small.LinearGenerator:
    torch.manual_seed(0)
    return small.LinearGenerator(torch.randn(192, small.LATENT, dtype=torch.float64))


class Sphere(nn.Module):
    """Images that hold the latent itself, so that distances are those of latents."""

    latent_size, classes, resolution = 4, 0, 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    def forward(self, latents: Tensor, labels: None = None) -> Tensor:
        return torch.cat((latents, latents.new_zeros(len(latents), 188)), 1).reshape(-1, 3, 8, 8)


@pytest.mark.parametrize("sampling", ["full", "end"])
def test_along_a_line_it_is_the_square_of_its_length(linear, sampling) -> None:
    found = PathLength(linear, small.squared, "w", sampling).distances(SAMPLES)
    first, last = (linear.mapping(latents) for latents in drawn_latents(SAMPLES))
    expected = ((last - first) @ linear.synthesis.matrix.T).square().sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("sampling", ["full", "end"])
def test_along_a_great_circle_it_is_the_square_of_the_arc(sampling) -> None:
    found = PathLength(Sphere(), small.squared, "z", sampling).distances(SAMPLES)
    first, last = drawn_latents(SAMPLES, 4)
    angle = ((first * last).sum(1) / first.norm(dim=1) / last.norm(dim=1)).acos()
    torch.testing.assert_close(found, 4 * angle**2, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", PATHS)
def test_it_is_the_mean_over_paths_that_are_walked_one_by_one(name) -> None:
    space, sampling, crop = PATHS[name]
    network = small.generator("stylegan2").double()
    found = PathLength(network, small.squared, space, sampling, crop=crop).distances(SAMPLES)
    expected = []
    for k in SAMPLES.tolist():
        number = torch.tensor([k])
        z0, z1 = (latents[0] for latents in drawn_latents(number))
        t = RandomSource(0).uniform(Purpose.PLACE_LENGTH, number).item() if sampling == "full" else 0.0
        pictures = []
        for place in (t, t + EPSILON):
            if space == "z":
                a, b = z0 / z0.norm(), z1 / z1.norm()
                omega = math.acos(float(a @ b))
                z = (math.sin((1 - place) * omega) * a + math.sin(place * omega) * b) / math.sin(omega)
                pictures.append(network(z[None]))
            else:
                w0, w1 = network.mapping(z0[None])[0], network.mapping(z1[None])[0]
                w = w0 + place * (w1 - w0)
                pictures.append(network.synthesis(w.expand(1, network.num_ws, -1)))
        if crop:  # of 16x16
            pictures = [picture[:, :, 6:14, 4:12] for picture in pictures]
        expected.append(((pictures[0] - pictures[1]) ** 2).sum() / 1e-8)
    assert min(expected) > 1e-3
    # The normalisation of latents adds 1e-8 to a mean square, which differs by the latent's length.
    torch.testing.assert_close(found, torch.stack(expected), rtol=3e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("classes", [0, 2])
def test_a_sample_is_the_same_in_any_batch_and_for_any_ranks(family, classes, dtype) -> None:
    network = small.generator(family, classes)
    samples = torch.cat((SAMPLES, torch.tensor([2**33])))
    for name, (space, sampling, crop) in PATHS.items():
        if crop or (space == "w" and family == "progressive"):
            continue
        lengths = PathLength(network, small.squared, space, sampling, CLASSES if classes else None, dtype=dtype)
        assert lengths.chunk == 8
        found = lengths.distances(samples)
        assert found.dtype == torch.float64 and found.shape == (12,)
        assert found.isfinite().all() and found.min() > 0
        ranks = torch.empty_like(found)
        for rank in range(3):
            ranks[rank::3] = lengths.distances(samples[rank::3])
        assert torch.equal(ranks, found)
        assert torch.equal(lengths.distances(samples.flip(0)).flip(0), found)
        assert torch.equal(lengths.distances(samples[6:7]), found[6:7])
        assert path_length(ranks, name) == path_length(found.flip(0), name)
    assert len(lengths.distances(samples[:0])) == 0


@pytest.mark.parametrize("family", small.FAMILIES)
def test_blocks_of_another_size_and_threads_change_nothing_in_float64(family, monkeypatch) -> None:
    network = small.generator(family)
    found = PathLength(network, small.squared, "z", "full").distances(SAMPLES)
    single = PathLength(network, small.squared, "z", "full", dtype=torch.float32).distances(SAMPLES)
    assert (single / found - 1).abs().max() < 0.05
    lengths = PathLength(network, small.squared, "z", "full")
    lengths.chunk = 3
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(lengths.distances(SAMPLES), found, rtol=1e-6, atol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("family", small.FAMILIES)
def test_low_precision_is_set_aside_in_a_copy(family) -> None:
    mixed = small.generator(family, dtypes=small.HALF)
    holders = [module for module in mixed.modules() if getattr(module, "dtypes", None)]
    assert holders
    found = PathLength(mixed, small.squared, "z", "full").distances(SAMPLES)
    clamp = 256.0 if family == "stylegan2" else None  # which half precision brings along, and which stays
    plain = small.generator(family, clamp=clamp)
    assert torch.equal(found, PathLength(plain, small.squared, "z", "full").distances(SAMPLES))
    assert all(module.dtypes == small.HALF for module in holders)
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}


def test_it_computes_without_gradients_or_tf32_and_leaves_no_trace(linear) -> None:
    seen = []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        seen.append((torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        raise KeyError

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with pytest.raises(KeyError):
            PathLength(linear, distance, "w", "end").distances(SAMPLES)
        assert seen == [(False, False, False)]
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.is_grad_enabled()


def test_a_path_has_one_class_drawn_as_often_as_it_occurs(monkeypatch) -> None:
    network = small.generator("stylegan", 2)
    seen = []
    mapping = network.mapping.forward
    monkeypatch.setattr(network.mapping, "forward", lambda z, labels: seen.append(labels) or mapping(z, labels))
    monkeypatch.setattr(network.synthesis, "forward", lambda ws, **_: ws[:, :1, :3, None].expand(-1, -1, -1, 4))
    for space in ("z", "w"):
        seen.clear()
        PathLength(network, lambda a, b: a[:, 0, 0, 0], space, "full", CLASSES).distances(torch.arange(1600))
        starts, ends = (torch.cat(half) for half in zip(*(labels.chunk(2) for labels in seen), strict=True))
        assert torch.equal(starts, ends)
        assert torch.equal(starts, CLASSES.draw(RandomSource(0).uniform(Purpose.LABEL_LENGTH, torch.arange(1600))))
        assert starts.double().mean().item() == pytest.approx(0.75, abs=0.05)


def test_a_crop_compares_the_part_where_a_face_has_its_centre(linear) -> None:
    def part(a: Tensor, b: Tensor) -> Tensor:
        return small.squared(a[:, :, 3:7, 2:6], b[:, :, 3:7, 2:6])

    found = PathLength(linear, small.squared, "w", "end", crop=True).distances(SAMPLES)
    assert torch.equal(found, PathLength(linear, part, "w", "end").distances(SAMPLES))


def test_images_too_small_to_be_cropped_are_doubled_first() -> None:
    """A network that grows is measured from 4x4 on."""

    def part(a: Tensor, b: Tensor) -> Tensor:
        rows, columns = [1, 2, 2, 3], [1, 1, 2, 2]  # 3 to 6 and 2 to 5 of 8, by halves
        return small.squared(a[:, :, rows][:, :, :, columns], b[:, :, rows][:, :, :, columns])

    network, growth = small.generator("progressive"), Growth(4)
    found = PathLength(network, small.squared, "z", "end", crop=True, growth=growth).distances(SAMPLES)
    whole = PathLength(network, part, "z", "end", growth=growth).distances(SAMPLES)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", PATHS)
def test_a_name_says_which_paths_and_whether_images_are_cropped(name) -> None:
    space, sampling, crop = PATHS[name]
    assert name == f"ppl_{space}_{sampling}{'_cropped' if crop else ''}"


@pytest.mark.parametrize(("family", "space"), [("progressive", "z"), ("stylegan", "z"), ("stylegan", "w")])
def test_networks_are_measured_as_far_as_they_have_grown(family, space) -> None:
    network, sides = small.generator(family), []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        sides.append(a.shape[-1])
        return small.squared(a, b)

    growth = Growth(8, 0.5)
    given_growth = PathLength(network, distance, space, "full", growth=growth).distances(SAMPLES)
    network.growth = growth
    assert torch.equal(PathLength(network, distance, space, "full").distances(SAMPLES), given_growth)
    assert set(sides) == {8}


def test_large_images_pass_in_small_parts(linear) -> None:
    network = small.LinearGenerator(linear.synthesis.matrix)
    for resolution, chunk in ((256, 8), (512, 4), (1024, 1)):
        network.resolution = resolution
        assert PathLength(network, small.squared, "w", "full").chunk == chunk


def test_lpips_gives_lengths_of_each_family() -> None:
    lpips = LPIPS(small.random_vgg(), small.random_heads((64, 128, 256, 512, 512)))
    for family in small.FAMILIES:
        found = PathLength(small.generator(family), lpips, "z", "end").distances(torch.arange(2))
        assert found.isfinite().all() and found.min() > 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.integers(0, 9))
def test_the_shortest_and_the_longest_are_dropped(values: list[float], seed: int) -> None:
    ordered = sorted(values)
    lowest = ordered[math.floor(0.01 * (len(values) - 1))]
    highest = ordered[math.ceil(round(0.99 * (len(values) - 1), 9))]
    kept = [value for value in ordered if lowest <= value <= highest]
    random.Random(seed).shuffle(values)
    assert path_length(torch.tensor(values, dtype=torch.float64)) == math.fsum(kept) / len(kept)


def test_of_a_thousand_values_the_outer_ones_do_not_count() -> None:
    values = torch.full((1001,), 5.0)
    values[:10], values[-10:] = -1e9, 1e12
    assert path_length(values) == 5
    assert path_length(torch.tensor([1.0, 2.0, 6.0])) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 64), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_great_circle_leads_from_latent_to_latent(size: int, seed: int, place: float) -> None:
    first, last = torch.randn(2, 1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius = math.sqrt(size)

    def at(t: float) -> Tensor:
        return great_circle(first, last, torch.tensor([[t]], dtype=torch.float64))

    torch.testing.assert_close(at(0), first / first.norm() * radius)
    torch.testing.assert_close(at(1), last / last.norm() * radius)
    assert at(place).norm().item() == pytest.approx(radius)
    middle = first / first.norm() + last / last.norm()
    torch.testing.assert_close(at(0.5), middle / middle.norm() * radius, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_distance_makes_a_number_of_images_that_are_not_finite(value: float) -> None:
    """In a place that the crop leaves out, too: such a generator is broken."""

    class Broken(Sphere):
        def forward(self, latents: Tensor, labels: None = None) -> Tensor:
            images = super().forward(latents)
            images[latents[:, 0] > 0, :, -1, -1] = value
            return images

    def rectified(a: Tensor, b: Tensor) -> Tensor:
        return small.squared(*(images.nan_to_num(0, 0, 0) for images in (a, b)))

    found = PathLength(Broken(), rectified, "z", "end", crop=True).distances(SAMPLES)
    broken = drawn_latents(SAMPLES, 4)[0][:, 0] > 0
    assert 0 < broken.sum() < len(SAMPLES)
    assert torch.equal(found.isfinite(), ~broken)


def test_what_cannot_be_measured_is_refused(linear) -> None:
    with pytest.raises(
        UsageError, match=r"ppl_w_end is a length in W, which Progressive GAN does not have; take ppl_z"
    ):
        PathLength(small.generator("progressive"), small.squared, "w", "end")
    with pytest.raises(ValueError, match="labels are of 0 classes; the generator has 2"):
        PathLength(small.generator("stylegan", 2), small.squared, "z", "end")
    with pytest.raises(ValueError, match="labels are of 2 classes; the generator has 0"):
        PathLength(linear, small.squared, "z", "end", CLASSES)
    with pytest.raises(Failure, match="ppl_z_end is a mean over samples, but there are none"):
        path_length(torch.zeros(0), "ppl_z_end")
    with pytest.raises(Failure, match="ppl_w_full is not finite for 2 of 3 samples"):
        path_length(torch.tensor([1.0, float("nan"), float("inf")]), "ppl_w_full")
