"""FID, KID, Inception score, precision and recall: torch-fidelity's numbers, and those of literal formulas."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation import beside, fidelity, neighbours
from hires_gan.evaluation.averages import NotFinite
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


def stopped_at(number: int, asked: list[int]) -> Callable[[], bool]:
    asked.clear()
    return lambda: asked.append(1) or len(asked) == number  # type: ignore[func-returns-value]


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


def test_fid_of_a_set_and_itself_is_as_good_as_zero(reals: Tensor) -> None:
    """Of covariances without full rank, roots of what rounding leaves of zeros add up: 1e-7 of their trace."""
    assert abs(fid(moments(reals), moments(reals))) < 1e-9
    few = drawn(20, seed=3, dimension=60)
    found = moments(few)
    assert abs(fid(found, found)) < 1e-5 * np.trace(found.covariance)


def test_fid_is_stopped_while_eigenvalues_are_computed(reals: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is one call: here of something that goes on until it is told to end."""
    end = threading.Event()

    def compute(*_: object, **__: object) -> dict[str, float]:
        assert end.wait(60)
        return {"frechet_inception_distance": 5.0}

    def failing(*_: object, **__: object) -> dict[str, float]:
        raise TimeoutError("as it happens")

    module = fidelity.torch_fidelity("metric_fid")
    monkeypatch.setattr(module, "fid_statistics_to_metric", compute)
    monkeypatch.setattr(beside, "SLICE", 0.01)
    asked: list[int] = []
    with pytest.raises(Stopped):
        fid(moments(reals), moments(reals), stopped_at(3, asked))
    assert len(asked) == 3

    def never_but_end_it() -> bool:
        end.set()
        return False

    assert fid(moments(reals), moments(reals), never_but_end_it) == 5.0
    monkeypatch.setattr(module, "fid_statistics_to_metric", failing)
    with pytest.raises(TimeoutError, match="as it happens"):
        fid(moments(reals), moments(reals))


def test_fid_of_known_distributions() -> None:
    """In one dimension: the square of the difference of means plus that of deviations."""
    a = torch.tensor([[-1.0], [1.0]]) * math.sqrt(0.5)  # deviation 1 by N - 1
    assert fid(moments(a), moments(a * 3 + 5)) == pytest.approx(5**2 + 2**2, rel=1e-6)
    assert fid(moments(a), moments(a)) == pytest.approx(0, abs=1e-9)


def test_kid_is_that_of_the_formula_for_whole_sets() -> None:
    a, b = drawn(12, seed=1), drawn(12, seed=2, shift=0.5)
    found = kid(a, b)
    assert found.mean == pytest.approx(literal_kid(a.numpy(), b.numpy()), rel=1e-4)
    assert found.deviation is None, "subsets that differ by rounding alone"
    assert kid(a, drawn(13, seed=2, shift=0.5)).deviation, "one that is not taken whole makes them differ"


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


@pytest.mark.parametrize(("count", "size"), [(40, 10), (30, 1000)])
def test_kid_is_torch_fidelitys(count: int, size: int, reals: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", size)
    fakes = drawn(count, seed=9, shift=0.4)
    expected = fidelity.torch_fidelity("metric_kid").kid_features_to_metric(
        fakes, reals, kid_subset_size=min(size, count), verbose=False
    )
    found = kid(reals, fakes)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6, abs=0)
    assert found.deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6, abs=0)


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


def torch_fidelitys(reals: Tensor, fakes: Tensor) -> tuple[float, float]:
    compute = fidelity.torch_fidelity("metric_prc").prc_features_to_metric
    found = compute(fakes, reals, prc_neighborhood=3, save_cpu_ram=True, verbose=False)
    return found["precision"], found["recall"]


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(1, 8), st.integers(0, 10**6), st.sampled_from([0, 1, 3]))
def test_precision_and_recall_are_torch_fidelitys_where_many_distances_are_equal(
    count: int, fakes: int, dimension: int, seed: int, shift: int
) -> None:
    """Of points on a grid, many in one place: nothing is rounded, so that whether the border counts decides."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 4, (count, dimension), generator=random).float()
    b = torch.randint(0, 4, (fakes, dimension), generator=random).float() + shift
    assert precision_recall(a, b) == pytest.approx(torch_fidelitys(a, b), abs=1e-6)


@pytest.mark.parametrize("dimension", [2, 40])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 0.7), (-0.2, 1.5)])
def test_precision_and_recall_are_torch_fidelitys(dimension: int, shift: float, scale: float) -> None:
    a, b = drawn(300, 1, dimension), drawn(200, 2, dimension, shift) * scale
    found = precision_recall(a, b)
    assert found == pytest.approx(torch_fidelitys(a, b), abs=1e-6)
    assert found != (1.0, 1.0)


def test_precision_and_recall_count_the_border() -> None:
    """Reals at 0, 1, ..., 9, where the third neighbour of one in the middle is 2 away: of 0 it is 3 away."""
    reals = torch.arange(10.0)[:, None]
    for shift in (0.0, 0.25, 1e6, -3e6):
        for place, among in ((-3.0, 1.0), (-3.25, 0.0)):
            fakes = torch.full((4, 1), place)
            assert precision_recall(reals + shift, fakes + shift)[0] == among


def test_precision_and_recall_in_blocks(reals: Tensor, fakes: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = precision_recall(reals, fakes)
    monkeypatch.setattr(neighbours, "_ENTRIES", 7 * FAKES)
    assert precision_recall(reals, fakes) == whole


def test_the_inception_score_is_stopped_in_the_one_call_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    end, asked = threading.Event(), list[int]()
    monkeypatch.setattr(fidelity.torch_fidelity("metric_isc"), "isc_features_to_metric", lambda *_: end.wait(60))
    monkeypatch.setattr(beside, "SLICE", 0.01)
    with pytest.raises(Stopped):
        inception_score(torch.zeros(40, 4), stopped_at(3, asked))
    assert len(asked) == 3
    end.set()


def test_kid_and_precision_are_stopped_wherever_they_are(
    reals: Tensor, fakes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_ENTRIES", 10 * REALS)  # 4 blocks of reals, 3 of fakes (13 rows each), 4 of both
    asked: list[int] = []
    for metric, times in ((kid, 100), (precision_recall, 4 + 3 + 4)):
        for number in (1, 2, times // 2, times):
            with pytest.raises(Stopped):
                metric(reals, fakes, stopped=stopped_at(number, asked))  # type: ignore[operator]
            assert len(asked) == number
        assert metric(reals, fakes, stopped=stopped_at(times + 1, asked)) == metric(reals, fakes)  # type: ignore[operator]
        assert len(asked) == times


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
    with pytest.raises(NotFinite, match="kid is .*too large for float32"):
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
from hires_gan.evaluation.catalogue import METRICS
from hires_gan.evaluation.evaluator import COMMAND, Counts, check_metrics
print(coverage.density_and_coverage(torch.eye(8), torch.eye(8)))
try:
    fidelity.kid(torch.eye(4), torch.eye(4))
except UsageError as error:
    print(error)
for name in METRICS:
    try:
        check_metrics([name], Counts(64, 64), 64, COMMAND)
    except UsageError as error:
        print("refused:", name, "hires-gan[metrics]" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "(0.2, 1.0)" in done.stdout  # all are equally far apart: each is among its own surroundings alone
    assert "pip install 'hires-gan[metrics]', or take swd alone" in done.stdout
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    assert refused == [f"refused: {name} True" for name in ("fid", "kid", "inception_score")], "before anything is made"
