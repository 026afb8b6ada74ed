"""StyleGAN2's networks against the published counts, a literal second implementation, and autograd."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from plain_style_layers import (
    bounded,
    close,
    convolved_halved,
    dense,
    doubled,
    leaky,
    modulated,
    normal,
    randomise,
    spread,
    weights_of,
)
from torch import Tensor, nn

from hires_gan.networks.growth import Width
from hires_gan.networks.modulation import Form
from hires_gan.networks.stylegan2 import CONFIG_F, Architecture, Discriminator, FilteredConv2d, Generator
from hires_gan.ops import backend

TINY = Width(base=64, most=8)
BACKENDS = ("reference", "native")
ROOT = math.sqrt(2)


def tiny_generator(resolution: int = 32, classes: int = 0, **more: object) -> Generator:
    torch.manual_seed(0)
    network = Generator(resolution, 6, 5, classes, mapping_layers=2, width=TINY, **more)  # type: ignore[arg-type]
    randomise(network)
    return network


def tiny_discriminator(resolution: int = 32, classes: int = 0, **more: object) -> Discriminator:
    torch.manual_seed(1)
    network = Discriminator(resolution, classes, TINY, group=2, mapping_layers=2, **more)  # type: ignore[arg-type]
    randomise(network)
    return network


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def pictures(n: int, resolution: int = 32) -> Tensor:
    return normal(n, 3, resolution, resolution, seed=3)


def test_the_parameter_counts_of_configuration_f_are_the_published_ones() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(1024), Discriminator(1024)
        short = Generator(1024, mapping_layers=2)
    assert count(generator) == 30_370_060
    assert count(short) == 28_794_124
    assert count(discriminator) == 29_012_513
    assert generator.num_ws == 18
    assert len(generator.synthesis.noise_shapes) == 17


def test_the_counts_of_smaller_configurations_are_the_published_ones() -> None:
    narrow = Width(base=8192)
    with torch.device("meta"):
        assert count(Generator(1024, width=narrow)) == 24_900_764
        assert count(Generator(256, width=narrow)) == 24_767_458
        assert count(Discriminator(1024, width=narrow)) == 24_038_161
        assert count(Discriminator(256, width=narrow)) == 24_001_089
        assert Generator(256, width=narrow).num_ws == 14


def test_a_conditional_discriminator_has_a_projection_instead_of_one_output() -> None:
    with torch.device("meta"):
        plain, conditional = Discriminator(256), Discriminator(256, classes=10)
    mapping = 10 * 512 + 512 + 8 * (512 * 512 + 512)
    assert count(conditional) - count(plain) == mapping + 511 * (512 + 1)


def test_the_feature_maps_are_those_of_configuration_f() -> None:
    assert [CONFIG_F.at(4 << level) for level in range(9)] == [512, 512, 512, 512, 512, 256, 128, 64, 32]


def test_the_start_is_the_papers() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(32, 64, 64), Discriminator(32)
    assert float(generator.synthesis.constant.detach().std()) == pytest.approx(1, rel=0.05)
    for name, parameter in (*generator.named_parameters(), *discriminator.named_parameters()):
        if name.endswith("affine.bias"):
            assert parameter.eq(1).all(), name
        elif name.endswith(("bias", "noise_strength")):
            assert not parameter.any(), name
        elif name.startswith("mapping"):
            assert float(parameter.detach().std()) == pytest.approx(100, rel=0.05)
        else:
            assert float(parameter.detach().std()) == pytest.approx(1, rel=0.1), name


# The literal networks.


def literal_synthesis(network: Generator, ws: Tensor, noise: list[Tensor], clamp: float | None = None) -> Tensor:
    w = {name.removeprefix("synthesis."): value for name, value in weights_of(network).items()}
    x = w["constant"][None].repeat(len(ws), 1, 1, 1)
    image: Tensor | None = None
    layer = 0
    r = 4
    while r <= network.resolution:
        for number in range(1 if r == 4 else 2):
            name = f"blocks.{r}.layers.{number}"
            styles = dense(ws[:, layer], w, f"{name}.affine")
            up = 2 if r > 4 and number == 0 else 1
            strength, bias = w[f"{name}.noise_strength"], w[f"{name}.bias"]
            x = modulated(x, w[f"{name}.weight"], styles, True, up, noise[layer], strength, bias, clamp=clamp)
            layer += 1
        name = f"blocks.{r}.to_rgb"
        styles = dense(ws[:, layer], w, f"{name}.affine") / math.sqrt(x.shape[1])
        rgb = modulated(
            x, w[f"{name}.weight"], styles, False, bias=w[f"{name}.bias"], act="linear", gain=1.0, clamp=clamp
        )
        image = rgb if image is None else doubled(image) + rgb
        r *= 2
    assert image is not None
    return image


def literal_mapping(w: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    one_hot = torch.eye(w["mapping.embedding.weight"].shape[1], dtype=torch.float64)[labels]
    x = dense(one_hot, dict(w), "mapping.embedding")
    x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in range(2):
        x = ROOT * leaky(dense(x, dict(w), f"mapping.layers.{layer}", rate=0.01))
    return x


def literal_discriminator(
    network: Discriminator, images: Tensor, labels: Tensor | None = None, residual: bool = True
) -> Tensor:
    w = weights_of(network)

    def scaled(name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return weight / math.sqrt(weight[0].numel())

    def layer(x: Tensor, name: str) -> Tensor:
        weight = scaled(name)
        y = F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[2] // 2)
        return ROOT * leaky(y)

    x = layer(images, "from_rgb")
    r = images.shape[-1]
    while r > 4:
        name = f"blocks.{r}"
        y = convolved_halved(layer(x, f"{name}.first"), scaled(f"{name}.second"))
        y = ROOT * leaky(y + w[f"{name}.second.bias"].reshape(1, -1, 1, 1))
        x = (y + convolved_halved(x, scaled(f"{name}.shortcut"))) / ROOT if residual else y
        r //= 2
    x = layer(spread(x, network.group), "convolution").flatten(1)
    x = dense(ROOT * leaky(dense(x, w, "dense")), w, "output")
    if labels is None:
        return x[:, 0]
    mapped = literal_mapping(w, labels)
    return torch.stack([(a * b).sum() / math.sqrt(len(a)) for a, b in zip(x, mapped, strict=True)])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", ["scaled", "grouped"])
@pytest.mark.parametrize("resolution", [4, 8, 32])
def test_the_synthesis_equals_a_literal_one(name: str, form: Form, resolution: int) -> None:
    generator = tiny_generator(resolution, form=form).double()
    ws = normal(2, generator.num_ws, 5)
    noise = [normal(2, 1, h, w, seed=4) for h, w in generator.synthesis.noise_shapes]
    with backend(name):
        found = generator.synthesis(ws, noise)
    assert found.shape == (2, 3, resolution, resolution)
    torch.testing.assert_close(found, literal_synthesis(generator, ws, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("architecture", ["resnet", "orig"])
@pytest.mark.parametrize("resolution", [4, 8, 32])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_discriminator_equals_a_literal_one(
    name: str, architecture: Architecture, resolution: int, classes: int
) -> None:
    discriminator = tiny_discriminator(resolution, classes, architecture=architecture).double()
    images, labels = pictures(4, resolution), torch.tensor([2, 0, 1, 0]) if classes else None
    with backend(name):
        found = discriminator(images, labels)
    expected = literal_discriminator(discriminator, images, labels, architecture == "resnet")
    assert found.shape == (4,)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_each_layer_takes_its_own_style() -> None:
    """The layer that makes an image shares the style of the next resolution's first layer."""
    generator = tiny_generator().double()
    images: list[Tensor] = []
    base = normal(1, 8, 5)
    for layer in range(8):
        changed = base.clone()
        changed[:, layer] += 1
        images.append(generator.synthesis(changed))
    for a in range(8):
        assert not torch.allclose(images[a], generator.synthesis(base))
        assert all(not torch.allclose(images[a], images[b]) for b in range(a))


