"""What `hires-gan bench train` counts: operations are those by hand, and the times of ops add up."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hires_gan.bench import train_rates
from hires_gan.bench.train_floor import by_layer, by_side, cost, layers, updating
from hires_gan.bench.train_measure import Recorded, compare, speeds
from hires_gan.bench.train_ops import Op, recording
from hires_gan.bench.train_rates import Rates, matrix_dtype
from hires_gan.bench.train_steps import Timing
from hires_gan.ops import conv2d_resample

CPU = torch.device("cpu")
RATES = Rates(CPU, copied=1e9, measured={torch.float32: 1e9})
"""1 ms for 1e6 operations, and for 1e6 bytes."""


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Matrices and buffers that are measured at once."""
    monkeypatch.setitem(train_rates._SIDES, "cpu", 64)
    monkeypatch.setitem(train_rates._BUFFER, "cpu", 2**16)


# Operations


def recorded(work, **players: nn.Module) -> list[Op]:
    with recording(players, torch.device("cpu")) as ops:
        work()
    return ops


def flops(ops: list[Op]) -> int:
    return sum(op.flops for op in ops)


def test_the_operations_of_a_plain_model():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(2, 3, 8, 8)
    first, second, last = 2 * 2 * 8 * 3 * 9 * 64, 2 * 2 * 4 * 8 * 16, 2 * 2 * 64 * 5
    forward = recorded(lambda: network(x), generator=network)
    assert flops(forward) == first + second + last
    both = recorded(lambda: network(x).sum().backward(), generator=network)
    assert flops([op for op in both if op.forward]) == first + second + last
    # Backward: the gradient of the weights for all layers, that of the input for all but the first.
    assert flops([op for op in both if not op.forward]) == first + 2 * second + 2 * last
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    assert flops(both) == counter.get_total_flops()


def test_the_layers_of_a_plain_model():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    ops = recorded(lambda: network(x * 2).sum().backward(), judge=network)
    found = layers((op for op in ops if op.forward), RATES)
    assert [layer.name for layer in found] == ["judge.0", "judge.1.0", "judge.1.1"]
    assert [layer.shape for layer in found] == [(2, 8, 8, 8)] * 3
    assert found[0].cost.gflop == pytest.approx(2 * 2 * 8 * 3 * 9 * 64 / 1e9)
    assert [layer.calls for layer in found] == [1, 1, 1]
    backward = {(op.name, op.layer) for op in ops if not op.forward and op.layer}
    assert backward == {
        ("aten.convolution_backward", "judge.0"),
        ("aten.convolution_backward", "judge.1.0"),
        ("aten.threshold_backward", "judge.1.1"),
    }
    assert [op.name for op in ops if not op.layer][:3] == ["aten.mul", "aten.sum", "aten.ones_like"]
    assert not network[0]._forward_hooks and not network[0]._forward_pre_hooks


def test_a_module_that_fails_leaves_no_name_behind():
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    with recording({"judge": network}, torch.device("cpu")) as ops:
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 4, 8, 8))
        torch.zeros(3) + 1
    assert ops[-1].name == "aten.add" and ops[-1].layer == ""


def test_what_is_drawn_elsewhere_and_copied_counts_where_it_arrives():
    with recording({}, torch.device("meta")) as ops:
        torch.randn(3, 4).to("meta")
    assert [(op.name, op.bytes) for op in ops] == [("aten._to_copy", 48)]


def test_groups_divide_the_operations():
    x, w = torch.randn(1, 8, 8, 8, requires_grad=True), torch.randn(8, 2, 3, 3, requires_grad=True)
    ops = recorded(lambda: nn.functional.conv2d(x, w, padding=1, groups=4).sum().backward())
    assert flops(ops) == 3 * (2 * 8 * 2 * 9 * 64)  # forward, the gradient of the input, that of the weights


