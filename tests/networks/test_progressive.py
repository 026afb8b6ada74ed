"""Progressive GAN's networks against the paper's table, a literal second implementation, and autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.networks.layers import EqualizedConv2d, double_nearest, halve_box
from hires_gan.networks.progressive import Discriminator, Generator, Growth, Width

TINY = Width(base=64, most=8)
RESOLUTIONS = (4, 8, 16, 32, 64)
GROWTHS = [Growth(r, alpha) for r in RESOLUTIONS for alpha in (1.0, 0.3) if r > 4 or alpha == 1.0]


def tiny_generator(classes: int = 0, resolution: int = 64, **more: Mapping[int, torch.dtype]) -> Generator:
    torch.manual_seed(0)
    return Generator(resolution, latent_size=6, classes=classes, width=TINY, **more)


def tiny_discriminator(classes: int = 0, resolution: int = 64, **more: Mapping[int, torch.dtype]) -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(resolution, classes=classes, width=TINY, group=2, **more)


def randomise_biases(network: nn.Module) -> nn.Module:
    """Biases start at zero, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def latents(n: int, dtype: torch.dtype = torch.float64, size: int = 6) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def pictures(n: int, resolution: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (n, 3, resolution, resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Table 2 of the paper: feature maps at 4x4, 8x8, ..., 1024x1024.
PAPER_MAPS = (512, 512, 512, 512, 256, 128, 64, 32, 16)


def test_the_parameter_counts_are_the_papers() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(1024), Discriminator(1024)
    assert count(generator) == 23_079_115
    assert count(discriminator) == 23_087_249


def test_the_feature_maps_are_those_of_table_2() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(1024), Discriminator(1024)
    for level, maps in enumerate(PAPER_MAPS):
        r = str(4 << level)
        below = PAPER_MAPS[max(0, level - 1)]
        shapes = [tuple(c.weight.shape) for c in generator.blocks[r].convolutions]
        assert shapes == [(maps, below, 3, 3), (maps, maps, 3, 3)][level == 0 :]
        assert generator.to_rgb[r].weight.shape == (3, maps, 1, 1)
        assert discriminator.from_rgb[r].weight.shape == (maps, 3, 1, 1)
        if level:
            shapes = [tuple(c.weight.shape) for c in discriminator.blocks[r].convolutions]
            assert shapes == [(maps, maps, 3, 3), (below, maps, 3, 3)]
    assert generator.dense.weight.shape == (512 * 16, 512)
    assert generator.dense_bias.shape == (512,)
    assert discriminator.convolution.weight.shape == (512, 513, 3, 3)
    assert discriminator.dense.weight.shape == (512, 512 * 16)
    assert discriminator.output.weight.shape == (1, 512)


def test_the_biases_belong_to_every_layer_but_the_first_dense_one() -> None:
    with torch.device("meta"):
        generator = Generator(64)
    assert generator.dense.bias is None
    for name, module in generator.named_modules():
        if isinstance(module, EqualizedConv2d):
            assert module.bias is not None, name


@pytest.mark.parametrize("growth", GROWTHS, ids=str)
@pytest.mark.parametrize("classes", [0, 3])
def test_every_growth_gives_the_right_shapes(growth: Growth, classes: int) -> None:
    labels = torch.tensor([0, 1, 2, 1]) if classes else None
    images = tiny_generator(classes)(latents(4, torch.float32), labels, growth)
    assert images.shape == (4, 3, growth.resolution, growth.resolution)
    assert images.dtype == torch.float32
    scores, logits = tiny_discriminator(classes)(images, growth)
    assert scores.shape == (4,)
    assert (logits is None) if not classes else (logits is not None and logits.shape == (4, classes))


def test_1024_works_at_every_growth_with_one_feature_map() -> None:
    torch.manual_seed(0)
    width = Width(base=16, most=4)
    generator, discriminator = Generator(1024, 4, 0, width), Discriminator(1024, 0, width, group=2)
    with torch.no_grad():
        for level in range(9):
            for alpha in (1.0, 0.5) if level else (1.0,):
                growth = Growth(4 << level, alpha)
                images = generator(latents(2, torch.float32, 4), growth=growth)
                assert images.shape == (2, 3, 4 << level, 4 << level)
                assert discriminator(images, growth)[0].isfinite().all()


# A second implementation, from the paper and with torch's plain operators.


def literal_convolution(x: Tensor, weight: Tensor, bias: Tensor, gain: float) -> Tensor:
    return F.conv2d(x, weight * (gain / math.sqrt(weight[0].numel())), bias, padding=weight.shape[2] // 2)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, 0.2 * x)


def unit_pixels(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(dim=1, keepdim=True) + 1e-8).sqrt()


def literal_generator(w: Mapping[str, Tensor], z: Tensor, growth: Growth) -> Tensor:
    """The generator of table 2 at one growth, from its weights by name."""
    he = math.sqrt(2)
    x = unit_pixels(z) @ (w["dense.weight"] * (he / 4 / math.sqrt(z.shape[1]))).T
    x = unit_pixels(leaky(x.reshape(len(z), -1, 4, 4) + w["dense_bias"].reshape(1, -1, 1, 1)))
    images: dict[int, Tensor] = {}
    for level in range(int(math.log2(growth.resolution)) - 1):
        r = 4 << level
        if r > 4:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        for layer in range(2 if r > 4 else 1):
            name = f"blocks.{r}.convolutions.{layer}"
            x = unit_pixels(leaky(literal_convolution(x, w[f"{name}.weight"], w[f"{name}.bias"], he)))
        images[r] = literal_convolution(x, w[f"to_rgb.{r}.weight"], w[f"to_rgb.{r}.bias"], 1.0)
    if growth.alpha == 1:
        return images[growth.resolution]
    old = F.interpolate(images[growth.resolution // 2], scale_factor=2, mode="nearest")
    return growth.alpha * images[growth.resolution] + (1 - growth.alpha) * old


def literal_discriminator(w: Mapping[str, Tensor], images: Tensor, growth: Growth, group: int) -> Tensor:
    """The discriminator of table 2: `[n, 1 + classes]`."""
    he = math.sqrt(2)

    def layer(x: Tensor, name: str) -> Tensor:
        return leaky(literal_convolution(x, w[f"{name}.weight"], w[f"{name}.bias"], he))

    r = growth.resolution
    x = layer(images, f"from_rgb.{r}")
    while r > 4:
        x = layer(x, f"blocks.{r}.convolutions.0")
        name = f"blocks.{r}.convolutions.1"
        x = leaky(F.avg_pool2d(literal_convolution(x, w[f"{name}.weight"], w[f"{name}.bias"], he), 2))
        if r == growth.resolution and growth.alpha < 1:
            old = layer(F.avg_pool2d(images, 2), f"from_rgb.{r // 2}")
            x = growth.alpha * x + (1 - growth.alpha) * old
        r //= 2
    groups = []
    for part in x.split(group):
        spread = (part - part.mean(0, keepdim=True)).pow(2).mean(0).add(1e-8).sqrt().mean()
        groups.append(torch.cat([part, spread.expand(len(part), 1, 4, 4)], 1))
    x = layer(torch.cat(groups), "convolution").flatten(1)
    x = leaky(x @ (w["dense.weight"] * (he / math.sqrt(x.shape[1]))).T + w["dense.bias"])
    return x @ (w["output.weight"] / math.sqrt(x.shape[1])).T + w["output.bias"]


@pytest.mark.parametrize("growth", GROWTHS, ids=str)
def test_the_generator_equals_a_literal_one(growth: Growth) -> None:
    generator = randomise_biases(tiny_generator().double())
    z = latents(2)
    expected = literal_generator(dict(generator.named_parameters()), z, growth)
    torch.testing.assert_close(generator(z, growth=growth), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("growth", GROWTHS, ids=str)
def test_the_discriminator_equals_a_literal_one(growth: Growth) -> None:
    discriminator = randomise_biases(tiny_discriminator(classes=2).double())
    images = pictures(6, growth.resolution)
    expected = literal_discriminator(dict(discriminator.named_parameters()), images, growth, 2)
    scores, logits = discriminator(images, growth)
    assert logits is not None
    torch.testing.assert_close(torch.cat((scores[:, None], logits), 1), expected, rtol=1e-10, atol=1e-10)


def test_labels_join_the_latent_as_one_hot_before_its_normalisation() -> None:
    generator = randomise_biases(tiny_generator(classes=3).double())
    z, labels = latents(3), torch.tensor([2, 0, 1])
    joined = torch.cat((z, torch.eye(3, dtype=torch.float64)[labels]), 1)
    expected = literal_generator(dict(generator.named_parameters()), joined, Growth(16))
    torch.testing.assert_close(generator(z, labels, Growth(16)), expected, rtol=1e-10, atol=1e-10)


# Growing.


@pytest.mark.parametrize("resolution", RESOLUTIONS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_0_is_the_old_resolution_exactly(resolution: int, dtype: torch.dtype) -> None:
    low = dict.fromkeys((16, 32, 64), dtype)
    generator, discriminator = tiny_generator(dtypes=low), tiny_discriminator(dtypes=low)
    z, images = latents(4, torch.float32), pictures(4, resolution, torch.float32)
    old, start = Growth(resolution // 2), Growth(resolution, 0.0)
    assert torch.equal(generator(z, growth=start), double_nearest(generator(z, growth=old)))
    assert torch.equal(discriminator(images, start)[0], discriminator(halve_box(images), old)[0])


@pytest.mark.parametrize("resolution", RESOLUTIONS[1:])
def test_alpha_near_1_is_the_new_resolution(resolution: int) -> None:
    generator, discriminator = tiny_generator().double(), tiny_discriminator().double()
    z, images = latents(4), pictures(4, resolution)
    nearly, done = Growth(resolution, 1 - 1e-13), Growth(resolution)
    torch.testing.assert_close(generator(z, growth=nearly), generator(z, growth=done), rtol=0, atol=1e-11)
    torch.testing.assert_close(discriminator(images, nearly)[0], discriminator(images, done)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("growth", [*GROWTHS, Growth(64, 0.0)], ids=str)
@pytest.mark.parametrize("classes", [0, 2])
def test_live_parameters_are_exactly_those_that_get_a_gradient(growth: Growth, classes: int) -> None:
    generator, discriminator = tiny_generator(classes), tiny_discriminator(classes)
    labels = torch.zeros(2, dtype=torch.int64) if classes else None
    scores, logits = discriminator(generator(latents(2, torch.float32), labels, growth), growth)
    (scores.sum() + (logits.sum() if logits is not None else 0)).backward()
    for network in (generator, discriminator):
        touched = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
        assert network.live_parameters(growth) == touched
        assert len(set(touched)) == len(touched) > 0


def test_everything_but_the_lower_rgb_layers_lives_at_the_full_resolution() -> None:
    for network in (tiny_generator(), tiny_discriminator()):
        dead = {name for name, _ in network.named_parameters()} - set(network.live_parameters(Growth(64)))
        assert {name.split(".")[1] for name in dead} == {"4", "8", "16", "32"}
        assert {name.split(".")[0] for name in dead} <= {"to_rgb", "from_rgb"}


def test_forward_uses_the_networks_own_growth_unless_another_is_given() -> None:
    generator, discriminator = tiny_generator(), tiny_discriminator()
    z = latents(2, torch.float32)
    assert generator(z).shape[-1] == 64
    generator.growth = discriminator.growth = Growth(8)
    assert generator(z).shape[-1] == 8
    images = generator(z)
    assert torch.equal(discriminator(images)[0], discriminator(images, Growth(8))[0])


# Samples and groups.


def test_an_image_depends_on_its_own_latent_alone() -> None:
    generator = tiny_generator().double()
    z = latents(5)
    together = generator(z, growth=Growth(32, 0.5))
    alone = torch.cat([generator(z[i : i + 1], growth=Growth(32, 0.5)) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_a_score_depends_on_its_own_group_alone() -> None:
    discriminator = tiny_discriminator().double()
    images = pictures(8, 16)
    whole = discriminator(images, Growth(16))[0]
    for size in (2, 4, 6):
        parts = torch.cat([discriminator(part, Growth(16))[0] for part in images.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    images[2] += 1.0
    changed = discriminator(images, Growth(16))[0] != whole
    assert changed.tolist() == [False, False, True, True, False, False, False, False]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="labels missing; classes is 3"):
        tiny_generator(classes=3)(latents(2, torch.float32))
    with pytest.raises(ValueError, match="labels given; classes is 0"):
        tiny_generator()(latents(2, torch.float32), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="a batch of 3 is no whole number of minibatch-deviation groups of 2"):
        tiny_discriminator()(pictures(3, 8, torch.float32), Growth(8))


# Statistics at the start.


@contextmanager
def watching(network: nn.Module, kind: type[nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output of every submodule of a kind during the forward passes inside."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, inputs, output: seen.__setitem__(name, (inputs[0].detach(), output.detach()))

    modules = [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]
    handles = [module.register_forward_hook(record(name)) for name, module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_signals_keep_their_power_through_both_networks_at_the_start() -> None:
    torch.manual_seed(0)
    width = Width(base=4096, most=96)
    generator, discriminator = Generator(64, 96, 0, width), Discriminator(64, 0, width, group=4)
    z = torch.randn(4, 96)
    with (
        torch.no_grad(),
        watching(generator, EqualizedConv2d) as made,
        watching(discriminator, EqualizedConv2d) as judged,
    ):
        for growth in (Growth(r) for r in RESOLUTIONS):
            discriminator(generator(z, growth=growth), growth)
        first = generator.dense(z / z.square().mean(1, keepdim=True).sqrt())
    assert float(first.square().mean()) == pytest.approx(2 / 16, rel=0.1)  # gain sqrt(2) / 4
    for name, (inputs, output) in made.items():
        # Each pixel comes in with power 1; He's gain makes it 2, of which the rectifier
        # leaves (1 + 0.2^2) / 2; zeros around small images take some of it away.
        assert inputs.square().mean().item() == pytest.approx(1.0, rel=1e-3)
        if "rgb" not in name:
            assert 0.45 < output.square().mean().item() < 1.25
    to_rgb = torch.cat([output.flatten() for name, (_, output) in made.items() if "rgb" in name])
    assert to_rgb.square().mean().item() == pytest.approx(1.0, rel=0.3)
    powers = [float(output.square().mean() / judged["from_rgb.64"][1].square().mean()) for _, output in judged.values()]
    assert len(powers) == 5 + 8 + 1
    assert min(powers) > 0.1
    assert max(powers) < 10


# Precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "growth", [Growth(64), Growth(64, 0.5), Growth(32, 0.5), Growth(16, 0.5), Growth(8), Growth(4)]
)
def test_only_the_named_resolutions_compute_low(dtype: torch.dtype, growth: Growth) -> None:
    low = {64: dtype, 32: dtype}
    generator, discriminator = tiny_generator(dtypes=low), tiny_discriminator(dtypes=low)
    with watching(generator, EqualizedConv2d) as made, watching(discriminator, EqualizedConv2d) as judged:
        images = generator(latents(2, torch.float32), growth=growth)
        scores, _ = discriminator(images, growth)
    assert images.dtype == scores.dtype == torch.float32
    assert (any("64" in name for name in made)) == (growth.resolution == 64)
    for name, (inputs, output) in {**made, **judged}.items():
        resolution = next((int(part) for part in name.split(".") if part in ("64", "32", "16", "8")), 4)
        expected = low.get(resolution, torch.float32)
        assert (inputs.dtype, output.dtype) == (expected, expected), name
    scores.sum().backward()
    for network in (generator, discriminator):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())


def test_fp16_stays_finite_and_within_the_clamp_under_huge_inputs() -> None:
    low = dict.fromkeys(RESOLUTIONS, torch.float16)
    discriminator = tiny_discriminator(dtypes=low)
    blocks = [
        module for name, module in discriminator.named_modules() if name.startswith("blocks.") and name.count(".") == 1
    ]
    peaks: list[float] = []
    for block in blocks:
        block.register_forward_hook(lambda _, inputs, output: peaks.append(output.detach().abs().max().item()))
    scores, _ = discriminator(pictures(4, 64, torch.float32).clamp(-3, 3) * 1e4, Growth(64))
    assert scores.isfinite().all()
    assert len(peaks) == 4
    assert max(peaks) == 256.0


def test_fp16_generator_is_close_to_fp32_and_clamped() -> None:
    low = dict.fromkeys(RESOLUTIONS, torch.float16)
    wide, half = tiny_generator(), tiny_generator(dtypes=low)
    z = latents(4, torch.float32)
    assert (half(z) - wide(z)).square().mean().sqrt() < 0.05  # single pixels near zero are normalised to anything
    with torch.no_grad():
        for block in half.blocks.values():
            block.convolutions[0].bias.fill_(1e4)
    assert half(z).isfinite().all()


def test_fp64_is_float64_throughout() -> None:
    generator, discriminator = tiny_generator().double(), tiny_discriminator().double()
    modules = [*generator.modules(), *discriminator.modules()]
    seen: set[torch.dtype] = set()

    def record(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        seen.update(value.dtype for value in (*inputs, *outputs) if isinstance(value, Tensor))

    handles = [module.register_forward_hook(record) for module in modules]
    scores, _ = discriminator(generator(latents(2), growth=Growth(64, 0.5)), Growth(64, 0.5))
    for handle in handles:
        handle.remove()
    assert seen == {torch.float64}
    scores.sum().backward()
    assert {p.grad.dtype for p in generator.parameters() if p.grad is not None} == {torch.float64}
