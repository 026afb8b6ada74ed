"""Diversity of translations by both protocols, and how much content they keep."""

from __future__ import annotations

from itertools import combinations

import pair_metrics as small
import pytest
import torch
from torch import Tensor

from hires_gan.errors import Failure
from hires_gan.evaluation.averages import exact_mean
from hires_gan.evaluation.diversity import MUNIT, PROTOCOLS, STARGAN2, lpips_diversity
from hires_gan.evaluation.perceptual import LPIPS
from hires_gan.evaluation.preservation import content_preservation
from hires_gan.networks.munit import Generator
from hires_gan.networks.translation import Translator
from hires_gan.networks.vgg import VGG16Features
from hires_gan.randomness import Purpose, RandomSource

STYLE = 4


class Tints:
    """Adds the first three numbers of a style to the colours of an image."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, inputs: Tensor, styles: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        return inputs + styles[:, :3, None, None]


@pytest.fixture(scope="module")
def translator() -> Translator:
    torch.manual_seed(0)
    network = {"style_size": STYLE, "base": 4, "most": 8, "blocks": 1, "features": 8}
    return Translator({domain: Generator(**network) for domain in ("a", "b")}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vgg() -> VGG16Features:
    return small.random_vgg()


def styles_of(number: int, outputs: int) -> Tensor:
    return RandomSource(0).normal(Purpose.STYLE_DIVERSITY, torch.tensor([number]), (outputs, STYLE))[0]


def test_the_protocols_are_the_published_ones() -> None:
    assert list(PROTOCOLS) == ["lpips_diversity_munit", "lpips_diversity_stargan2"]
    assert MUNIT.inputs * len(MUNIT.pairs) == 1900
    assert sorted(number for pair in MUNIT.pairs for number in pair) == list(range(MUNIT.outputs))  # none is used twice
    assert STARGAN2.inputs is None and STARGAN2.outputs == 10 and len(STARGAN2.pairs) == 45


@pytest.mark.parametrize("name", PROTOCOLS)
def test_it_is_the_mean_over_pairs_that_are_looked_at_one_by_one(name) -> None:
    protocol, translate, inputs = PROTOCOLS[name], Tints(), small.noise_images(3, 8)
    samples = torch.tensor([5, 0, 2**32 + 7])
    found = lpips_diversity(translate, inputs, samples, STYLE, small.squared, protocol)
    expected = []
    for number in samples.tolist():
        styles = styles_of(number, protocol.outputs)[:, :3]
        if name.endswith("munit"):
            pairs = [(styles[2 * k], styles[2 * k + 1]) for k in range(19)]
        else:
            pairs = list(combinations(styles, 2))
        expected.append(sum(float(64 * ((a - b).double() ** 2).sum()) for a, b in pairs) / len(pairs))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert exact_mean(found, name) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_it_is_the_expected_distance_of_two_styles() -> None:
    """|s - s'|^2 of three numbers from N(0, 1) has the mean 6."""
    inputs, samples = torch.zeros(200, 3, 8, 8), torch.arange(200)
    for protocol in PROTOCOLS.values():
        found = lpips_diversity(Tints(), inputs, samples, STYLE, small.squared, protocol)
        assert exact_mean(found, "diversity") / 64 == pytest.approx(6, abs=0.5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_input_is_the_same_for_any_ranks(name, translator) -> None:
    lpips = LPIPS(small.random_alexnet(), small.random_heads((64, 192, 384, 256, 256)))
    inputs, samples = small.noise_images(4, 32), torch.arange(4)

    def translate(images: Tensor, styles: Tensor) -> Tensor:
        assert len(images) == len(styles) == 16 and not torch.is_grad_enabled()
        return translator(images, styles, "a", "b")

    def share(own: slice) -> Tensor:
        return lpips_diversity(translate, inputs[own], samples[own], STYLE, lpips, PROTOCOLS[name])

    found = share(slice(None))
    assert found.dtype == torch.float64 and found.min() > 0
    ranks = torch.empty_like(found)
    for rank in range(2):
        ranks[rank::2] = share(slice(rank, None, 2))
    assert torch.equal(ranks, found)
    assert len(share(slice(0, 0))) == 0


def test_a_translator_that_ignores_styles_has_no_diversity() -> None:
    inputs = small.noise_images(2, 8)
    for protocol in PROTOCOLS.values():
        found = lpips_diversity(lambda x, _: -x, inputs, torch.arange(2), STYLE, small.squared, protocol)
        assert found.tolist() == [0, 0]


def test_large_translations_are_made_few_at_a_time_and_compared_at_256() -> None:
    translate, sides = Tints(), set()

    def distance(a: Tensor, b: Tensor) -> Tensor:
        sides.add(a.shape[-1])
        return small.squared(a, b)

    lpips_diversity(translate, torch.zeros(1, 3, 512, 512), torch.tensor([0]), STYLE, distance, STARGAN2)
    assert translate.sizes == [8, 8]
    assert sides == {256}


def test_translations_that_are_not_finite_are_refused_in_the_mean() -> None:
    inputs = torch.tensor([0.0, float("nan")])[:, None, None, None].expand(-1, 3, 8, 8)
    found = lpips_diversity(Tints(), inputs, torch.arange(2), STYLE, small.squared, STARGAN2)
    with pytest.raises(Failure, match="lpips_diversity_stargan2 is not finite for 1 of 2 samples"):
        exact_mean(found, "lpips_diversity_stargan2")
    with pytest.raises(ValueError, match="there are 2 inputs and 3 samples"):
        lpips_diversity(Tints(), inputs, torch.arange(3), STYLE, small.squared, STARGAN2)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_distance_makes_a_number_of_translations_that_are_not_finite(value: float) -> None:
    inputs = torch.tensor([0.0, value])[:, None, None, None].expand(-1, 3, 8, 8)

    def rectified(a: Tensor, b: Tensor) -> Tensor:
        return small.squared(*(images.nan_to_num(0, 0, 0) for images in (a, b)))

    found = lpips_diversity(Tints(), inputs, torch.arange(2), STYLE, rectified, STARGAN2)
    assert found.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("layer", ["relu4_3", "relu5_3"])
def test_content_is_compared_by_normalised_features(vgg, layer) -> None:
    inputs, outputs = small.noise_images(3, 32, 1), small.noise_images(3, 32, 2)
    found = content_preservation(inputs, outputs, vgg, layer)
    for k in range(3):
        total, count = 0.0, 0
        a, b = (vgg.features_at(images[k : k + 1], layer)[0].double() for images in (inputs, outputs))
        for one, two in zip(a, b, strict=True):
            x, y = (((z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()) for z in (one, two))
            total, count = total + float(((x - y) ** 2).sum()), count + x.numel()
        assert found[k].item() == pytest.approx(total / count, rel=1e-4)
        assert total > 0
    assert content_preservation(inputs, inputs, vgg, layer).tolist() == [0, 0, 0]


def test_a_change_of_colours_keeps_more_content_than_a_change_of_places(vgg) -> None:
    coarse = torch.nn.functional.interpolate(small.noise_images(2, 8), size=64, mode="bicubic").clamp(-1, 1)
    tinted = coarse * 0.7 + torch.tensor([0.2, -0.1, 0.0])[:, None, None]
    kept, lost = (content_preservation(coarse, other, vgg) for other in (tinted, coarse.flip(3)))
    assert (kept * 2 < lost).all()


def test_content_of_an_image_does_not_depend_on_the_others(vgg) -> None:
    inputs, outputs = small.noise_images(9, 32, 1), small.noise_images(9, 32, 2)
    found = content_preservation(inputs, outputs, vgg)
    ranks = torch.empty_like(found)
    for rank in range(2):
        ranks[rank::2] = content_preservation(inputs[rank::2], outputs[rank::2], vgg)
    torch.testing.assert_close(ranks, found, rtol=1e-6, atol=0)
    assert exact_mean(ranks, "content") == pytest.approx(exact_mean(found, "content"), rel=1e-7)
    assert len(content_preservation(inputs[:0], outputs[:0], vgg)) == 0


def test_content_is_compared_at_the_size_of_the_smaller_image(vgg) -> None:
    inputs, outputs = small.noise_images(1, 64, 1), small.noise_images(1, 32, 2)
    halved = inputs.reshape(1, 3, 32, 2, 32, 2).mean((3, 5))
    assert torch.equal(content_preservation(inputs, outputs, vgg), content_preservation(halved, outputs, vgg))
    tiny = small.noise_images(1, 8, 1)
    assert content_preservation(tiny, -tiny, vgg).item() > 0
    with pytest.raises(ValueError, match="there are 1 inputs and 2 outputs"):
        content_preservation(inputs, small.noise_images(2, 32), vgg)