def test_the_operations_of_a_penalty():
    """A gradient at the images that is differentiated again: through torch, and through a module, as recipes do it."""
    network = nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)

    def penalise():
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()

    # Forward; the gradient of the images; and, through that one, the gradients of the weights and of what had arrived:
    # torch computes the latter whether or not somebody asks, and what runs is counted.
    ops = recorded(penalise, judge=network)
    assert flops(ops) == 4 * (2 * 2 * 8 * 3 * 9 * 64)
    assert {op.layer for op in ops if op.flops} == {"judge"}, "in every pass"


def test_passes_backward_belong_to_the_layers_whose_results_they_differentiate():
    """Of any order, through ops of our own too, and whatever the modules around them compute in between."""

    class Ours(nn.Module):
        def __init__(self, maps: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(maps, 3, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return conv2d_resample(x * 0.5, self.weight, None, padding=1)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Ours(3), Ours(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).sigmoid()).tanh()

    network, x = Whole(), torch.randn(2, 3, 8, 8, requires_grad=True)

    def penalise():
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()

    ops = recorded(penalise, judge=network)
    by_name = defaultdict(set)
    for op in ops:
        by_name[op.name.removeprefix("aten.")].add(op.layer)
    assert by_name["sigmoid_backward"] == by_name["tanh_backward"] == {"judge"}
    convolved = [op for op in ops if op.flops]
    assert {op.layer for op in convolved} == {"judge.first", "judge.second"}
    first, second = (flops([op for op in convolved if op.layer == f"judge.{one}"]) for one in ("first", "second"))
    assert (first, second) == (first, first * 8 // 3) and not any(op.again for op in ops)


def test_what_is_computed_again_is_told_apart():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1))
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    plain = recorded(lambda: network(x).sum().backward(), judge=network)
    kept = recorded(lambda: checkpoint(network, x, use_reentrant=False).sum().backward(), judge=network)
    forward = 2 * 2 * 8 * 3 * 9 * 64
    assert flops([op for op in kept if op.again]) >= forward and not any(op.again for op in plain)
    assert {op.layer for op in kept if op.again} >= {"judge.0", "judge.1"}
    assert flops([op for op in kept if not op.again]) == flops(plain)


def test_a_layer_that_is_called_twice_says_so():
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    ops = recorded(lambda: network(network(torch.randn(2, 3, 8, 8))), judge=network)
    (layer,) = layers(ops, RATES)
    assert (layer.name, layer.calls) == ("judge.0", 2)
    assert layer.cost.gflop == pytest.approx(2 * 2 * 2 * 3 * 3 * 9 * 64 / 1e9)


@pytest.mark.parametrize("up", [1, 2])
def test_the_operations_of_our_own_convolution(up):
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(8, 3, 3, 3, requires_grad=True)
    f = torch.ones(1) if up > 1 else None
    ops = recorded(lambda: conv2d_resample(x, w, f, up=up, padding=1).sum().backward())
    convolved = [op for op in ops if op.shape != (2, 8, 16, 16)]  # without the filter behind the enlargement
    assert flops(convolved) == 3 * (2 * 2 * 8 * 3 * 9 * 64)


@pytest.mark.parametrize(("side", "expected"), [(1025, 1024), (1024, 1024), (33, 32), (4, 4), (3, 0), (1, 0)])
def test_the_side_of_an_op(side, expected):
    (op,) = recorded(lambda: torch.zeros(1, 1, side, side).relu())[-1:]
    assert op.side == expected


# The floor


def an_op(flops: int, moved: int, side: int = 8, dtype: torch.dtype = torch.float32, layer: str = "", name: str = "op"):
    return Op(name, layer, 0, True, False, side, (1,), dtype, flops, moved)


def test_the_cost_of_ops():
    total = cost([an_op(4_000_000, 1_000_000), an_op(1_000_000, 2_000_000), an_op(0, 500_000)], RATES)
    assert (total.gflop, total.mb) == (pytest.approx(0.005), pytest.approx(3.5))
    assert (total.ms_by_operations, total.ms_by_bytes) == (pytest.approx(5), pytest.approx(3.5))
    assert total.ms == pytest.approx(4 + 2 + 0.5)
    assert total.ms_of_matrices == pytest.approx(4 + 2)


