"""In which dtype StyleGAN2's layers compute, and what stays finite there."""

from __future__ import annotations

import pytest
import torch
from plain_style_layers import (
    normal,
)
from test_stylegan2 import literal_synthesis, tiny_discriminator, tiny_generator
from torch import Tensor, nn

from hires_gan.networks.modulation import Form
from hires_gan.networks.stylegan2 import Discriminator, Generator


def dtypes_of_layers(generator: Generator, discriminator: Discriminator) -> dict[str, torch.dtype]:
    seen: dict[str, torch.dtype] = {}
    for kind, network in (("g", generator), ("d", discriminator)):
        for name, module in network.named_modules():
            if type(module).__name__ in ("_SynthesisLayer", "_ToRGB", "FilteredConv2d"):
                key = f"{kind}.{name}"
                module.register_forward_hook(lambda _, inputs, output, key=key: seen.__setitem__(key, output.dtype))
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["scaled", "grouped"])
def test_only_the_named_resolutions_compute_low(dtype: torch.dtype, form: Form) -> None:
    low = {32: dtype, 16: dtype}
    generator, discriminator = tiny_generator(dtypes=low, form=form), tiny_discriminator(dtypes=low)
    seen = dtypes_of_layers(generator, discriminator)
    images = generator(normal(2, 6).float())
    scores = discriminator(images)
    assert images.dtype == scores.dtype == torch.float32
    assert len(seen) == 7 + 4 + 11
    for name, found in seen.items():
        side = next((int(part) for part in name.split(".") if part.isdigit() and int(part) > 3), 4)
        side = 32 if "from_rgb" in name else side
        assert found == low.get(side, torch.float32), name
    scores.sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name


def test_half_precision_is_close_to_float32() -> None:
    z = normal(4, 6).float()
    expected = tiny_generator()(z)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        found = tiny_generator(dtypes=dict.fromkeys((4, 8, 16, 32), dtype))(z)
        assert float((found - expected).detach().square().mean().sqrt()) < tolerance * float(expected.detach().std())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_for_styles_of_ten_thousand(dtype: torch.dtype) -> None:
    low = dict.fromkeys((8, 16, 32), dtype)
    generator, discriminator = tiny_generator(dtypes=low), tiny_discriminator(dtypes=low)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "affine" in name:
                parameter.mul_(1e4)
    peaks: list[float] = []
    for name, module in (*generator.named_modules(), *discriminator.named_modules()):
        if name.split(".")[-2:-1] == ["layers"] or name.endswith((".to_rgb", ".first", ".second", ".shortcut")):
            module.register_forward_hook(lambda _, inputs, output: peaks.append(float(output.detach().abs().max())))
    images = generator(normal(2, 6).float())
    scores = discriminator(images)
    scores.mean().backward()
    assert images.isfinite().all()
    assert scores.isfinite().all()
    assert len(peaks) > 20
    assert max(peaks) == 256.0
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.any() for parameter in generator.parameters() if parameter.grad is not None)


def test_the_clamp_is_on_everywhere_as_soon_as_one_resolution_is_low() -> None:
    """A layer in float32 comes before one in half precision, which its output has to fit."""
    z = normal(2, 6).float()
    for network in (tiny_generator(dtypes={32: torch.float16}), tiny_generator(clamp=256.0), tiny_generator()):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("layers.0.bias"):
                    parameter.fill_(1e5)
        peak = 0.0

        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
            nonlocal peak
            peak = max(peak, float(output[0].detach().abs().max()))

        network.synthesis.blocks["4"].register_forward_hook(record)
        assert network(z).isfinite().all()
        limited = network.synthesis.blocks["4"].layers[0].clamp
        assert (peak == 256.0) if limited else (peak > 1e5)
    assert network.synthesis.blocks["4"].layers[0].clamp is None


@pytest.mark.parametrize("clamp", [0.7, None])
def test_a_clamp_is_that_of_the_literal_network(clamp: float | None) -> None:
    generator = tiny_generator(16, clamp=clamp).double()
    ws, noise = normal(2, generator.num_ws, 5), generator.synthesis.noise.tensors()
    expected = literal_synthesis(generator, ws, noise, clamp)
    torch.testing.assert_close(generator.synthesis(ws), expected, rtol=1e-9, atol=1e-9)


def test_float64_is_float64_throughout() -> None:
    generator, discriminator = tiny_generator(classes=2).double(), tiny_discriminator(classes=2).double()
    labels = torch.tensor([0, 1])
    seen: set[torch.dtype] = set()

    def record(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = [value for value in (*inputs, *outputs) if isinstance(value, Tensor)]
        seen.update(value.dtype for value in values if value.is_floating_point())

    for module in (*generator.modules(), *discriminator.modules()):
        module.register_forward_hook(record)
    discriminator(generator(normal(2, 6), labels), labels)
    assert seen == {torch.float64}
