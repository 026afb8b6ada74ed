"""The running average against its formula, and what its half-life promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hires_gan.ema import averaged_copy, half_life_decay, update_average


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double().to(memory_format=torch.channels_last)


def change(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 512), st.floats(1, 1e6))
def test_after_a_half_life_of_images_half_of_the_old_is_left(batch: int, half_life: float) -> None:
    decay = half_life_decay(batch, half_life)
    assert 0 <= decay < 1
    # images / batch steps of one factor each make 1/2 after half_life images
    assert decay ** (half_life / batch) == pytest.approx(0.5, rel=1e-6) or half_life < batch / 900


def test_the_half_life_does_not_depend_on_the_batch() -> None:
    left = {}
    for batch in (4, 16, 64):
        average, source = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            average.weight.fill_(1.0)
            source.weight.fill_(0.0)
        for _ in range(640 // batch):
            update_average(average, source, half_life_decay(batch, 640))
        left[batch] = average.weight.item()
    assert list(left.values()) == pytest.approx([0.5] * 3, rel=1e-12)


def test_progressive_gans_decay_is_a_half_life_of_693_batches() -> None:
    assert half_life_decay(1, 693) == pytest.approx(0.999, abs=1e-6)
    assert half_life_decay(32, 693 * 32) == half_life_decay(1, 693)


def test_each_parameter_follows_the_formula_step_by_step() -> None:
    source = network()
    average = averaged_copy(source)
    expected = [parameter.detach().clone() for parameter in source.parameters()]
    for step in range(5):
        change(source, step)
        update_average(average, source, 0.9)
        for number, parameter in enumerate(source.parameters()):
            expected[number] = 0.9 * expected[number] + 0.1 * parameter.detach()
    for parameter, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value, rtol=1e-13, atol=1e-14)


def test_buffers_are_copied_whatever_their_kind() -> None:
    source = network()
    average = averaged_copy(source)
    source.train()
    source(torch.randn(2, 3, 5, 5, dtype=torch.float64))
    update_average(average, source, 0.9)
    for (name, kept), (_, buffer) in zip(average.named_buffers(), source.named_buffers(), strict=True):
        assert torch.equal(kept, buffer), name
    assert dict(average.named_buffers())["1.num_batches_tracked"].item() == 1


def test_the_copy_starts_equal_and_lives_on_its_own() -> None:
    source = network()
    average = averaged_copy(source)
    assert not average.training
    assert source.training
    assert all(parameter.requires_grad for parameter in source.parameters())
    assert not any(parameter.requires_grad for parameter in average.parameters())
    before = {name: value.clone() for name, value in average.state_dict().items()}
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in before.items())
    change(source, 1)
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())
    weight = average.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("decay", "follows"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_range(decay: float, follows: bool) -> None:
    source = network()
    average = averaged_copy(source)
    before = [parameter.detach().clone() for parameter in source.parameters()]
    change(source, 1)
    update_average(average, source, decay)
    expected = [parameter.detach() for parameter in source.parameters()] if follows else before
    for parameter, value in zip(average.parameters(), expected, strict=True):
        assert torch.equal(parameter, value)


def test_an_update_builds_no_graph() -> None:
    source = network()
    average = averaged_copy(source)
    update_average(average, source, 0.5)
    assert all(parameter.grad_fn is None and not parameter.requires_grad for parameter in average.parameters())


def test_networks_of_different_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 parameters and the network 1"):
        update_average(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), 0.5)
