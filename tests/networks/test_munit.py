"""MUNIT's generator against the published counts, a literal second implementation, and autograd."""

from __future__ import annotations

import math
from typing import Any

import literal_munit as literal
import pytest
import torch
from plain_style_layers import close, normal, randomise
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from hires_gan.networks.munit import Generator
from hires_gan.networks.munit_layers import Conv2d, Statistics
from hires_gan.ops import backend

BACKENDS = ("reference", "native")
HALF = (torch.float16, torch.bfloat16)
SIZES: dict[str, Any] = {"style_size": 3, "base": 4, "most": 8, "style_downs": 3, "blocks": 2, "features": 5}


def tiny(content_downs: int = 2, **more: Any) -> Generator:
    torch.manual_seed(0)
    network = Generator(content_downs=content_downs, **{**SIZES, **more})
    randomise(network)
    return network


def pictures(n: int = 2, height: int = 24, width: int = 16, seed: int = 3) -> Tensor:
    return normal(n, 3, height, width, seed=seed).tanh()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def both(network: Generator, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    content, style = network.encode(images)
    return content, style, network.decode(content, style)


def literal_both(network: Generator, images: Tensor, downs: int) -> tuple[Tensor, Tensor, Tensor]:
    w = literal.weights_of(network)
    content = literal.content(images, literal.part(w, "content_encoder"), downs, SIZES["blocks"])
    style = literal.style(images, literal.part(w, "style_encoder"), SIZES["style_downs"])
    return content, style, literal.decoded(content, style, literal.part(w, "decoder"), downs, SIZES["blocks"])


# The published networks, and those for 1024x1024.


def multiplications(side: int, **arguments: Any) -> tuple[float, float, float]:
    """Billions of multiply-accumulates of content encoder, style encoder and decoder."""
    with torch.device("meta"):
        network, images = Generator(**arguments), torch.empty(1, 3, side, side)
        content = torch.empty(1, network.content_channels, *2 * [side >> network.content_downs])
        style = torch.empty(1, 8)
    parts = (
        lambda: network.encode_content(images),
        lambda: network.encode_style(images),
        lambda: network.decode(content, style),
    )
    found = []
    for run in parts:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        found.append(counter.get_total_flops() / 2e9)
    return found[0], found[1], found[2]


def test_the_published_generator_has_the_published_size() -> None:
    with torch.device("meta"):
        network = Generator()
    assert count(network) == 15_026_187
    assert count(network.content_encoder) == 5_385_856
    assert count(network.style_encoder) == 2_764_936
    assert count(network.decoder.mapping) == 1_120_768
    assert multiplications(256) == pytest.approx((24.24, 6.25, 46.79), abs=0.01)
    assert sum(multiplications(256)) == pytest.approx(77.3, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "billions"),
    [({}, 1136), ({"content_downs": 3}, 416), ({"content_downs": 4}, 195), ({"content_downs": 3, "most": 512}, 1386)],
)
def test_more_halvings_make_a_translation_at_1024_cheaper(arguments: dict[str, int], billions: float) -> None:
    content, _, decoder = multiplications(1024, **arguments)
    assert content + decoder == pytest.approx(billions, abs=0.7)


def test_channels_stay_below_the_most_and_the_decoder_halves_them() -> None:
    with torch.device("meta"):
        capped, uncapped = Generator(content_downs=3), Generator(content_downs=3, most=512)
    assert [up.convolution.weight.shape[0] for up in capped.decoder.ups] == [128, 64, 32]
    assert capped.content_channels == 256
    assert count(uncapped) == 49_769_739


def test_the_start_is_the_papers() -> None:
    torch.manual_seed(0)
    network = Generator(base=32, most=128)
    for name, parameter in network.named_parameters():
        values = parameter.detach()
        if name.endswith("gamma"):
            assert 0 <= float(values.min()) < 0.1, name
            assert 0.9 < float(values.max()) <= 1, name
        elif name.endswith(("bias", "beta")):
            assert not values.any(), name
        else:
            expected = math.sqrt(2 / values[0].numel())
            assert float(values.std()) == pytest.approx(expected, rel=0.1), name


