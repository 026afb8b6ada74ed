"""FID, KID, Inception score, precision and recall: torch-fidelity's numbers, and those of literal formulas."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import fidelity
from hires_gan.evaluation.fidelity import (
    fid,
    inception_score,
    kid,
    kid_subset_size,
    precision_recall,
)
from hires_gan.evaluation.moments import moments
from hires_gan.evaluation.perceptual import exact_float32

REALS, FAKES = 40, 30


def drawn(count: int, seed: int, dimension: int = 6, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def reals() -> Tensor:
    return drawn(REALS, seed=1)


@pytest.fixture
def fakes() -> Tensor:
    return drawn(FAKES, seed=2, shift=0.5) * 1.3


def literal_fid(a: Tensor, b: Tensor) -> float:
    """From symmetric eigenvalues: tr sqrt(A B) is that of sqrt(A) B sqrt(A)."""
    one, two = a.double().numpy(), b.double().numpy()
    first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    shift = one.mean(0) - two.mean(0)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * middle)


def literal_kid(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(float(i) * float(j) for i, j in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def among(z: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(kernel(z[i], z[j]) for i, j in pairs) / len(pairs)

    return among(a) + among(b) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def literal_score(logits: Tensor) -> list[float]:
    rows = logits[np.random.RandomState(2020).permutation(len(logits))].double()
    scores = []
    for part in range(10):
        chances = rows[part * len(rows) // 10 : (part + 1) * len(rows) // 10].softmax(1).numpy()
        marginal = chances.mean(0)
        divergences = [sum(p * math.log(p / q) for p, q in zip(c, marginal, strict=True)) for c in chances]
        scores.append(math.exp(np.mean(divergences)))
    return scores


def literal_share_among(points: Tensor, of: Tensor) -> float:
    """The share of points that are as near to some member as its third neighbour."""
    hits = 0
    for point in points:
        for number, member in enumerate(of):
            others = sorted(float((member - other).norm()) for i, other in enumerate(of) if i != number)
            if float((point - member).norm()) <= others[2]:
                hits += 1
                break
    return hits / len(points)


def test_fid_is_that_of_the_formula(reals: Tensor, fakes: Tensor) -> None:
    assert fid(moments(reals), moments(fakes)) == pytest.approx(literal_fid(reals, fakes), rel=1e-6)
    few = drawn(4, seed=3)  # fewer than dimensions: covariances without full rank
    assert fid(moments(reals), moments(few)) == pytest.approx(literal_fid(reals, few), rel=1e-6)


def test_fid_of_known_distributions() -> None:
    """In one dimension: the square of the difference of means plus that of deviations."""
    a = torch.tensor([[-1.0], [1.0]]) * math.sqrt(0.5)  # deviation 1 by N - 1
    assert fid(moments(a), moments(a * 3 + 5)) == pytest.approx(5**2 + 2**2, rel=1e-6)
    assert fid(moments(a), moments(a)) == pytest.approx(0, abs=1e-9)


def test_kid_is_that_of_the_formula_for_whole_sets() -> None:
    a, b = drawn(12, seed=1), drawn(12, seed=2, shift=0.5)
    found = kid(a, b)
    assert found.mean == pytest.approx(literal_kid(a.numpy(), b.numpy()), rel=1e-4)
    assert found.deviation == pytest.approx(0, abs=1e-5)


def test_kid_is_that_of_the_formula_for_subsets(reals: Tensor, fakes: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "KID_SUBSETS", 3)
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", 10)
    random = np.random.RandomState(2020)
    expected = []
    for _ in range(3):
        one = fakes.numpy()[random.choice(FAKES, 10, replace=False)]
        two = reals.numpy()[random.choice(REALS, 10, replace=False)]
        expected.append(literal_kid(one, two))
    found = kid(reals, fakes)
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.deviation == pytest.approx(np.std(expected), rel=1e-3)


def test_kid_takes_smaller_sets_whole() -> None:
    assert kid_subset_size(5000, 2000) == 1000
    assert kid_subset_size(5000, 300) == 300
    assert kid_subset_size(20, 300) == 20


def test_the_score_is_that_of_the_formula() -> None:
    logits = drawn(57, seed=4, dimension=5) * 2
    expected = literal_score(logits)
    found = inception_score(logits)
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-9)
    assert found.deviation == pytest.approx(np.std(expected), rel=1e-9)


def test_the_score_of_a_sure_and_of_a_clueless_classifier() -> None:
    sure = torch.eye(4).repeat(10, 1)[torch.randperm(40, generator=torch.Generator().manual_seed(0))] * 100
    found = inception_score(sure.repeat_interleave(100, 0)).mean
    assert 3.9 < found <= 4  # each part of 400 holds each class about as often
    assert inception_score(torch.zeros(40, 4)).mean == pytest.approx(1)


def test_precision_and_recall_are_those_of_the_loops(reals: Tensor, fakes: Tensor) -> None:
    precision, recall = precision_recall(reals, fakes)
    assert precision == pytest.approx(literal_share_among(fakes, of=reals))
    assert recall == pytest.approx(literal_share_among(reals, of=fakes))
    assert 0 < precision < 1 and 0 < recall < 1


def test_precision_and_recall_in_blocks(reals: Tensor, fakes: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = precision_recall(reals, fakes)
    monkeypatch.setattr(fidelity, "_ROWS", 7)
    assert precision_recall(reals, fakes) == pytest.approx(whole)


def test_precision_and_recall_of_equal_and_of_distant_sets(reals: Tensor) -> None:
    assert precision_recall(reals, reals) == (1.0, 1.0)
    assert precision_recall(reals, reals + 1000) == (0.0, 0.0)
    one_place = reals[:1] + 0.001 * drawn(30, seed=5)  # all of a few fakes are real, most reals are missing
    precision, recall = precision_recall(reals, one_place)
    assert precision == 1.0 and recall < 0.1


@pytest.mark.parametrize("metric", [kid, precision_recall])
def test_sets_that_do_not_fit_are_refused(metric: object, reals: Tensor) -> None:
    assert callable(metric)
    spoiled = reals.clone()
    spoiled[7, 2] = math.nan
    with pytest.raises(Failure, match="features of the fakes of 1 of 40 images are not finite"):
        metric(reals, spoiled)
    with pytest.raises(Failure, match="features of the reals of 1 of 40 images are not finite"):
        metric(spoiled, reals)
    with pytest.raises(Failure, match="reals have 6 features each and the fakes 5"):
        metric(reals, reals[:, :5])
    with pytest.raises(UsageError, match="cannot be computed from 1 fakes"):
        metric(reals, reals[:1])
    with pytest.raises(UsageError, match="cannot be computed from 1 reals"):
        metric(reals[:1], reals)


def test_fid_and_the_score_refuse_what_does_not_fit(reals: Tensor) -> None:
    with pytest.raises(UsageError, match="fid cannot be computed from 1 fakes"):
        fid(moments(reals), moments(reals[:1]))
    with pytest.raises(Failure, match="reals have 6 features each and the fakes 5"):
        fid(moments(reals), moments(reals[:, :5]))
    with pytest.raises(UsageError, match="inception_score cannot be computed from 9 fakes"):
        inception_score(reals[:9])
    with pytest.raises(Failure, match="logits of the fakes of 1 of 40"):
        inception_score(torch.cat((reals[1:], torch.full((1, 6), math.inf))))


def test_numbers_beyond_float32_are_no_result() -> None:
    with pytest.raises(Failure, match="kid is .*too large for float32"):
        kid(drawn(10, 1) * 1e15, drawn(10, 2) * 1e15)


def test_tf32_is_off_meanwhile_and_as_it_was_afterwards() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        for allowed in (True, False):
            matmul.allow_tf32 = cudnn.allow_tf32 = allowed
            with pytest.raises(KeyError), exact_float32():
                assert not matmul.allow_tf32 and not cudnn.allow_tf32
                raise KeyError
            assert matmul.allow_tf32 == cudnn.allow_tf32 == allowed
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_without_the_library_it_is_named_and_nothing_else_fails() -> None:
    """In a process of its own, in which torch-fidelity cannot be imported."""
    code = """
import sys
sys.modules["torch_fidelity"] = None
import torch
from hires_gan.errors import UsageError
from hires_gan.evaluation import coverage, features, fidelity, protocol, real_features
print(coverage.density_and_coverage(torch.eye(8), torch.eye(8)))
try:
    fidelity.kid(torch.eye(4), torch.eye(4))
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "(0.2, 1.0)" in done.stdout  # all are equally far apart: each is among its own surroundings alone
    assert "pip install 'hires-gan[metrics]', or take swd alone" in done.stdout
