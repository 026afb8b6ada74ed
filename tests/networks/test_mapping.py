"""The mapping network against loops, in both families, and the layers' options that it brings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from plain_style_layers import normal, randomise
from torch import Tensor

from hires_gan.networks.layers import EqualizedLinear
from hires_gan.networks.mapping import Family, MappingNetwork

FAMILIES: tuple[Family, ...] = ("stylegan", "stylegan2")


def unit(values: list[float]) -> list[float]:
    root = math.sqrt(sum(value * value for value in values) / len(values) + 1e-8)
    return [value / root for value in values]


def by_loops(network: MappingNetwork, family: Family, latent: list[float], label: int | None) -> list[float]:
    """One sample through the layers, number by number; the multiplier of the learning rate is 0.1."""
    weights = {name: value.tolist() for name, value in network.state_dict().items()}
    embedded: list[float] = []
    if label is not None and family == "stylegan":
        embedded = [row[label] for row in weights["embedding.weight"]]
    elif label is not None:
        rows, biases = weights["embedding.weight"], weights["embedding.bias"]
        embedded = [row[label] / math.sqrt(len(row)) + b for row, b in zip(rows, biases, strict=True)]
    if family == "stylegan":
        x = unit(latent + embedded)
    else:
        x = (unit(latent) if latent else []) + (unit(embedded) if embedded else [])
    for number in range(len(network.layers)):
        rows, biases = weights[f"layers.{number}.weight"], weights[f"layers.{number}.bias"]
        sums = [sum(a * b for a, b in zip(row, x, strict=True)) * 0.1 / math.sqrt(len(row)) for row in rows]
        he = math.sqrt(2)
        if family == "stylegan":
            sums = [he * total + 0.1 * b for total, b in zip(sums, biases, strict=True)]
        else:
            sums = [he * (total + 0.1 * b) for total, b in zip(sums, biases, strict=True)]
        x = [total if total > 0 else 0.2 * total for total in sums]
    return x


def build(family: Family, latent_size: int = 5, classes: int = 0, layers: int = 3) -> MappingNetwork:
    torch.manual_seed(0)
    network = MappingNetwork(latent_size, 4, classes, layers, features=6, lr_multiplier=0.1, family=family).double()
    return randomise(network)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_equals_loops(family: Family, classes: int, layers: int) -> None:
    network = build(family, classes=classes, layers=layers)
    latents = normal(4, 5) * torch.tensor([[1.0], [1e-4], [1e3], [2.0]], dtype=torch.float64)
    labels = torch.tensor([2, 0, 1, 2]) if classes else None
    found = network(latents, labels)
    assert found.shape == (4, 4)
    for n in range(4):
        expected = by_loops(network, family, latents[n].tolist(), None if labels is None else int(labels[n]))
        assert found[n].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_labels_alone_are_mapped_for_a_projection_discriminator() -> None:
    network = build("stylegan2", latent_size=0, classes=3)
    labels = torch.tensor([1, 0, 2, 1])
    found = network(None, labels)
    for n, label in enumerate(labels.tolist()):
        assert found[n].tolist() == pytest.approx(by_loops(network, "stylegan2", [], label), rel=1e-10)
    assert torch.equal(found[0], found[3])


def test_shapes_and_counts() -> None:
    with torch.device("meta"):
        plain = MappingNetwork(512, 512)
        first = MappingNetwork(512, 512, 10, family="stylegan")
        second = MappingNetwork(512, 512, 10)
        labels = MappingNetwork(0, 512, 10)
    assert [tuple(layer.weight.shape) for layer in plain.layers] == [(512, 512)] * 8
    assert plain.embedding is None
    assert count(plain) == 8 * (512 * 512 + 512)
    assert count(first) == 10 * 512 + (1024 * 512 + 512) + 7 * (512 * 512 + 512)
    assert count(second) == 10 * 512 + 512 + (1024 * 512 + 512) + 7 * (512 * 512 + 512)
    assert count(labels) == 10 * 512 + 512 + 8 * (512 * 512 + 512)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_length_of_a_latent_does_not_matter(family: Family) -> None:
    network, latents = build(family), normal(3, 5)
    torch.testing.assert_close(network(latents), network(latents * 7), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_w_starts_with_power_about_one(family: Family) -> None:
    torch.manual_seed(3)
    network = MappingNetwork(128, 128, family=family)
    with torch.no_grad():
        assert 0.3 < float(network(torch.randn(64, 128)).square().mean()) < 3


def test_the_multiplier_slows_the_layers_down() -> None:
    """After one step of the same size, as Adam's are, the output has moved by the multiplier."""
    torch.manual_seed(0)
    x = normal(4, 50)
    moves = []
    for multiplier in (1.0, 0.01):
        torch.manual_seed(1)
        layer = EqualizedLinear(50, 20, lr_multiplier=multiplier).double()
        before = layer(x)
        assert float(layer.weight.detach().std()) == pytest.approx(1 / multiplier, rel=0.1)
        with torch.no_grad():
            layer.weight.add_(1e-3)
            assert layer.bias is not None
            layer.bias.add_(1e-3)
        moves.append((layer(x) - before).detach())
    torch.testing.assert_close(moves[1], moves[0] * 0.01, rtol=1e-8, atol=1e-12)


def test_the_initial_bias_is_the_one_that_acts() -> None:
    layer = EqualizedLinear(3, 2, initial_bias=1.0, lr_multiplier=0.1)
    assert layer(torch.zeros(1, 3)).tolist() == [[pytest.approx(1.0)] * 2]


def test_the_gain_behind_the_rectifier() -> None:
    layer = EqualizedLinear(3, 2, gain=1.0, act="lrelu", act_gain=2.5).double()
    plain = EqualizedLinear(3, 2, gain=1.0, act="lrelu").double()
    plain.load_state_dict(layer.state_dict())
    x = normal(4, 3)
    torch.testing.assert_close(layer(x), plain(x) * 2.5, rtol=1e-14, atol=0)
    with pytest.raises(AssertionError):
        EqualizedLinear(3, 2, act_gain=2.0)


def test_a_linear_mapping_has_no_gain() -> None:
    torch.manual_seed(0)
    network = MappingNetwork(3, 2, layers=1, act="linear").double()
    x = normal(2, 3)
    weight = network.layers[0].weight * 0.01 / math.sqrt(3)
    expected = (x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()) @ weight.T
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_of_first_and_second_order(family: Family) -> None:
    network, labels = build(family, classes=3, layers=2), torch.tensor([0, 2])

    def function(latents: Tensor) -> Tensor:
        return network(latents, labels)

    latents = normal(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(function, latents)
    assert torch.autograd.gradgradcheck(function, latents)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="labels missing; classes is 3"):
        build("stylegan2", classes=3)(normal(2, 5))
    with pytest.raises(ValueError, match="labels given; classes is 0"):
        build("stylegan")(normal(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="latents missing; a latent has 5"):
        build("stylegan2")(None)
    with pytest.raises(ValueError, match="latents given; a latent has 0"):
        build("stylegan2", latent_size=0, classes=2)(normal(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"latents are \[2, 4\]; \[n, 5\] is allowed"):
        build("stylegan2")(normal(2, 4))
    with pytest.raises(ValueError, match="at least one latent or class, and one layer"):
        MappingNetwork(0, 4)
    for family, label in itertools.product(("stylegan", "stylegan2"), (3, -1)):
        with pytest.raises(ValueError, match=rf"labels hold {label}; classes 0 to 2 are allowed"):
            build(family, classes=3)(normal(2, 5), torch.tensor([1, label]))