# The whole.


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("downs", [1, 2, 3])
def test_the_networks_equal_literal_ones(name: str, downs: int) -> None:
    network = tiny(downs, most=16).double()
    images = pictures(2, 32, 48)
    with backend(name):
        found = both(network, images)
    assert found[0].shape == (2, min(4 << downs, 16), 32 >> downs, 48 >> downs)
    assert found[1].shape == (2, 3)
    assert found[2].shape == images.shape
    for one, expected in zip(found, literal_both(network, images, downs), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-10)


def gradients(network: Generator, outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    weighted = [(one * normal(*one.shape, seed=number)).sum() for number, one in enumerate(outputs)]
    found = torch.autograd.grad(sum(weighted), list(network.parameters()), allow_unused=True)
    names = [name for name, _ in network.named_parameters()]
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_equal_those_of_the_literal_networks(name: str) -> None:
    """The biases before an instance normalisation cancel out there, and have none here."""
    network, images = tiny().double(), pictures()
    with backend(name):
        found = gradients(network, both(network, images))
    expected = gradients(network, literal_both(network, images, 2))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        if parameter in found:
            close(found[parameter], gradient, 1e-9)
        else:
            assert parameter.endswith("convolution.bias"), parameter
            assert float(gradient.abs().max()) < 1e-12 * largest, parameter
    assert len(expected) - len(found) == 3 + 2 * 2 + 2 * 2


def test_derivatives_against_finite_differences() -> None:
    torch.manual_seed(0)
    network = Generator(2, base=2, most=2, content_downs=1, style_downs=1, blocks=1, features=2).double()
    randomise(network)
    images, style = pictures(1, 4, 6).requires_grad_(), normal(1, 2).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: network.encode(x), images)
        assert check(lambda x, s: network.decode(network.encode_content(x), s), (images, style))


def test_samples_do_not_see_each_other() -> None:
    network, images = tiny().double(), pictures(3)
    together = both(network, images)
    for n in range(3):
        for whole, alone in zip(together, both(network, images[n : n + 1]), strict=True):
            torch.testing.assert_close(whole[n : n + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_style_changes_an_image_and_the_normalisations_take_all_of_it() -> None:
    network = tiny().double()
    content, style = network.encode(pictures(1))
    for number in range(3):
        changed = style.clone()
        changed[0, number] += 1
        assert not torch.allclose(network.decode(content, changed), network.decode(content, style))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 200), (36, 20), (100, 12)])