def test_a_residual_block_keeps_the_power_of_its_input() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(64, width=Width(4096, 64))
    powers: list[float] = []
    for block in discriminator.blocks.values():
        block.register_forward_hook(
            lambda _, inputs, output: powers.append(float(output.square().mean() / inputs[0].square().mean()))
        )
    with torch.no_grad():
        discriminator(torch.randn(4, 3, 64, 64))
    assert len(powers) == 4
    assert all(0.2 < power < 2 for power in powers)


@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_a_filtered_convolution_is_scaled_biased_activated_and_clamped(down: int, kernel: int, act: str) -> None:
    torch.manual_seed(0)
    layer = FilteredConv2d(3, 4, kernel, down, act=act, gain=0.5, clamp=0.8).double()
    randomise(layer)
    assert layer.bias is not None
    x = normal(2, 3, 8, 8)
    weight = layer.weight / math.sqrt(3 * kernel * kernel)
    y = convolved_halved(x, weight) if down == 2 else F.conv2d(x, weight, padding=kernel // 2)
    y = y + layer.bias.reshape(1, -1, 1, 1)
    expected = bounded(0.5 * (ROOT * leaky(y) if act == "lrelu" else y), 0.4)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    found = layer(x, torch.outer(taps, taps))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.abs().max().item() == pytest.approx(0.4)


# Derivatives.


def path_and_penalty(
    synthesis: Callable[[Tensor, list[Tensor]], Tensor], judge: Callable[[Tensor], Tensor], generator: Generator
) -> Tensor:
    """What needs second derivatives: R1 through the discriminator, path lengths through the generator."""
    dtype = next(generator.parameters()).dtype
    ws = generator.styles(normal(2, 6).to(dtype))
    noise = generator.synthesis.split_noise(normal(2, generator.synthesis.noise_total, seed=4).to(dtype))
    images = synthesis(ws, noise)
    (path,) = torch.autograd.grad((images * normal(*images.shape, seed=2).to(images)).sum(), ws, create_graph=True)
    lengths = path.square().sum(2).mean(1).sqrt()
    real = pictures(2, images.shape[-1]).to(images).requires_grad_()
    (slope,) = torch.autograd.grad(judge(real).sum(), real, create_graph=True)
    return (lengths - 0.1).square().sum() + slope.square().sum() - judge(images).mean()


def gradients(generator: Generator, discriminator: Discriminator, literal: bool = False) -> dict[str, Tensor]:
    for network in (generator, discriminator):
        network.zero_grad()
    if literal:
        loss = path_and_penalty(
            lambda ws, noise: literal_synthesis(generator, ws, noise),
            lambda images: literal_discriminator(discriminator, images),
            generator,
        )
    else:
        loss = path_and_penalty(generator.synthesis, discriminator, generator)
    loss.backward()
    found: dict[str, Tensor] = {}
    for kind, network in (("g", generator), ("d", discriminator)):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            found[f"{kind}.{name}"] = parameter.grad.clone()
    return found


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", ["scaled", "grouped"])
def test_penalties_equal_those_of_the_literal_networks(name: str, form: Form) -> None:
    generator, discriminator = tiny_generator(16, form=form).double(), tiny_discriminator(16).double()
    with backend(name):
        found = gradients(generator, discriminator)
    for parameter, gradient in gradients(generator, discriminator, literal=True).items():
        close(found[parameter], gradient, 1e-8)


def test_channels_last_gives_the_same_penalties() -> None:
    generator, discriminator = tiny_generator().double(), tiny_discriminator().double()
    expected = gradients(generator, discriminator)
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in BACKENDS:
        with backend(name):
            for parameter, gradient in gradients(generator, discriminator).items():
                close(gradient, expected[parameter], 1e-9)


def test_feature_maps_stay_in_channels_last() -> None:
    seen: list[Tensor] = []
    generator, discriminator = tiny_generator(), tiny_discriminator()
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for block in network.modules():
            if type(block).__name__ in ("_SynthesisLayer", "FilteredConv2d"):
                block.register_forward_hook(lambda _, inputs, output: seen.append(output))
    discriminator(generator(normal(2, 6).float()).contiguous(memory_format=torch.channels_last))
    assert len(seen) == 7 + 11
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.parametrize("form", ["scaled", "grouped"])
def test_derivatives_against_finite_differences(form: Form) -> None:
    torch.manual_seed(0)
    generator = Generator(8, 3, 2, mapping_layers=1, width=Width(4, 2), form=form).double()
    discriminator = Discriminator(8, width=Width(4, 2), group=2).double()
    randomise(generator)
    randomise(discriminator)
    noise = generator.synthesis.split_noise(normal(2, generator.synthesis.noise_total))
    ws, images = normal(2, generator.num_ws, 2).requires_grad_(), pictures(2, 8).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda ws: generator.synthesis(ws, noise), ws, fast_mode=True)
        assert check(discriminator, images, fast_mode=True)


