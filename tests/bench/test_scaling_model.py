"""The model behind `hires-gan bench scaling`: closed forms, and what must grow with what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hires_gan.bench.scaling_model import (
    Conditions,
    Network,
    PhaseCost,
    StepCost,
    all_reduce,
    control,
    exposed,
    largest_of,
    step,
    straggling,
    strong,
    summing,
    waited,
    weak,
)

FREE = Network(8, 1e30, 1e30, 0.0, 0.0, 0.0)
PLAIN = Network(per_node=8, intra=100e9, inter=10e9, hop_intra=0.0, hop_inter=0.0, hop_control=0.0)
NO_JITTER = Conditions(FREE)
ONE = StepCost({"only": PhaseCost(1, 0.08, 0.02, (10**9,), (0.0,))}, micro=4)
TWO = StepCost(
    {
        "often": PhaseCost(1, 0.03, 0.01, (4 * 10**8, 6 * 10**8), (0.02, 0.0)),
        "seldom": PhaseCost(4, 0.05, 0.03, (10**9,), (0.0,)),
    },
    micro=4,
    rest=0.005,
)
networks = st.builds(
    Network,
    st.integers(1, 16),
    st.floats(1e8, 1e12),
    st.floats(1e8, 1e12),
    st.floats(0, 1e-4),
    st.floats(0, 1e-4),
    st.floats(0, 1e-3),
)
gpus = st.integers(1, 2048)
sizes = st.integers(4, 10**10)


# The all-reduce


def test_a_ring_of_large_messages_is_the_bandwidth_term() -> None:
    assert summing(10**9, 8, 100e9, 0.0) == pytest.approx(2 * 7 / 8 * 0.01)


def test_a_small_message_goes_up_and_down_a_tree() -> None:
    assert summing(0, 1024, 1e9, 5e-6) == pytest.approx(2 * 10 * 5e-6)
    assert summing(0, 2, 1e9, 5e-6) == pytest.approx(2 * 5e-6)


def test_between_nodes_each_node_sends_the_whole_once_more() -> None:
    """16 GPUs: a ring of 8 in each node, and one of two nodes, at the node's own rate."""
    assert all_reduce(10**9, 16, PLAIN) == pytest.approx(2 * 7 / 8 * 0.01 + 2 * 1 / 2 * 0.1)
    assert all_reduce(10**9, 8, PLAIN) == pytest.approx(2 * 7 / 8 * 0.01)
    assert all_reduce(10**9, 1, PLAIN) == 0


def test_a_control_message_goes_twice_round_all() -> None:
    assert control(1024, Network(hop_control=30e-6)) == pytest.approx(2 * 1023 * 30e-6)
    assert control(1, Network()) == 0


@given(sizes, gpus, gpus, networks)
def test_more_gpus_take_longer(size: int, few: int, many: int, network: Network) -> None:
    few, many = sorted((few, many))
    assert all_reduce(size, few, network) <= all_reduce(size, many, network) * (1 + 1e-12)
    assert control(few, network) <= control(many, network)


@given(sizes, sizes, gpus, networks)
def test_more_bytes_take_longer(small: int, large: int, number: int, network: Network) -> None:
    small, large = sorted((small, large))
    assert all_reduce(small, number, network) <= all_reduce(large, number, network)


@given(sizes, gpus, networks, st.floats(1, 100), st.sampled_from(["intra", "inter"]))
def test_more_bandwidth_takes_no_longer(size: int, number: int, network: Network, factor: float, where: str) -> None:
    faster = replace(network, **{where: factor * getattr(network, where)})
    assert all_reduce(size, number, faster) <= all_reduce(size, number, network)


# Overlap


def test_buckets_follow_each_other() -> None:
    """The first is ready 5 s before the end and takes 4, the second waits for it and takes 4: it ends 3 behind."""
    assert exposed([5.0, 3.0], [4.0, 4.0]) == pytest.approx(3.0)
    assert exposed([5.0, 3.0], [1.0, 1.0]) == 0
    assert exposed([5.0, 0.0], [1.0, 2.0]) == 2
    assert exposed([], []) == 0


