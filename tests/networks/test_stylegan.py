"""StyleGAN's networks (2018) against the paper's counts, a literal second implementation, and autograd."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from plain_style_layers import BLUR, close, dense, filtered, leaky, normal, randomise, spread, weights_of
from torch import Tensor, nn

from hires_gan.networks.growth import Growth, Width, resolutions_to
from hires_gan.networks.layers import EqualizedConv2d, double_nearest, halve_box
from hires_gan.networks.stylegan import Discriminator, Generator, adaptive_instance_norm
from hires_gan.ops import backend

TINY = Width(base=64, most=8)
RESOLUTIONS = (8, 16, 32)
GROWTHS = [Growth(4), *(Growth(r, alpha) for r in RESOLUTIONS for alpha in (1.0, 0.3))]
BACKENDS = ("reference", "native")


def tiny_generator(classes: int = 0, **more: Mapping[int, torch.dtype]) -> Generator:
    torch.manual_seed(0)
    network = Generator(32, 6, 5, classes, mapping_layers=2, width=TINY, **more)
    assert isinstance(randomise(network), Generator)
    return network


def tiny_discriminator(classes: int = 0, **more: Mapping[int, torch.dtype]) -> Discriminator:
    torch.manual_seed(1)
    network = Discriminator(32, classes, TINY, group=2, **more)
    randomise(network)
    return network


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def images_at(n: int, resolution: int) -> Tensor:
    return normal(n, 3, resolution, resolution, seed=3)


def test_the_parameter_counts_are_the_published_ones() -> None:
    """All of them: mapping, synthesis, and the colour layers of every resolution."""
    with torch.device("meta"):
        generator, discriminator = Generator(1024), Discriminator(1024)
    assert count(generator) == 26_219_627
    assert count(generator.mapping) == 2_101_248
    assert count(discriminator) == 23_087_249
    assert generator.num_ws == 18
    assert generator.synthesis.noise_total == sum(2 * r * r for r in resolutions_to(1024))


def test_the_start_is_the_papers() -> None:
    torch.manual_seed(0)
    generator = Generator(16, width=TINY)
    assert generator.synthesis.constant.eq(1).all()
    for name, parameter in generator.named_parameters():
        if "noise_weight" in name or name.endswith("bias"):
            assert not parameter.any(), name
        elif name.startswith("mapping"):
            assert float(parameter.detach().std()) == pytest.approx(100, rel=0.1)
    assert not generator.w_average.any()


# The literal networks.


def literal_style(x: Tensor, w: Mapping[str, Tensor], name: str, style: Tensor, noise: Tensor) -> Tensor:
    """Noise with a factor for each map, bias, rectifier, instance norm, style."""
    x = x + noise * w[f"{name}.noise_weight"].reshape(1, -1, 1, 1)
    x = leaky(x + w[f"{name}.bias"].reshape(1, -1, 1, 1))
    scale, shift = dense(style, dict(w), f"{name}.affine").chunk(2, 1)
    rows = []
    for n in range(len(x)):
        maps = []
        for c in range(x.shape[1]):
            plane = x[n, c] - x[n, c].mean()
            plane = plane / (plane.pow(2).mean() + 1e-8).sqrt()
            maps.append(plane * (scale[n, c] + 1) + shift[n, c])
        rows.append(torch.stack(maps))
    return torch.stack(rows)


def he(weight: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    return weight * (gain / math.sqrt(weight[0].numel()))


def literal_synthesis(network: Generator, ws: Tensor, noise: list[Tensor], growth: Growth) -> Tensor:
    w = {name.removeprefix("synthesis."): value for name, value in weights_of(network).items()}
    x = w["constant"][None].repeat(len(ws), 1, 1, 1)
    images: dict[int, Tensor] = {}
    layer = 0
    for r in growth.resolutions:
        block = f"blocks.{r}"
        if r > 4:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.conv2d(x, he(w[f"{block}.convolutions.0.weight"]), padding=1)
            x = filtered(F.pad(x, (1, 1, 1, 1)), BLUR)
        x = literal_style(x, w, f"{block}.styles.0", ws[:, layer], noise[layer])
        x = F.conv2d(x, he(w[f"{block}.convolutions.{1 if r > 4 else 0}.weight"]), padding=1)
        x = literal_style(x, w, f"{block}.styles.1", ws[:, layer + 1], noise[layer + 1])
        layer += 2
        images[r] = F.conv2d(x, he(w[f"to_rgb.{r}.weight"], 1.0), w[f"to_rgb.{r}.bias"])
    if growth.alpha == 1:
        return images[growth.resolution]
    old = F.interpolate(images[growth.resolution // 2], scale_factor=2, mode="nearest")
    return growth.alpha * images[growth.resolution] + (1 - growth.alpha) * old


def literal_discriminator(network: Discriminator, images: Tensor, growth: Growth) -> Tensor:
    """All scores, `[n, classes]`."""
    w = weights_of(network)

    def layer(x: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return leaky(F.conv2d(x, he(weight), w[f"{name}.bias"], padding=weight.shape[2] // 2))

    r = growth.resolution
    x = layer(images, f"from_rgb.{r}")
    while r > 4:
        x = filtered(F.pad(layer(x, f"blocks.{r}.first"), (1, 1, 1, 1)), BLUR)
        name = f"blocks.{r}.second"
        x = leaky(F.avg_pool2d(F.conv2d(x, he(w[f"{name}.weight"]), w[f"{name}.bias"], padding=1), 2))
        if r == growth.resolution and growth.alpha < 1:
            x = growth.alpha * x + (1 - growth.alpha) * layer(F.avg_pool2d(images, 2), f"from_rgb.{r // 2}")
        r //= 2
    x = layer(spread(x, 2), "convolution").flatten(1)
    x = leaky(dense(x, w, "dense", math.sqrt(2)))
    return dense(x, w, "output")


@pytest.mark.parametrize("growth", GROWTHS, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_the_synthesis_equals_a_literal_one(growth: Growth, name: str) -> None:
    generator = tiny_generator().double()
    ws = normal(2, generator.num_ws, 5)
    noise = [normal(2, 1, h, w, seed=4) for h, w in generator.synthesis.noise_shapes]
    with backend(name):
        found = generator.synthesis(ws, noise, growth)
    expected = literal_synthesis(generator, ws, noise, growth)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    live = 2 * len(growth.resolutions)
    assert torch.equal(generator.synthesis(ws, noise[:live], growth), generator.synthesis(ws, noise, growth))


@pytest.mark.parametrize("growth", GROWTHS, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_the_discriminator_equals_a_literal_one(growth: Growth, name: str) -> None:
    discriminator, images = tiny_discriminator().double(), images_at(4, growth.resolution)
    with backend(name):
        found = discriminator(images, growth=growth)
    expected = literal_discriminator(discriminator, images, growth)
    torch.testing.assert_close(found[:, None], expected, rtol=1e-10, atol=1e-10)


def test_a_score_is_that_of_the_labels_class() -> None:
    discriminator, images = tiny_discriminator(classes=3).double(), images_at(4, 16)
    labels = torch.tensor([2, 0, 1, 2])
    scores = literal_discriminator(discriminator, images, Growth(16))
    assert scores.shape == (4, 3)
    one_hot = torch.eye(3, dtype=torch.float64)[labels]
    torch.testing.assert_close(discriminator(images, labels, Growth(16)), (scores * one_hot).sum(1))


def test_adaptive_instance_norm_equals_loops() -> None:
    x, scale, shift = normal(2, 3, 4, 5) * 3 + 2, normal(2, 3, seed=1), normal(2, 3, seed=2)
    found = adaptive_instance_norm(x, scale, shift)
    for n in range(2):
        for c in range(3):
            plane = x[n, c].flatten().tolist()
            mean = sum(plane) / 20
            root = math.sqrt(sum((value - mean) ** 2 for value in plane) / 20 + 1e-8)
            expected = [(v - mean) / root * (scale[n, c].item() + 1) + shift[n, c].item() for v in plane]
            assert found[n, c].flatten().tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adaptive_instance_norm_takes_its_statistics_wide(dtype: torch.dtype) -> None:
    x = (normal(2, 3, 8, 8) * 80 + 100).to(dtype)  # the squares do not fit into fp16
    scale, shift = normal(2, 3, seed=1).float(), normal(2, 3, seed=2).float()
    found = adaptive_instance_norm(x, scale, shift)
    assert found.dtype == dtype
    close(found, adaptive_instance_norm(x.double(), scale.double(), shift.double()), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_styles_of_ten_thousand_stay_finite_with_their_gradients(dtype: torch.dtype) -> None:
    """One pixel far from all others, the most that a normalised map can hold, in a layer with such a style."""
    x = torch.zeros(1, 2, 64, 64, dtype=dtype)
    x[:, :, 5, 7] = 100
    x.requires_grad_()
    scale, shift = (torch.full((1, 2), value, requires_grad=True) for value in (1e4, -1e4))
    y = adaptive_instance_norm(x, scale, shift)
    assert y.isfinite().all()
    assert dtype != torch.float16 or float(y.detach().abs().max()) == 256
    for gradient in torch.autograd.grad(y.float().sum(), (x, scale, shift)):
        assert gradient.isfinite().all()


def test_a_constant_map_becomes_its_shift_with_finite_derivatives() -> None:
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    y = adaptive_instance_norm(x, torch.zeros(2, 3), torch.full((2, 3), 0.5))
    torch.testing.assert_close(y, torch.full_like(y, 0.5))
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


# Growing.


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_0_is_the_old_resolution_exactly(resolution: int, dtype: torch.dtype) -> None:
    low = dict.fromkeys((8, 16, 32), dtype)
    generator, discriminator = tiny_generator(dtypes=low), tiny_discriminator(dtypes=low)
    ws, images = normal(4, 8, 5).float(), images_at(4, resolution).float()
    old, start = Growth(resolution // 2), Growth(resolution, 0.0)
    assert torch.equal(generator.synthesis(ws, growth=start), double_nearest(generator.synthesis(ws, growth=old)))
    assert torch.equal(discriminator(images, growth=start), discriminator(halve_box(images), growth=old))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_alpha_near_1_is_the_new_resolution(resolution: int) -> None:
    generator, discriminator = tiny_generator().double(), tiny_discriminator().double()
    ws, images = normal(4, 8, 5), images_at(4, resolution)
    nearly, done = Growth(resolution, 1 - 1e-13), Growth(resolution)
    for network, value in ((generator.synthesis, ws), (discriminator, images)):
        close(network(value, growth=nearly), network(value, growth=done), 1e-11)


@pytest.mark.parametrize("growth", [*GROWTHS, Growth(32, 0.0)], ids=str)
@pytest.mark.parametrize("classes", [0, 2])
def test_live_parameters_are_exactly_those_that_get_a_gradient(growth: Growth, classes: int) -> None:
    generator, discriminator = tiny_generator(classes), tiny_discriminator(classes)
    labels = torch.tensor([0, 1]) if classes else None
    discriminator(generator(normal(2, 6).float(), labels, growth=growth), labels, growth).sum().backward()
    for network in (generator, discriminator):
        touched = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
        assert network.live_parameters(growth) == touched
        assert len(set(touched)) == len(touched) > 0


def test_styles_beyond_the_live_layers_do_nothing() -> None:
    generator = tiny_generator().double()
    for growth in (Growth(4), Growth(8, 0.5), Growth(16)):
        live = generator.live_ws(growth)
        ws = normal(2, 8, 5).requires_grad_()
        (gradient,) = torch.autograd.grad(generator.synthesis(ws, growth=growth).square().sum(), ws)
        assert gradient.ne(0).any(2).any(0).tolist() == [layer < live for layer in range(8)]


def test_the_networks_own_growth_is_used_unless_another_is_given() -> None:
    generator, discriminator = tiny_generator(), tiny_discriminator()
    z = normal(2, 6).float()
    assert generator(z).shape[-1] == 32
    generator.growth = discriminator.growth = Growth(8)
    images = generator(z)
    assert images.shape == (2, 3, 8, 8)
    assert generator.growth == generator.synthesis.growth == Growth(8)
    assert torch.equal(generator.synthesis(generator.styles(z)), images)
    assert torch.equal(discriminator(images), discriminator(images, growth=Growth(8)))
    assert generator(z, growth=Growth(16)).shape[-1] == 16
    assert "growth" not in generator.state_dict()


def test_noise_is_cut_for_a_growth() -> None:
    synthesis = tiny_generator().synthesis
    assert [synthesis.noise_total_at(r) for r in (4, 8, 16, 32)] == [32, 160, 672, 2720]
    parts = synthesis.split_noise(torch.zeros(3, synthesis.noise_total_at(8)))
    assert [tuple(part.shape) for part in parts] == [(3, 1, 4, 4)] * 2 + [(3, 1, 8, 8)] * 2


# Samples, groups, formats.


def test_an_image_depends_on_its_own_latent_alone() -> None:
    generator, z = tiny_generator().double(), normal(5, 6)
    growth = Growth(32, 0.5)
    alone = torch.cat([generator(z[i : i + 1], growth=growth) for i in range(5)])
    torch.testing.assert_close(generator(z, growth=growth), alone, rtol=1e-10, atol=1e-10)


def test_a_score_depends_on_its_own_group_alone() -> None:
    discriminator, images = tiny_discriminator().double(), images_at(8, 16)
    whole = discriminator(images, growth=Growth(16))
    for size in (2, 4, 6):
        parts = torch.cat([discriminator(part, growth=Growth(16)) for part in images.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    images[2] += 1.0
    changed = discriminator(images, growth=Growth(16)) != whole
    assert changed.tolist() == [False, False, True, True, False, False, False, False]


def path_and_penalty(generator: Generator, discriminator: Discriminator, growth: Growth) -> Tensor:
    """What needs second derivatives: R1 through the discriminator, path lengths through the generator."""
    dtype = next(generator.parameters()).dtype
    ws = generator.styles(normal(2, 6).to(dtype))
    noise = generator.synthesis.split_noise(normal(2, generator.synthesis.noise_total, seed=4).to(dtype))
    images = generator.synthesis(ws, noise, growth)
    (path,) = torch.autograd.grad((images * normal(*images.shape, seed=2).to(images)).sum(), ws, create_graph=True)
    real = images_at(2, growth.resolution).to(images).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(real, growth=growth).sum(), real, create_graph=True)
    return path.square().sum() + slope.square().sum() - discriminator(images, growth=growth).mean()


def gradients(
    generator: Generator, discriminator: Discriminator, growth: Growth, last: bool = False
) -> dict[str, Tensor]:
    for network in (generator, discriminator):
        network.zero_grad()
        if last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path_and_penalty(generator, discriminator, growth).backward()
    return {
        f"{kind}.{name}": parameter.grad.clone()
        for kind, network in (("g", generator), ("d", discriminator))
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("growth", [Growth(8, 0.4), Growth(32)], ids=str)
def test_backends_and_memory_formats_give_the_same_penalties(growth: Growth) -> None:
    generator, discriminator = tiny_generator().double(), tiny_discriminator().double()
    with backend("reference"):
        expected = gradients(generator, discriminator, growth)
    with backend("native"):
        native = gradients(generator, discriminator, growth)
        last = gradients(generator, discriminator, growth, last=True)
    assert len(expected) > 40
    for name, gradient in expected.items():
        close(native[name], gradient, 1e-9)
        close(last[name], gradient, 1e-9)


def test_penalties_equal_those_of_the_literal_networks() -> None:
    generator, discriminator = tiny_generator().double(), tiny_discriminator().double()
    growth = Growth(16, 0.7)
    found = gradients(generator, discriminator, growth)
    for network in (generator, discriminator):
        network.zero_grad()
    ws = generator.styles(normal(2, 6))
    noise = generator.synthesis.split_noise(normal(2, generator.synthesis.noise_total, seed=4))
    images = literal_synthesis(generator, ws, noise, growth)
    (path,) = torch.autograd.grad((images * normal(*images.shape, seed=2)).sum(), ws, create_graph=True)
    real = images_at(2, 16).requires_grad_()
    score = literal_discriminator(discriminator, real, growth).sum()
    (slope,) = torch.autograd.grad(score, real, create_graph=True)
    loss = path.square().sum() + slope.square().sum() - literal_discriminator(discriminator, images, growth).mean()
    loss.backward()
    for kind, network in (("g", generator), ("d", discriminator)):
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                close(found[f"{kind}.{name}"], parameter.grad, 1e-8)


def test_derivatives_against_finite_differences() -> None:
    torch.manual_seed(0)
    width = Width(base=4, most=2)
    generator = Generator(8, 3, 2, mapping_layers=1, width=width).double()
    discriminator = Discriminator(8, width=width, group=2).double()
    randomise(generator)
    randomise(discriminator)
    noise = generator.synthesis.split_noise(normal(2, generator.synthesis.noise_total))
    ws = normal(2, generator.num_ws, 2).requires_grad_()
    images = images_at(2, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda ws: generator.synthesis(ws, noise), ws, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda ws: generator.synthesis(ws, noise), ws, fast_mode=True)
    assert torch.autograd.gradcheck(discriminator, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(discriminator, images, fast_mode=True)


# Precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("growth", [Growth(32, 0.5), Growth(16, 0.5), Growth(8)], ids=str)
def test_only_the_named_resolutions_compute_low(dtype: torch.dtype, growth: Growth) -> None:
    low = {32: dtype, 16: dtype}
    generator, discriminator = tiny_generator(dtypes=low), tiny_discriminator(dtypes=low)
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}
    for network in (generator, discriminator):
        for name, module in network.named_modules():
            if isinstance(module, EqualizedConv2d):
                module.register_forward_hook(
                    lambda _, inputs, output, name=name: seen.__setitem__(name, (inputs[0].dtype, output.dtype))
                )
    images = generator(normal(2, 6).float(), growth=growth)
    scores = discriminator(images, growth=growth)
    assert images.dtype == scores.dtype == torch.float32
    assert len(seen) > 5
    for name, dtypes in seen.items():
        side = next((int(part) for part in name.split(".") if part.isdigit() and int(part) > 3), 4)
        assert dtypes == (low.get(side, torch.float32),) * 2, name
    scores.sum().backward()
    for network in (generator, discriminator):
        assert all(
            p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in network.parameters()
        )


def test_half_precision_is_close_to_float32() -> None:
    z = normal(4, 6).float()
    expected = tiny_generator()(z)
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        found = tiny_generator(dtypes=dict.fromkeys((4, 8, 16, 32), dtype))(z)
        assert float((found - expected).detach().square().mean().sqrt()) < tolerance * float(expected.detach().std())


def test_float64_is_float64_throughout() -> None:
    generator, discriminator = tiny_generator(2).double(), tiny_discriminator(2).double()
    labels = torch.tensor([0, 1])
    seen: set[torch.dtype] = set()

    def record(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        seen.update(
            value.dtype for value in (*inputs, output) if isinstance(value, Tensor) and value.is_floating_point()
        )

    for module in (*generator.modules(), *discriminator.modules()):
        module.register_forward_hook(record)
    discriminator(generator(normal(2, 6), labels), labels)
    assert seen == {torch.float64}


def test_signals_keep_their_power_at_the_start() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(32, 64, 64, width=Width(2048, 64)), Discriminator(32, width=Width(2048, 64))
    with torch.no_grad():
        images = generator(torch.randn(8, 64))
        scores = discriminator(torch.randn(8, 3, 32, 32))
    assert 0.2 < float(images.square().mean()) < 5
    assert 0.001 < float(scores.square().mean()) < 10


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator, discriminator = tiny_generator(), tiny_discriminator()
        for last in (False, True):
            gradients(generator, discriminator, Growth(16, 0.5), last)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="the resolution is 48; powers of two from 4 on are allowed"):
        Generator(48, width=TINY)
    with pytest.raises(ValueError, match="the resolution is 2; powers"):
        Discriminator(2, width=TINY)
    with pytest.raises(ValueError, match=r"images are \[2, 3, 16, 16\]; \[n, 3, 32, 32\] is allowed"):
        tiny_discriminator()(images_at(2, 16).float())
    with pytest.raises(ValueError, match="labels missing; classes is 2"):
        tiny_discriminator(2)(images_at(2, 32).float())
    with pytest.raises(ValueError, match="labels given; classes is 0"):
        tiny_discriminator()(images_at(2, 32).float(), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="a batch of 3 is no whole number of minibatch-deviation groups of 2"):
        tiny_discriminator()(images_at(3, 32).float())