# Samples and groups.


@pytest.mark.parametrize("form", ["scaled", "grouped"])
def test_an_image_depends_on_its_own_latent_alone(form: Form) -> None:
    generator, z = tiny_generator(form=form).double(), normal(5, 6)
    alone = torch.cat([generator(z[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(generator(z), alone, rtol=1e-10, atol=1e-10)


def test_a_score_depends_on_its_own_group_alone() -> None:
    discriminator, images = tiny_discriminator(16).double(), pictures(8, 16)
    whole = discriminator(images)
    for size in (2, 4, 6):
        parts = torch.cat([discriminator(part) for part in images.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    images[2] += 1.0
    changed = discriminator(images) != whole
    assert changed.tolist() == [False, False, True, True, False, False, False, False]


# The rest.


def test_every_parameter_gets_a_gradient() -> None:
    for classes in (0, 3):
        generator, discriminator = tiny_generator(classes=classes), tiny_discriminator(classes=classes)
        labels = torch.tensor([0, 2]) if classes else None
        discriminator(generator(normal(2, 6).float(), labels), labels).sum().backward()
        for network in (generator, discriminator):
            assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_layers_are_counted_from_the_image() -> None:
    discriminator = tiny_discriminator(16)
    assert discriminator.layers_from_image() == [
        ["from_rgb.weight", "from_rgb.bias"],
        ["blocks.16.first.weight", "blocks.16.first.bias"],
        ["blocks.16.second.weight", "blocks.16.second.bias"],
        ["blocks.16.shortcut.weight"],
        ["blocks.8.first.weight", "blocks.8.first.bias"],
        ["blocks.8.second.weight", "blocks.8.second.bias"],
        ["blocks.8.shortcut.weight"],
    ]
    plain = tiny_discriminator(16, architecture="orig")
    assert len(plain.layers_from_image()) == 1 + 2 * 2


def test_signals_keep_their_power_at_the_start() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(32, 64, 64, width=Width(2048, 64)), Discriminator(32, width=Width(2048, 64))
    with torch.no_grad():
        images = generator(torch.randn(8, 64))
        scores = discriminator(torch.randn(8, 3, 32, 32))
    assert 0.2 < float(images.square().mean()) < 10
    assert 0.001 < float(scores.square().mean()) < 10


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator, discriminator = tiny_generator(), tiny_discriminator()
        gradients(generator, discriminator)
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        gradients(generator, discriminator)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="the resolution is 20; powers of two from 4 on are allowed"):
        Generator(20, width=TINY)
    with pytest.raises(ValueError, match=r"images are \[2, 3, 16, 16\]; \[n, 3, 32, 32\] is allowed"):
        tiny_discriminator()(pictures(2, 16).float())
    with pytest.raises(ValueError, match="labels missing; classes is 2"):
        tiny_discriminator(classes=2)(pictures(2).float())
    with pytest.raises(ValueError, match="labels given; classes is 0"):
        tiny_discriminator()(pictures(2).float(), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="a batch of 3 is no whole number of minibatch-deviation groups of 2"):
        tiny_discriminator()(pictures(3).float())
