"""MS-SSIM of pairs against a literal reference, and which pairs are drawn."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.averages import NotFinite, exact_mean
from hires_gan.evaluation.similarity import draw_pairs, pair_similarities, scales_at, similarities
from hires_gan.evaluation.subjects import Shown

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, equation 8


def pictures(count: int, side: int, seed: int = 0, noise: float = 20.0) -> Tensor:
    """Smooth blobs under noise: uint8 `[count, 3, side, side]`."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=side, mode="bicubic")
    values = blobs * 200 + noise * torch.randn(count, 3, side, side, generator=generator)
    return values.clamp(0, 255).to(torch.uint8)


def literal(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    """One pair `[3, r, r]`: structure inside the borders at each scale, structure and light everywhere at the last."""
    taps = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    result = 1.0
    for scale in range(scales):
        last = scale == scales - 1
        values = []
        for x, y in zip(a, b, strict=True):
            if last:
                x, y = np.pad(x, 5, mode="reflect"), np.pad(y, 5, mode="reflect")
            for i in range(len(x) - 10):
                for j in range(len(x) - 10):
                    p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    light = (2 * mp * mq + (0.01 * 255) ** 2) / (mp**2 + mq**2 + (0.01 * 255) ** 2)
                    structure = (2 * cov + (0.03 * 255) ** 2) / (vp + vq + (0.03 * 255) ** 2)
                    values.append(light * structure if last else structure)
        result *= max(0.0, float(np.mean(values))) ** (BETAS[scale] / sum(BETAS[:scales]))
        a, b = ((z[:, ::2, ::2] + z[:, 1::2, ::2] + z[:, ::2, 1::2] + z[:, 1::2, 1::2]) / 4 for z in (a, b))
    return result


def test_it_is_that_of_the_formulas() -> None:
    a = pictures(3, 32)
    b = torch.cat((pictures(1, 32, seed=1), (a[1:2] // 2) + 40, pictures(1, 32, seed=2, noise=2)))
    expected = [literal(x.double().numpy(), y.double().numpy(), 2) for x, y in zip(a, b, strict=True)]
    assert 0.01 < min(expected) < 0.5 < max(expected)
    assert similarities(a, b).tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("side", [16, 64, 256])
def test_equal_images_have_1_opposite_ones_0_and_no_order_matters(side) -> None:
    a, b = pictures(1, side, noise=40), pictures(1, side, 1)
    assert similarities(a, a).item() == 1
    assert similarities(a, 255 - a).item() == 0  # correlations are negative: no root is drawn of them
    assert similarities(a, b).item() == similarities(b, a).item()
    assert 0 <= similarities(a, b).item() < 0.9


def test_there_are_as_many_scales_as_windows_fit_into() -> None:
    assert [scales_at(side) for side in (16, 32, 64, 128, 256, 512, 1024)] == [1, 2, 3, 4, 5, 5, 5]
    for side in (4, 8):
        with pytest.raises(UsageError, match=f"ms_ssim compares windows of 11x11 pixels, but images are {side}x{side}"):
            scales_at(side)
        with pytest.raises(UsageError, match="at least 16x16"):
            pair_similarities(lambda _: pytest.fail("asked for"), torch.zeros(1, 2, dtype=torch.int64), side)


def test_without_torchmetrics_one_sentence_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(UsageError, match="ms_ssim needs torchmetrics, which is not installed; install the extra"):
        similarities(pictures(1, 16), pictures(1, 16))


def test_a_pair_is_the_same_for_any_ranks_and_the_set_tells_collapse() -> None:
    images, asked = pictures(30, 32, noise=4), []

    def at(numbers: Tensor) -> Shown:
        asked.append(len(numbers))
        return Shown(images[numbers])

    pairs = draw_pairs(19, len(images))
    found = pair_similarities(at, pairs, 32)
    assert set(asked) == {16}  # of one shape, the last part filled up
    assert found.dtype == torch.float64 and found.shape == (19,)
    one_by_one = torch.cat([similarities(images[i][None], images[j][None]) for i, j in pairs.tolist()])
    torch.testing.assert_close(found, one_by_one, rtol=0, atol=1e-6)
    ranks = torch.empty_like(found)
    for rank in range(2):
        ranks[rank::2] = pair_similarities(at, pairs[rank::2], 32)
    assert torch.equal(ranks, found)
    assert exact_mean(ranks.flip(0), "ms_ssim") == exact_mean(found, "ms_ssim")
    collapsed = pair_similarities(lambda numbers: Shown(images[numbers * 0]), pairs, 32)
    assert exact_mean(found, "ms_ssim") < 0.2 < exact_mean(collapsed, "ms_ssim") == 1
    assert len(pair_similarities(at, pairs[:0], 32)) == 0


def test_a_pair_with_an_image_that_was_not_finite_has_no_value() -> None:
    images, finite = pictures(4, 16), torch.tensor([True, True, False, True])
    pairs = torch.tensor([[0, 1], [2, 3], [3, 1], [1, 2]])
    found = pair_similarities(lambda numbers: Shown(images[numbers], finite=finite[numbers]), pairs, 16)
    assert found.isnan().tolist() == [False, True, False, True]
    with pytest.raises(NotFinite, match="ms_ssim is not finite for 2 of 4 samples: the network gives images that are"):
        exact_mean(found, "ms_ssim")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.lists(st.integers(0, 4), min_size=2, max_size=60))
def test_pairs_are_of_two_images_of_one_class(count: int, classes: list[int]) -> None:
    labels = torch.tensor(classes)
    if max(Counter(classes).values()) < 2:
        with pytest.raises(Failure, match=r"compares two images of the same class, but there are \d images of"):
            draw_pairs(count, len(classes), labels)
        return
    pairs = draw_pairs(count, len(classes), labels)
    assert pairs.shape == (count, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert torch.equal(draw_pairs(count + 5, len(classes), labels)[:count], pairs)


def test_all_pairs_occur_equally_often() -> None:
    counts = Counter(map(tuple, draw_pairs(60_000, 4).tolist()))
    assert len(counts) == 12
    assert all(abs(count - 5000) < 350 for count in counts.values())  # five standard deviations
    labels = torch.tensor([7, 0, 7, 0, 7])
    counts = Counter(map(tuple, draw_pairs(60_000, 5, labels).tolist()))
    assert len(counts) == 8
    assert abs(counts[1, 3] - 12_000) < 500 and abs(counts[0, 4] - 6000) < 380


def test_images_that_are_alone_in_their_class_are_left_out_aloud(capsys) -> None:
    pairs = draw_pairs(50, 5, torch.tensor([0, 1, 1, 2, 1]))
    assert set(pairs.flatten().tolist()) == {1, 2, 4}
    assert "left out, since they are alone in their class: 2 of 5 images" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 1])
def test_fewer_than_two_images_are_refused(size) -> None:
    with pytest.raises(Failure, match=f"but there are {size} images; give more"):
        draw_pairs(3, size)