def test_a_first_bucket_that_is_never_complete_holds_up_all_others() -> None:
    assert exposed([0.0, 9.0, 9.0], [1.0, 1.0, 1.0]) == 3


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=8))
def test_overlap_saves_no_more_than_what_is_hidden(buckets: list[tuple[float, float]]) -> None:
    ready, seconds = zip(*buckets, strict=True)
    late = exposed(ready, seconds)
    assert max(0.0, seconds[-1] - ready[-1]) <= late <= sum(seconds) + 1e-9
    assert exposed([0.0] * len(buckets), seconds) == pytest.approx(sum(seconds))


def test_overlap_needs_to_know_when_buckets_are_ready() -> None:
    unknown = replace(ONE.phases["only"], ready=None)
    assert waited(unknown, 8, Conditions(PLAIN)) == pytest.approx(0.0175)
    with pytest.raises(ValueError, match="not measured"):
        waited(unknown, 8, Conditions(PLAIN, overlap=True))


# A step


def test_with_a_free_network_nothing_is_lost() -> None:
    for number in (1, 8, 1024):
        assert weak(TWO, number, NO_JITTER).efficiency == pytest.approx(1.0)


def test_one_bucket_that_is_ready_at_the_end() -> None:
    """0.1 s alone, and 0.0175 s of a ring of eight behind it, overlap or not."""
    for overlap in (False, True):
        assert weak(ONE, 8, Conditions(PLAIN, overlap)).efficiency == pytest.approx(0.1 / 0.1175, rel=1e-6)


def test_a_step_is_the_sum_of_its_parts() -> None:
    """Lazy phases count by their intervals; stragglers by the compute; the first process by the global batch."""
    parts = step(TWO, 8, 64, 8, Conditions(PLAIN, jitter=0.02, first=1e-4))
    assert parts.compute == pytest.approx(0.005 + (2 * 0.03 + 0.01) + (2 * 0.05 + 0.03) / 4)
    assert parts.gradients == pytest.approx(0.0175 * (1 + 1 / 4))
    assert parts.control == 0
    assert parts.stragglers == pytest.approx(parts.compute * 0.02 * 1.42360, rel=1e-5)
    assert parts.first == pytest.approx(64e-4)
    assert parts.total == pytest.approx(sum(vars(parts).values()))


def test_a_control_message_costs_what_of_it_takes_longer_than_the_step() -> None:
    """0.1 s alone and 0.0175 s of gradients: a message of 14 hops of 8 ms hides, one of 14 of 10 ms is 22.5 ms late.

    Nothing hides behind what the first process does alone.
    """
    hidden, late = (
        step(ONE, 4, 32, 8, Conditions(replace(PLAIN, hop_control=hop), first=1.0)) for hop in (8e-3, 10e-3)
    )
    assert hidden.control == 0 and hidden.total == pytest.approx(0.1175 + 32, rel=1e-6)
    assert late.control == pytest.approx(0.0225, rel=1e-4) and late.total == pytest.approx(0.14 + 32)


def test_stragglers_and_sums_give_a_control_message_time() -> None:
    network = replace(PLAIN, hop_control=10e-3)
    few, many = (step(ONE, 4, 32, 8, Conditions(network, jitter=jitter)) for jitter in (0.1, 0.2))
    assert few.control == pytest.approx(0.0225 - few.stragglers, abs=1e-6)
    assert many.stragglers > 0.0225 and many.control == 0


@given(gpus, networks, st.booleans(), st.floats(0, 0.2))
def test_a_step_takes_as_long_as_its_control_message_or_its_work(
    number: int, network: Network, overlap: bool, jitter: float
) -> None:
    prompt = step(TWO, 4, 4, number, Conditions(replace(network, hop_control=0.0), overlap, jitter))
    found = weak(TWO, number, Conditions(network, overlap, jitter))
    assert found.message == control(number, network)
    assert found.parts.total == pytest.approx(max(prompt.total, found.message))
    assert found.row()["control_message_ms"] == 1e3 * found.message


