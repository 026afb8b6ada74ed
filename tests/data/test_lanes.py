"""The order of streamed shards: every row once per epoch, a function of (seed, lanes, sample), in lanes."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from input_definition import splitmix

from hires_gan.data.lanes import LaneOrder
from hires_gan.data.opening import resolve_lanes
from hires_gan.data.order import Order, Permutation

KNOWN = [
    [7, 3, 11, 6, 8, 5, 10, 2, 9, 1, 4, 0],
    [103458, 150183, 51376, 103039, 142849, 79647],
]
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=20)
LANES = st.integers(1, 70)


def rows_of(order: LaneOrder, epoch: int) -> list[int]:
    return [order.row(epoch * order.count + place) for place in range(order.count)]


def shard_of(counts: list[int], row: int) -> int:
    return int(np.searchsorted(np.cumsum(counts), row, side="right"))


# --- the definition, written down literally ---------------------------------------------------------------------------


def feistel(key: int, count: int, place: int) -> int:
    half = max(4, -(-max(count - 1, 0).bit_length() // 2))
    while True:
        left, right = divmod(place, 2**half)
        for number in range(6):
            left, right = right, left ^ splitmix(splitmix(key ^ (number + 1)) ^ right) % 2**half
        place = left * 2**half + right
        if place < count:
            return place


def epoch_literally(seed: int, counts: list[int], lanes: int, stream: int, epoch: int) -> list[int]:
    """All rows of an epoch: the shuffled sequence, cut into lanes, dealt out place by place."""
    key = splitmix(splitmix(splitmix(splitmix(seed) ^ stream) ^ int.from_bytes(b"lanes", "big")) ^ epoch)
    shards = [feistel(key, len(counts), turn) for turn in range(len(counts))]
    sequence = [
        sum(counts[:shard]) + feistel(splitmix(key ^ (2**40 + shard)), counts[shard], inside)
        for shard in shards
        for inside in range(counts[shard])
    ]
    length, longer = divmod(len(sequence), lanes)
    lengths = [length + (lane < longer) for lane in range(lanes)]
    starts = [sum(lengths[:lane]) for lane in range(lanes)]
    segments = [sequence[start : start + size] for start, size in zip(starts, lengths, strict=True)]
    return [segments[place % lanes][place // lanes] for place in range(len(sequence))]


@given(SEEDS, COUNTS, LANES, st.integers(0, 3), st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_is_the_definition(seed, counts, lanes, stream, epoch):
    order = LaneOrder(seed, counts, lanes, stream)
    assert rows_of(order, epoch) == epoch_literally(seed, counts, lanes, stream, epoch)


def test_the_order_is_the_same_for_ever():
    """A checkpoint holds nothing of it but the number of lanes: another order would break every resume."""
    assert rows_of(LaneOrder(0, [3, 4, 5], 2), 0) == KNOWN[0]
    assert [LaneOrder(1, [3000] * 70, 32).row(k) for k in (0, 1, 31, 32, 210_000, 12_000_000)] == KNOWN[1]


# --- what it promises -------------------------------------------------------------------------------------------------


@given(SEEDS, COUNTS, LANES, st.integers(0, 10**6))
@example(0, [1], 1, 0)
@example(0, [1], 70, 3)
@example(0, [1, 1], 3, 0)
@example(5, [40, 1, 40], 2, 0)
@settings(max_examples=50, deadline=None)
def test_every_epoch_holds_every_row_once(seed, counts, lanes, epoch):
    assert sorted(rows_of(LaneOrder(seed, counts, lanes), epoch)) == list(range(sum(counts)))


@given(SEEDS, COUNTS, LANES, st.lists(st.integers(0, 3000), max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_sample_is_a_function_of_its_number_alone(seed, counts, lanes, samples):
    """Whatever was asked before, in whatever order: nothing has to be remembered to go on."""
    order = LaneOrder(seed, counts, lanes)
    asked = [order.row(sample) for sample in samples]
    assert asked == [LaneOrder(seed, counts, lanes).row(sample) for sample in samples]


@given(SEEDS, COUNTS, st.integers(1, 8), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_ranks_side_by_side_give_the_global_order_and_equal_batch_counts(seed, counts, groups, epochs):
    """Each rank takes the same places of every batch: put together, 1, 2 and 3 ranks are the one order."""
    batch, steps = 4 * groups, -(-sum(counts) * epochs // (4 * groups))
    order = LaneOrder(seed, counts, 32)
    whole = [order.row(sample) for sample in range(batch * steps)]
    for ranks in (1, 2, 3):
        orders = [LaneOrder(seed, counts, 32) for _ in range(ranks)]
        bounds = [rank * groups // ranks * 4 for rank in range(ranks + 1)]
        together = [
            orders[rank].row(step * batch + place)
            for step in range(steps)
            for rank in range(ranks)
            for place in range(bounds[rank], bounds[rank + 1])
        ]
        assert together == whole


@given(SEEDS, COUNTS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_rank_reads_its_own_lanes_and_hardly_another_ranks_shards(seed, counts, share, ranks, times):
    """Within an epoch whose samples fill the batches; a shard of two ranks has a cut between their lanes."""
    batch = share * ranks
    lanes = batch * times
    counts = [count * lanes for count in counts]
    order = LaneOrder(seed, counts, lanes)
    read = [
        {
            shard_of(counts, order.row(step * batch + place))
            for step in range(order.count // batch)
            for place in range(rank * share, (rank + 1) * share)
        }
        for rank in range(ranks)
    ]
    shared = sum(len(one & other) for one, other in itertools.combinations(read, 2))
    cuts_between_ranks = lanes - 1
    assert set().union(*read) == set(range(len(counts)))
    assert sum(map(len, read)) <= len(counts) + cuts_between_ranks
    assert shared <= cuts_between_ranks * max(1, ranks - 1)


def test_a_lane_reads_one_shard_after_another():
    counts, lanes = [50] * 24, 8
    order = LaneOrder(3, counts, lanes)
    rows = rows_of(order, 2)
    for lane in range(lanes):
        shards = [shard for shard, _ in itertools.groupby(shard_of(counts, row) for row in rows[lane::lanes])]
        assert len(shards) == len(set(shards)) == 3  # 150 samples, and the cuts fall between shards
    at_once = [len({shard_of(counts, row) for row in rows[start : start + 8]}) for start in range(0, 1200, 8)]
    assert max(at_once) == 8


@given(SEEDS, COUNTS, st.integers(1, 12), st.integers(0, 2000), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_shards_ahead_names_what_is_needed_now_and_what_comes_next(seed, counts, lanes, start, size):
    order = LaneOrder(seed, counts, lanes)
    samples = range(start, start + size)
    named = order.shards_ahead(samples)
    assert len(named) == len(set(named))
    now = list(dict.fromkeys(shard_of(counts, order.row(sample)) for sample in samples))
    assert named[: len(now)] == now
    assert set(named) == set(now) | following_literally(order, counts, samples)
    both = order.shards_ahead(samples, range(start + size, start + size + 3))
    more = [shard_of(counts, order.row(sample)) for sample in range(start + size, start + size + 3)]
    assert both[: len({*now, *more})] == list(dict.fromkeys([*now, *more]))


def following_literally(order: LaneOrder, counts: list[int], samples: range) -> set[int]:
    """Walk on from the last sample of each lane until it reads another segment of a shard."""
    found = set()
    for sample in {sample % order.count % order.lanes: sample for sample in samples}.values():
        epoch, place = divmod(sample, order.count)
        shard = shard_of(counts, order.row(sample))
        while True:
            place += order.lanes
            if place >= order.count:
                found.add(shard_of(counts, order.row((epoch + 1) * order.count + sample % order.count % order.lanes)))
                break
            other = shard_of(counts, order.row(epoch * order.count + place))
            if other != shard:
                found.add(other)
                break
    return found


def test_the_sooner_the_first():
    """Of the shards that follow, those come first that a lane reaches first."""
    counts = [100, 130, 70, 110, 90, 95, 105, 120]
    order = LaneOrder(1, counts, 4)
    samples = range(40, 44)
    now, named = [shard_of(counts, order.row(sample)) for sample in samples], order.shards_ahead(samples)
    first_use = {
        shard: next(k for k in range(44, 2 * order.count) if shard_of(counts, order.row(k)) == shard)
        for shard in named
        if shard not in now
    }
    assert len(first_use) == 3  # two lanes go on to the same one
    reached = [first_use[shard] // 4 for shard in named if shard in first_use]
    assert reached == sorted(reached)


@pytest.mark.parametrize("shards", [64, 1024])
def test_a_steady_run_over_equal_shards_never_waits_for_the_next_ones(shards):
    """All 32 lanes go on at the same place. What fetches is hardly faster than what reads."""
    each, lanes = 30, 32
    counts = [each] * shards
    order = LaneOrder(0, counts, lanes)
    here, named, missed, notice = set(order.shards_ahead(range(lanes))[:lanes]), {}, 0, []
    fetching = 0.0
    for step in range(6 * each):  # more than two epochs of the smaller set
        samples = range(step * lanes, (step + 1) * lanes)
        now = {shard_of(counts, order.row(sample)) for sample in samples}
        missed += len(now - here)
        notice += [step - named.pop(shard) for shard in now if shard in named]
        wanted = order.shards_ahead(samples)
        here = set(wanted) & here  # the tightest cache: it holds nothing else
        for shard in wanted[len(now) :]:
            named.setdefault(shard, step)
        fetching += 1.1 * lanes / each  # so many shards arrive in a step
        missing = [shard for shard in wanted if shard not in here]
        here |= set(missing[: int(fetching)])
        fetching -= min(int(fetching), len(missing))
        fetching = min(fetching, 1.0)
        assert len(here) <= 2 * lanes
    assert missed == 0
    assert min(notice) >= each - 1


def test_epochs_seeds_streams_and_lanes_differ():
    counts = [50] * 20
    orders = [
        rows_of(LaneOrder(seed, counts, lanes, stream), epoch)
        for seed in (0, 1)
        for lanes in (4, 7)
        for stream in (0, 1)
        for epoch in (0, 1)
    ]
    orders.append([Order(0, 1000).row(sample) for sample in range(1000)])
    for one, other in itertools.combinations(orders, 2):
        # Independent shuffles agree in one place on average; here also where a shard happens to be at the same place.
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 20


def test_shards_and_samples_are_anywhere_in_the_epoch():
    counts, epochs = [10] * 10, 300
    order = LaneOrder(4, counts, 5)
    rows = np.array([rows_of(order, epoch) for epoch in range(epochs)])
    for observed in (rows // 10, rows % 10):
        places = np.stack([np.bincount(observed[:, place], minlength=10) for place in range(100)])
        surprise = (((places - epochs / 10) ** 2) / (epochs / 10)).sum(1)
        assert surprise.mean() < 9 + 4 * np.sqrt(2 * 9 / 100)  # chi-square of nine degrees of freedom


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 5000])
def test_all_places_at_once_are_those_one_by_one(count):
    permutation = Permutation(splitmix(count), count)
    assert permutation.all().tolist() == [permutation.at(place) for place in range(count)]


def test_a_billion_rows_in_many_shards_take_little():
    order = LaneOrder(0, [3000] * 333_334, 256)
    order.row(10**12)
    start = time.process_time()
    rows = [order.row(10**12 + k) for k in range(2000)]
    assert (time.process_time() - start) / 2000 < 1e-3
    assert len(set(rows)) == 2000
    assert max(rows) > 9 * 10**8


def test_lanes_follow_the_batch():
    assert [resolve_lanes("auto", batch) for batch in (1, 3, 8, 32, 33, 64)] == [32, 33, 32, 32, 33, 64]
    assert resolve_lanes(5, 64) == 5
