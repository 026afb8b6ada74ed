"""The order of the samples: a shuffle per epoch, in constant time, that looks like one."""

from __future__ import annotations

import itertools
import math
import sys
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from input_definition import row_of, splitmix

from hires_gan.data.order import Order

SEEDS = st.integers(0, 2**32 - 1)
KNOWN = [
    [3, 8, 0, 7, 6, 2, 4, 5, 9, 1],
    [6, 8, 0, 9, 3, 7, 2, 1, 5, 4],
    [29557, 46346, 54986, 41978, 18122],
    [953928346, 732920979, 832474685],
]


def epoch_of(order: Order, epoch: int) -> list[int]:
    return [order.row(sample) for sample in range(epoch * order.count, (epoch + 1) * order.count)]


def surprise(observed: np.ndarray, expected: float, freedom: int) -> float:
    """How many standard deviations a chi-square statistic lies above its mean."""
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@given(SEEDS, st.integers(1, 700), st.integers(0, 10**6), st.integers(0, 3))
@example(0, 1, 0, 0)
@example(0, 2, 3, 0)
@example(0, 3, 3, 0)
@example(1, 17, 0, 0)
@example(1, 255, 1, 1)
@example(1, 256, 1, 1)
@example(1, 257, 1, 1)
@example(1, 1024, 1, 1)
@example(1, 1031, 1, 1)
@settings(max_examples=60, deadline=None)
def test_every_epoch_holds_every_row_once(seed, count, epoch, stream):
    assert sorted(epoch_of(Order(seed, count, stream), epoch)) == list(range(count))


@pytest.mark.parametrize("count", [65_536, 65_537, 99_991])
def test_an_epoch_of_a_large_set_holds_every_row_once(count):
    rows = np.fromiter(epoch_of(Order(5, count), 1), np.int64)
    assert (np.bincount(rows, minlength=count) == 1).all()


@pytest.mark.parametrize("count", [999_983, 2**20, 10**6 + 1])
def test_a_sample_of_a_million_rows_has_no_row_twice(count):
    order = Order(5, count)
    rows = [order.row(7 * count + place) for place in range(0, count, 97)]
    assert len(set(rows)) == len(rows)
    assert 0 <= min(rows) <= max(rows) < count


@given(SEEDS, st.integers(1, 10**9), st.integers(0, 10**13), st.integers(0, 5))
@example(2**32 - 1, 1, 10**13, 0)
@settings(max_examples=200, deadline=None)
def test_is_the_definition(seed, count, sample, stream):
    assert Order(seed, count, stream).row(sample) == row_of(seed, count, sample, stream)


def test_the_mixer_is_splitmix64():
    """The first outputs of the generator under the seed 0, as published with it."""
    weyl = 0x9E3779B97F4A7C15
    outputs = [splitmix(number * weyl % 2**64) for number in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_order_is_the_same_for_ever():
    """A checkpoint holds nothing of the order but nimg: another order would break every resume."""
    assert epoch_of(Order(0, 10), 0) == KNOWN[0]
    assert epoch_of(Order(0, 10), 1) == KNOWN[1]
    assert [Order(1, 70_000).row(k) for k in (0, 1, 69_999, 70_000, 12_000_000)] == KNOWN[2]
    assert [Order(1, 10**9, 1).row(k) for k in (0, 10**9, 10**12)] == KNOWN[3]


def test_jumping_between_epochs_changes_nothing():
    order = Order(3, 33)
    straight = [order.row(k) for k in range(330)]
    samples = np.random.default_rng(0).permutation(330).tolist()
    assert [order.row(k) for k in samples] == [straight[k] for k in samples]


def test_epochs_seeds_and_streams_differ():
    count = 1000
    orders = [epoch_of(Order(seed, count, stream), epoch) for seed in (0, 1) for stream in (0, 1) for epoch in (0, 1)]
    for one, two in itertools.combinations(orders, 2):
        # Two independent shuffles agree in one place on average.
        assert sum(a == b for a, b in zip(one, two, strict=True)) < 10


@pytest.mark.parametrize(("count", "epochs"), [(2, 2000), (3, 2000), (5, 1000), (10, 1000), (33, 500), (100, 300)])
def test_looks_like_a_shuffle(count, epochs):
    """Rows over places, neighbours within an epoch, and epochs against the one before: all as by chance."""
    order = Order(11, count)
    rows = np.array([epoch_of(order, epoch) for epoch in range(epochs)])
    places = np.stack([np.bincount(rows[:, place], minlength=count) for place in range(count)])
    assert surprise(places, epochs / count, (count - 1) ** 2) < 4
    if count > 2:
        steps = np.bincount(((rows[:, 1:] - rows[:, :-1]) % count).ravel(), minlength=count)[1:]
        assert surprise(steps, epochs, count - 2) < 4
    agreements = (rows[1:] == rows[:-1]).sum(1)
    assert abs(agreements.mean() - 1) < 4 / math.sqrt(epochs)
    correlation = np.corrcoef(rows[1:].ravel(), rows[:-1].ravel())[0, 1]
    assert abs(correlation) < 4 / math.sqrt(rows.size)


def test_a_row_over_many_seeds_is_anywhere():
    places = np.bincount([Order(seed, 10).row(seed % 10) for seed in range(6000)], minlength=10)
    assert surprise(places, 600, 9) < 4


def test_every_permutation_is_as_likely():
    count, epochs = 5, 2400
    order = Order(2, count)
    numbers = {rows: number for number, rows in enumerate(itertools.permutations(range(count)))}
    found = np.bincount([numbers[tuple(epoch_of(order, epoch))] for epoch in range(epochs)], minlength=len(numbers))
    assert surprise(found, epochs / len(numbers), len(numbers) - 1) < 4


def test_a_billion_rows_take_no_array_and_no_time():
    order = Order(0, 10**9)
    start = time.process_time()
    rows = [order.row(10**12 + k) for k in range(2000)]
    assert (time.process_time() - start) / 2000 < 1e-3
    assert len(set(rows)) == 2000
    assert max(rows) > 9 * 10**8
    assert sum(sys.getsizeof(value) for value in vars(order).values()) < 1000


def test_walking_stays_short():
    """The network has at most four times as many places as the data set has rows, or 256."""
    for count in (257, 1025, 4097, 2**20 + 1):
        order, walked = Order(0, count), 0
        permutation = order._permutation(0)
        inner = permutation._once

        def counting(place, inner=inner):
            nonlocal walked
            walked += 1
            return inner(place)

        permutation._once = counting
        for sample in range(500):
            order.row(sample)
        assert walked / 500 < 5