def test_overlap_hides_what_is_ready_early() -> None:
    """0.007 s of the first bucket are over 0.013 s before the end, at which 0.0105 s of the second begin."""
    parts = step(TWO, 4, 32, 8, Conditions(PLAIN, overlap=True))
    assert parts.gradients == pytest.approx(0.0105 + 0.0175 / 4)


def test_stragglers_are_those_of_many() -> None:
    assert straggling(1, 0.5) == 0
    assert straggling(1024, 0.01) == pytest.approx(0.0325, abs=1e-4)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, 0.0),
        (2, 1 / math.sqrt(math.pi)),
        (3, 3 / (2 * math.sqrt(math.pi))),
        (4, 3 / math.sqrt(math.pi) * (1 / 2 + math.asin(1 / 3) / math.pi)),
    ],
)
def test_the_largest_of_few_normal_numbers_by_hand(count: int, expected: float) -> None:
    assert largest_of(count) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("count", "expected"), [(8, 1.42360), (100, 2.50759), (1000, 3.24144)])
def test_the_largest_of_many_normal_numbers(count: int, expected: float) -> None:
    """As tables of normal order statistics have it, to five digits behind the point."""
    assert largest_of(count) == pytest.approx(expected, abs=6e-6)


@given(gpus)
def test_more_numbers_have_a_larger_one(count: int) -> None:
    """Below the bound that holds for all."""
    assert 0 <= largest_of(count) < largest_of(count + 1) < math.sqrt(2 * math.log(count + 1))


@given(gpus, gpus, networks, st.booleans(), st.floats(0, 0.2), st.floats(0, 1e-3))
def test_efficiency_falls_with_every_gpu(
    few: int, many: int, network: Network, overlap: bool, jitter: float, first: float
) -> None:
    few, many = sorted((few, many))
    conditions = Conditions(network, overlap, jitter, first)
    assert weak(TWO, many, conditions).efficiency <= weak(TWO, few, conditions).efficiency * (1 + 1e-9) <= 1 + 1e-8
    assert strong(TWO, 32, 4, many, conditions).efficiency <= 1 + 1e-9


@given(gpus, networks, st.floats(0, 0.2))
def test_overlap_is_never_worse(number: int, network: Network, jitter: float) -> None:
    behind, during = (weak(TWO, number, Conditions(network, overlap, jitter)) for overlap in (False, True))
    assert during.efficiency >= behind.efficiency * (1 - 1e-12)


# A batch that is divided


def test_the_batch_is_divided_in_whole_groups() -> None:
    """32 images in groups of 4: from 16 GPUs on, eight work and the others have nothing to do."""
    cost = StepCost({"only": PhaseCost(1, 0.1, 0.0, (4,), (0.0,))}, micro=4)
    found = {number: strong(cost, 32, 4, number, NO_JITTER) for number in (1, 2, 3, 8, 16)}
    assert [one.images for one in found.values()] == [32, 16, 12, 4, 4]
    assert [one.idle for one in found.values()] == [0, 0, 0, 0, 8]
    assert [one.efficiency for one in found.values()] == pytest.approx([1, 1, 32 / 36, 1, 0.5])
    assert all(one.batch == 32 for one in found.values())


def test_what_is_left_of_a_batch_goes_with_the_last() -> None:
    """Nine images in groups of 4 on two GPUs: four, and five."""
    assert strong(TWO, 9, 4, 2, NO_JITTER).images == 5


def test_a_scaled_phase_is_the_same_phase_on_another_device() -> None:
    cost = TWO.phases["often"].scaled(3.0)
    assert cost.seconds(2) == pytest.approx(3 * TWO.phases["often"].seconds(2))
    assert cost.ready == pytest.approx((0.06, 0.0)) and cost.buckets == TWO.phases["often"].buckets