def test_each_dtype_has_its_own_rate():
    rates = Rates(torch.device("cuda"), copied=1e12, measured={torch.float32: 1e9, torch.bfloat16: 1e10})
    assert cost([an_op(10_000_000, 0), an_op(10_000_000, 0, dtype=torch.bfloat16)], rates).ms == pytest.approx(10 + 1)
    assert matrix_dtype(torch.bfloat16, CPU) == torch.float32 and matrix_dtype(torch.float64, CPU) == torch.float64


def test_the_cost_of_a_step_by_resolution():
    found = by_side([(1, [an_op(0, 1_000_000, 4), an_op(0, 2_000_000)]), (4, [an_op(0, 8_000_000)])], RATES)
    assert {side: one.ms for side, one in found.items()} == {8: pytest.approx(2 + 8 / 4), 4: pytest.approx(1)}
    assert list(found) == [8, 4]


def test_the_cost_of_a_step_by_layer():
    phases = [(1, [an_op(0, 1_000_000), an_op(0, 2_000_000, layer="a")]), (4, [an_op(0, 8_000_000, layer="b")])]
    found = by_layer(phases, RATES)
    assert {name: one.ms for name, one in found.items()} == {"a": 2, "b": 2, "": 1} and list(found) == ["a", "b", ""]


def test_the_bytes_of_the_updates():
    weights = [torch.zeros(10), torch.zeros(2, 5, dtype=torch.float64)]
    assert [op.bytes for op in updating(weights, weights[:1])] == [7 * 40, 7 * 80, 3 * 40]


def test_rates_are_measured_once(monkeypatch):
    monkeypatch.setattr(train_rates, "measure_matrix", lambda dtype, device: seen.append(dtype) or 5.0)
    monkeypatch.setattr(train_rates, "measure_copy", lambda device: seen.append("copy") or 7.0)
    seen: list[object] = []
    rates = Rates(CPU)
    assert [rates.matrix(torch.bfloat16), rates.matrix(torch.float32), rates.copy, rates.copy] == [5.0, 5.0, 7.0, 7.0]
    assert seen == [torch.float32, "copy"]


def test_the_rates_of_this_machine():
    assert train_rates.measure_matrix(torch.float32, CPU) > 0 and train_rates.measure_copy(CPU) > 0


def test_what_follows_from_times_and_counts():
    timing = Timing(4, 2.0, 0.5, 1.0, 0.2)
    found = speeds(timing, 10, 25.0, 500.0)
    assert (found["images_per_s"], found["s_per_kimg"], found["ms_per_step"]) == (20.0, 50.0, 500.0)
    assert found["gpu_days"] == pytest.approx(1250 / 86_400)
    assert (found["host_ms_per_step"], found["device_ms_per_step"], found["data_wait_share"]) == (125.0, 250.0, 0.1)
    result = {"batch": 10, "average_ms_per_step": 500.0, "phases": {"generator": {}, "r1": {}}}
    ops = {"generator": Recorded(1, [an_op(10**9, 0)], 10**8), "r1": Recorded(4, [an_op(2 * 10**9, 10**9)], 0)}
    found = compare(result, ops, [(1, updating([torch.zeros(250_000)], []))], RATES, torch.float32)
    assert found["operations"]["flop_per_image"] == (1e9 + 2e9 / 4) / 10
    assert found["operations"]["flop_again_per_image"] == 1e8 / 10
    assert found["operations"]["tflops"] == pytest.approx(1.5e9 / 0.5 / 1e12)
    assert found["operations"]["share_of_peak"] == pytest.approx(3)
    assert found["phases"]["r1"] == {"gflop": 2.0, "mb": 1000.0, "floor_ms_per_call": 2000.0}
    assert found["floor"]["updates_ms"] == pytest.approx(7)
    assert found["floor"]["ms_per_step"] == pytest.approx(1000 + 2000 / 4 + 7)
    assert found["floor"]["ms_of_matrices"] == pytest.approx(1500)
