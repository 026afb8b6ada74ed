"""The gradients of a player in one buffer."""

from __future__ import annotations

import torch
from torch import nn

from hires_gan.training.flat import FlatGradients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).to(memory_format=torch.channels_last)


def test_every_gradient_is_a_part_of_the_buffer_in_its_parameters_format():
    parameters = list(network().parameters())
    flat = FlatGradients(parameters)
    flat.attach()
    assert flat.buffer.numel() == sum(p.numel() for p in parameters)
    starts = []
    for parameter in parameters:
        assert parameter.requires_grad
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.untyped_storage().data_ptr() == flat.buffer.untyped_storage().data_ptr()
        starts.append(parameter.grad.storage_offset())
    assert starts == sorted(set(starts))
    for number, parameter in enumerate(parameters):
        parameter.grad.fill_(number + 1)
    counts = flat.buffer.long().bincount()[1:].tolist()
    assert counts == [p.numel() for p in parameters]


def test_a_backward_pass_adds_to_the_buffer():
    net, other = network(), network()
    x = torch.randn(2, 3, 8, 8)
    flat = FlatGradients(list(net.parameters()))
    flat.attach()
    addresses = [p.grad.data_ptr() for p in net.parameters()]
    for _ in range(2):
        net(x).square().sum().backward()
        other(x).square().sum().backward()
    assert [p.grad.data_ptr() for p in net.parameters()] == addresses
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_attached_again_it_is_zero_and_detached_nothing_learns():
    net = network()
    flat = FlatGradients(list(net.parameters()))
    flat.attach()
    net(torch.randn(1, 3, 8, 8)).sum().backward()
    flat.detach()
    assert flat.buffer.any()
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    flat.attach()
    assert not flat.buffer.any()


def test_completing_scales_counts_and_clears_what_is_not_finite():
    parameter = nn.Parameter(torch.zeros(5))
    flat = FlatGradients([parameter])
    flat.attach()
    parameter.grad.copy_(torch.tensor([1.0, torch.nan, -torch.inf, torch.inf, -4.0]))
    assert int(flat.complete(0.5)) == 3
    assert parameter.grad.tolist() == [0.5, 0.0, 0.0, 0.0, -2.0]
    assert int(flat.complete(1.0)) == 0