def test_any_size_that_can_be_halved_is_taken(height: int, width: int) -> None:
    network = tiny()
    assert network.least_side() == 8
    content, style, images = both(network, pictures(1, height, width).float())
    assert content.shape == (1, 8, height // 4, width // 4)
    assert style.shape == (1, 3)
    assert images.shape == (1, 3, height, width)


# Recomputation.


def kept_by_autograd(network: Generator, images: Tensor) -> tuple[int, dict[str, Tensor]]:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = both(network, images)
    return sum(sizes.values()), gradients(network, outputs)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_recomputation_gives_the_same_gradients_and_keeps_less(dtype: torch.dtype | None) -> None:
    images = pictures(1, 64, 64).float()
    plain, expected = kept_by_autograd(tiny(dtype=dtype), images)
    sparing, found = kept_by_autograd(tiny(dtype=dtype, recompute=True), images)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert sparing < 0.6 * plain


# Precision.


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_stays_near_and_gives_wide_results(dtype: torch.dtype) -> None:
    network, images = tiny(dtype=dtype), pictures(2, 32, 32).float()
    found = both(network, images)
    expected = both(tiny().double(), images.double())
    for one, exact in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        close(one, exact, 0.02 if dtype == torch.float16 else 0.15)
    for name, gradient in gradients(network, tuple(one.double() for one in found)).items():
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("dtype", [None, *HALF])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_constant_image_gives_numbers(value: float, dtype: torch.dtype | None) -> None:
    network = tiny(dtype=dtype)
    outputs = both(network, torch.full((1, 3, 16, 16), value))
    assert all(one.isfinite().all() for one in outputs)
    if dtype == torch.float16:  # has no room for the gradients
        return
    for name, gradient in gradients(network, tuple(one.double() for one in outputs)).items():
        assert gradient.isfinite().all(), name


def test_feature_maps_stay_in_channels_last() -> None:
    seen: list[Tensor] = []
    network = tiny().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    both(network, pictures().float().contiguous(memory_format=torch.channels_last))
    assert len(seen) == (3 + 4) + 4 + (4 + 2 + 1)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


# Statistics of another pass.


def test_recording_changes_nothing_and_what_is_recorded_gives_the_same() -> None:
    network, images = tiny().double(), pictures()
    recorded = Statistics()
    content, style = network.encode(images, recorded)
    result = network.decode(content, style, recorded)
    plain = both(network, images)
    for one, other in zip((content, style, result), plain, strict=True):
        assert torch.equal(one, other)
    fixed = recorded.fixed()
    content, style = network.encode(images, fixed)
    for one, other in zip((content, network.decode(content, style, fixed)), (plain[0], plain[2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_tiles_with_the_statistics_of_the_whole_are_parts_of_the_whole() -> None:
    network = tiny(content_downs=1, blocks=1).double()
    images = pictures(1, 96, 64)
    recorded = Statistics()
    content, style = network.encode(images, recorded)
    whole = network.decode(content, style, recorded)
    reach = 3 + 2 + 4 + 4 + 2 + 3  # of the 7x7, the strided, the residual, the 5x5 and the 7x7 convolutions
    tile, inner = images[:, :, 16:80], slice(reach + 2, 64 - reach - 2)
    fixed = recorded.fixed()
    found = network.decode(network.encode_content(tile, fixed), style, fixed)
    torch.testing.assert_close(found[:, :, inner], whole[:, :, 16:80][:, :, inner], rtol=1e-10, atol=1e-10)
    alone = network.decode(network.encode_content(tile), style)
    assert (alone[:, :, inner] - whole[:, :, 16:80][:, :, inner]).abs().max() > 1e-3


def test_statistics_of_one_image_serve_many_tiles() -> None:
    network, recorded = tiny().double(), Statistics()
    images = pictures(1, 16, 32)
    content, style = network.encode(images, recorded)
    network.decode(content, style, recorded)
    tiles = torch.cat([images[:, :, :, :16], images[:, :, :, 16:]])
    fixed = recorded.fixed()
    together = network.decode(network.encode_content(tiles, fixed), style.expand(2, -1), fixed)
    for n in range(2):
        alone = network.decode(network.encode_content(tiles[n : n + 1], fixed), style, fixed)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-12, atol=1e-12)


def test_statistics_refuse_what_they_do_not_hold() -> None:
    network, recorded = tiny(), Statistics()
    content, style = network.encode(pictures(2).float(), recorded)
    with pytest.raises(ValueError, match="statistics hold no values for a layer"):
        network.decode(content, style, recorded.fixed())
    with pytest.raises(ValueError, match="statistics are of 2 samples, and the batch has 3; 1, for all of them"):
        network.encode(pictures(3).float(), recorded.fixed())


# Refusals.


@pytest.mark.parametrize("shape", [(1, 3, 18, 16), (1, 3, 16, 18), (1, 1, 16, 16), (3, 16, 16), (1, 3, 4, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images are \[.*h and w of at least 8 and multiples of 4: crop or resize"):
        tiny().encode(torch.zeros(shape))


def test_contents_and_styles_of_another_shape_are_refused() -> None:
    network = tiny()
    with pytest.raises(ValueError, match=r"content is \[1, 4, 4, 4\]; \[n, 8, h, w\] is allowed"):
        network.decode(torch.zeros(1, 4, 4, 4), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"style is \[2, 3\]; \[1, 3\] is allowed"):
        network.decode(torch.zeros(1, 8, 4, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"images are \[1, 3, 7, 9\]; .* at least 8"):
        network.encode_style(torch.zeros(1, 3, 7, 9))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="content_downs is 0; 1 or more is allowed"):
        Generator(content_downs=0)
    with pytest.raises(ValueError, match="style_downs is 0; 1 or more is allowed"):
        Generator(style_downs=0)
    with pytest.raises(ValueError, match="the content has 12 channels, which the decoder cannot halve 3 times"):
        Generator(base=4, most=12, content_downs=3)


@pytest.mark.filterwarnings("ignore:var_mean")
def test_a_rank_without_samples_takes_part() -> None:
    network = Generator(base=4, most=8, blocks=1, features=8)
    content, style = network.encode(torch.zeros(0, 3, 32, 32))
    images = network.decode(content, style)
    assert (images.shape, style.shape) == ((0, 3, 32, 32), (0, 8))
    images.sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)
