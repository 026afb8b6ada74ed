"""Metrics of pairs on a GPU: what the CPU gives, and the same bits for any ranks."""

from __future__ import annotations

import pair_metrics as small
import pytest
import torch

from hires_gan.evaluation.diversity import STARGAN2, lpips_diversity
from hires_gan.evaluation.path_length import PATHS, PathLength
from hires_gan.evaluation.perceptual import LPIPS
from hires_gan.evaluation.preservation import content_preservation
from hires_gan.evaluation.similarity import draw_pairs, pair_similarities
from hires_gan.evaluation.subjects import Shown

pytestmark = pytest.mark.gpu
GPU = "cuda"


@pytest.mark.parametrize("family", small.FAMILIES)
def test_path_lengths(family) -> None:
    network, samples = small.generator(family), torch.arange(11)
    for space, sampling, crop in PATHS.values():
        if crop or (space == "w" and family == "progressive"):
            continue
        expected = PathLength(network, small.squared, space, sampling).distances(samples)
        wide = PathLength(small.generator(family).to(GPU), small.squared, space, sampling, dtype=torch.float64)
        torch.testing.assert_close(wide.distances(samples), expected, rtol=1e-5, atol=0)
        lengths = PathLength(small.generator(family).to(GPU), small.squared, space, sampling)
        assert lengths.dtype == torch.float32
        found = lengths.distances(samples)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
        assert torch.equal(lengths.distances(samples[3::2]), found[3::2])


def test_similarity() -> None:
    images = ((small.noise_images(8, 64) + 1) * 127).to(torch.uint8)
    pairs = draw_pairs(9, 8)
    expected = pair_similarities(lambda numbers: Shown(images[numbers]), pairs, 64)
    found = pair_similarities(lambda numbers: Shown(images[numbers].to(GPU)), pairs, 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(pair_similarities(lambda numbers: Shown(images[numbers].to(GPU)), pairs[4:], 64), found[4:])


def test_diversity_and_preservation() -> None:
    lpips = LPIPS(small.random_alexnet(), small.random_heads((64, 192, 384, 256, 256)))
    inputs, samples = small.noise_images(2, 32), torch.arange(2)

    def translate(images: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        return (images + styles[:, :3, None, None]).tanh()

    expected = lpips_diversity(translate, inputs, samples, 4, lpips, STARGAN2)
    found = lpips_diversity(translate, inputs.to(GPU), samples, 4, lpips.to(GPU), STARGAN2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    vgg = small.random_vgg()
    expected = content_preservation(inputs, -inputs, vgg)
    found = content_preservation(inputs.to(GPU), -inputs.to(GPU), vgg.to(GPU))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
