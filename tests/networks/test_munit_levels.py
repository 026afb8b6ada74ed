"""MUNIT's networks at the levels that lie below full resolution, and in the fades between them."""

from __future__ import annotations

from typing import Any

import literal_munit as literal
import pytest
import torch
from plain_style_layers import close, normal, randomise
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hires_gan.networks.layers import double_nearest, halve_box
from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.networks.munit_layers import Conv2d, Statistics
from hires_gan.ops import backend

BACKENDS = ("reference", "native")
HALF = (torch.float16, torch.bfloat16)
DOWNS, STYLE_DOWNS, BLOCKS = 3, 4, 1
SIZES: dict[str, Any] = {"style_size": 3, "base": 4, "most": 16, "blocks": BLOCKS, "features": 5}
EVERY = [Level(number, alpha) for number in range(3) for alpha in (1.0, 0.0, 0.3) if number < 2 or alpha == 1]


def tiny(levels: int = 2, **more: Any) -> Generator:
    torch.manual_seed(0)
    network = Generator(content_downs=DOWNS, style_downs=STYLE_DOWNS, levels=levels, **{**SIZES, **more})
    randomise(network)
    return network


def judge(levels: int = 2, scales: int = 3, **more: Any) -> MultiScaleDiscriminator:
    torch.manual_seed(1)
    network = MultiScaleDiscriminator(scales, 2, base=4, levels=levels, **more)
    randomise(network)
    return network


def pictures(level: Level, n: int = 2, height: int = 64, width: int = 96) -> Tensor:
    """At a level, where those at full resolution have a given size."""
    return normal(n, 3, height >> level.number, width >> level.number, seed=3).tanh()


def both(network: Generator, images: Tensor, level: Level | None = None) -> tuple[Tensor, Tensor, Tensor]:
    content, style = network.encode(images, level=level)
    return content, style, network.decode(content, style, level=level)


def literal_both(network: Generator, images: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    w, at = literal.weights_of(network), (level.number, level.alpha)
    content = literal.content(images, literal.part(w, "content_encoder"), DOWNS, BLOCKS, *at)
    style = literal.style(images, literal.part(w, "style_encoder"), STYLE_DOWNS, *at)
    return content, style, literal.decoded(content, style, literal.part(w, "decoder"), DOWNS, BLOCKS, *at)


def gradients(network: nn.Module, outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    weighted = [(one.double() * normal(*one.shape, seed=number)).sum() for number, one in enumerate(outputs)]
    found = torch.autograd.grad(sum(weighted), list(network.parameters()), allow_unused=True)
    names = [name for name, _ in network.named_parameters()]
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


# What a level is.


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("level", EVERY)
def test_a_level_equals_its_layers_literally_composed(name: str, level: Level) -> None:
    network, images = tiny().double(), pictures(level)
    with backend(name):
        found = both(network, images, level)
    assert found[0].shape == (2, 16, 8, 12)
    assert found[2].shape == images.shape
    for one, expected in zip(found, literal_both(network, images, level), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [None, *HALF])
def test_full_resolution_equals_a_network_without_levels(dtype: torch.dtype | None) -> None:
    network, plain = tiny(dtype=dtype), tiny(0, dtype=dtype)
    state = network.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    assert len(state) == len(plain.state_dict()) + 2 * 3 * 2  # two levels of three convolutions with biases
    images = pictures(Level()).float()
    found, expected = both(network, images, Level()), both(plain, images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    slopes, others = gradients(network, found), gradients(plain, expected)
    assert slopes.keys() == others.keys()
    assert all(torch.equal(slopes[name], gradient) for name, gradient in others.items())


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("dtype", [None, *HALF])
def test_a_fade_begins_with_the_level_before(number: int, dtype: torch.dtype | None) -> None:
    network, level, before = tiny(dtype=dtype), Level(number, 0.0), Level(number + 1)
    images = pictures(level).float()
    content, style, colours = both(network, images, level)
    small = both(network, halve_box(images), before)
    assert torch.equal(content, small[0])
    assert torch.equal(style, small[1])
    assert torch.equal(colours, double_nearest(small[2]))


@pytest.mark.parametrize("number", [0, 1])
def test_a_fade_ends_with_the_plain_level(number: int) -> None:
    """One step before its end it is near, and at its end, where the blend is left out, it is the same."""
    network, images = tiny().double(), pictures(Level(number))
    plain = both(network, images, Level(number))
    for one, expected in zip(both(network, images, Level(number, 1 - 1e-9)), plain, strict=True):
        close(one, expected, 1e-6)
        assert not torch.equal(one, expected)
    for one, expected in zip(both(network, images, Level(number, 1.0)), plain, strict=True):
        assert torch.equal(one, expected)


def test_without_a_level_the_networks_own_is_taken() -> None:
    network, scales = tiny(), judge()
    assert network.level == scales.level == Level()
    images = pictures(Level()).float()
    for one, other in zip(both(network, images), both(network, images, Level()), strict=True):
        assert torch.equal(one, other)
    network.level, scales.level = Level(1, 0.5), Level(1)
    for one, other in zip(both(network, images), both(network, images, Level(1, 0.5)), strict=True):
        assert torch.equal(one, other)
    assert network.live_parameters() == network.live_parameters(Level(1, 0.5))
    assert (network.stride(), network.least_side()) == (network.stride(Level(1, 0.5)), network.least_side(Level(1)))
    assert len(scales(images)) == 2
    assert scales.live_parameters() == scales.live_parameters(Level(1))
    assert scales.least_side() == scales.least_side(Level(1)) < scales.least_side(Level())


# What lives.


@pytest.mark.parametrize("level", EVERY)
@pytest.mark.parametrize("recompute", [False, True])
def test_what_lives_gets_a_gradient_and_nothing_else_does(level: Level, recompute: bool) -> None:
    network = tiny(recompute=recompute)
    found = gradients(network, both(network, pictures(level).float(), level))
    live = network.live_parameters(level)
    # Biases before instance normalisations cancel out.
    cancelled = [name for name in live if name.startswith("content") and name.endswith("bias")]
    cancelled += [name for name in live if name.startswith("decoder.blocks") and name.endswith("bias")]
    assert set(live) - set(found) == set(cancelled)
    assert set(found) <= set(live)
    assert len(cancelled) == (DOWNS - level.number) + len(level.numbers) + 2 * 2 * BLOCKS


def test_at_full_resolution_all_of_a_network_without_levels_lives() -> None:
    for network in (tiny(0), judge(0)):
        assert network.live_parameters(Level()) == [name for name, _ in network.named_parameters()]


def test_the_coarser_ends_do_not_live_at_full_resolution() -> None:
    network = tiny()
    dead = {name for name, _ in network.named_parameters()} - set(network.live_parameters(Level()))
    ends = {name.rsplit(".", 1)[0].removesuffix(".convolution") for name in dead}
    assert ends == {
        f"{part}.{number}"
        for part in ("content_encoder.stems", "style_encoder.stems", "decoder.outputs")
        for number in (1, 2)
    }


# Recomputation, precision, memory format, statistics.


def kept_by_autograd(network: Generator, images: Tensor, level: Level) -> tuple[int, dict[str, Tensor]]:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = both(network, images, level)
    return sum(sizes.values()), gradients(network, outputs)


@pytest.mark.parametrize("level", EVERY)
def test_recomputation_gives_the_same_gradients_and_keeps_less(level: Level) -> None:
    images = pictures(level).float()
    plain, expected = kept_by_autograd(tiny(), images, level)
    sparing, found = kept_by_autograd(tiny(recompute=True), images, level)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert sparing < 0.7 * plain


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("level", [Level(0, 0.5), Level(1), Level(2)])
def test_half_precision_stays_near_and_gives_wide_results(dtype: torch.dtype, level: Level) -> None:
    """The image's own style is beyond what fp16 holds: nothing is normalised, and these weights are large."""
    narrow, wide, images, style = tiny(dtype=dtype), tiny().double(), pictures(level), normal(2, 3)
    content = narrow.encode_content(images.float(), level=level)
    expected = wide.encode_content(images, level=level)
    for one, exact in (
        (content, expected),
        (narrow.encode_style(0.1 * images.float(), level), wide.encode_style(0.1 * images, level)),
        (narrow.decode(content, style.float(), level=level), wide.decode(expected, style, level=level)),
    ):
        assert one.dtype == torch.float32
        close(one, exact, 0.03 if dtype == torch.float16 else 0.2)


def test_feature_maps_stay_in_channels_last() -> None:
    seen: list[Tensor] = []
    network = tiny().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    level = Level(0, 0.5)
    outputs = both(network, pictures(level).float().contiguous(memory_format=torch.channels_last), level)
    assert len(seen) == (2 + DOWNS + 2 * BLOCKS) + (2 + STYLE_DOWNS) + (2 * BLOCKS + DOWNS + 2)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (*seen, outputs[2]))


@pytest.mark.parametrize("level", [Level(0, 0.5), Level(1)])
def test_statistics_that_were_recorded_at_a_level_give_the_same(level: Level) -> None:
    network, images, recorded = tiny().double(), pictures(level), Statistics()
    expected = both(network, images, level)
    for statistics in (recorded, recorded.fixed()):
        content, style = network.encode(images, statistics, level)
        for one, other in zip((content, network.decode(content, style, statistics, level)), expected[::2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# The discriminator.


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_scale_judges_the_resolution_that_it_has_learned(number: int) -> None:
    network = judge().double()
    images = pictures(Level(number))
    maps = network(images, Level(number))
    expected = literal.scores(images, literal.weights_of(network), 3, 2, number, grows=True)
    assert len(maps) == 3 - number
    for one, exact in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-10, atol=1e-10)
    assert sum(one.shape[2] for one in maps) == (16 + 8 + 4 if number == 0 else 8 + 4 if number == 1 else 4)


@pytest.mark.parametrize("level", EVERY)
def test_the_finer_scales_do_not_live(level: Level) -> None:
    network = judge()
    maps = network(pictures(level).float(), level)
    assert list(gradients(network, tuple(maps))) == network.live_parameters(level)
    plain = network(pictures(level).float(), Level(level.number))
    assert all(torch.equal(one, other) for one, other in zip(maps, plain, strict=True))


def test_spectral_normalisation_is_iterated_at_every_scale() -> None:
    network = judge(spectral=True)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.level = Level(2)
    network.iterate_spectral_norm()
    assert not any(torch.equal(value, before[name]) for name, value in network.named_buffers() if value.numel() > 1)


# Sizes and refusals.


@pytest.mark.parametrize("level", EVERY)
def test_the_least_side_is_the_least_that_works(level: Level) -> None:
    network, scales = tiny(), judge()
    least, stride = network.least_side(level), network.stride(level)
    assert least == 16 >> level.number
    assert stride == 8 >> level.number
    images = both(network, torch.zeros(1, 3, least, least + stride), level)[2]
    assert images.shape == (1, 3, least, least + stride)
    with pytest.raises(ValueError, match=rf"h and w of at least {2 * stride} and multiples of {stride}: crop"):
        network.encode_content(torch.zeros(1, 3, least - stride, least), level=level)
    assert scales.least_side(level) == (16, 8, 4)[level.number]
    scales(torch.zeros(1, 3, scales.least_side(level), 20), level)
    with pytest.raises(ValueError, match=f"at least {scales.least_side(level)}"):
        scales(torch.zeros(1, 3, scales.least_side(level) - 1, 20), level)


def test_styles_are_encoded_of_any_size_and_in_a_fade_of_any_even_size() -> None:
    network = tiny()
    network.encode_style(torch.zeros(1, 3, 8, 19), Level(1))
    network.encode_style(torch.zeros(1, 3, 8, 22), Level(1, 0.5))
    with pytest.raises(ValueError, match="at least 8 and multiples of 2: crop or resize"):
        network.encode_style(torch.zeros(1, 3, 8, 19), Level(1, 0.5))
    small = Generator(base=4, most=16, content_downs=2, style_downs=2, blocks=1, levels=1)
    assert (small.least_side(Level(0, 0.5)), small.least_side(Level(1))) == (8, 4)
    with pytest.raises(ValueError, match="at least 8 and multiples of 2: crop or resize"):
        small.encode_style(torch.zeros(1, 3, 6, 8), Level(0, 0.5))


@pytest.mark.parametrize("level", [Level(2, 0.5), Level(3)])
def test_levels_that_a_network_does_not_have_are_refused(level: Level) -> None:
    network, scales = tiny(), judge()
    images = torch.zeros(1, 3, 16, 16)
    calls = (
        lambda: network.encode(images, level=level),
        lambda: network.encode_style(images, level),
        lambda: network.decode(torch.zeros(1, 16, 2, 2), torch.zeros(1, 3), level=level),
        lambda: network.least_side(level),
        lambda: network.live_parameters(level),
        lambda: scales(images, level),
        lambda: scales.live_parameters(level),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"level is Level\(.*needs level \d.*; the network has 0 to 2: ask for"):
            call()


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="levels is 2, and content_downs is 2; 0 to 1 is allowed: choose fewer"):
        Generator(content_downs=2, levels=2)
    with pytest.raises(ValueError, match="levels is 3, and style_downs is 3; 0 to 2 is allowed"):
        Generator(content_downs=4, style_downs=3, levels=3)
    with pytest.raises(ValueError, match="levels is -1, and content_downs is 2; 0 to 1 is allowed"):
        Generator(levels=-1)
    with pytest.raises(
        ValueError, match="levels is 3, and scales is 3; 0 to 2 is allowed: choose fewer levels or more"
    ):
        MultiScaleDiscriminator(scales=3, levels=3)
    with pytest.raises(ValueError, match="number is -1; 0, which is full resolution, or more is allowed"):
        Level(-1)
    with pytest.raises(ValueError, match=r"alpha is 1\.5; 0 to 1 is allowed"):
        Level(0, 1.5)


def test_at_the_start_of_a_fade_discriminators_see_what_they_have_learned_from() -> None:
    """Images of the level before, doubled: from the second scale on, nothing jumps."""
    torch.manual_seed(0)
    network = MultiScaleDiscriminator(scales=3, layers=2, base=4, most=8, levels=2).double()
    small = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    _, *faded = network(double_nearest(small), Level(0, 0.0))
    for one, expected in zip(faded, network(small, Level(1)), strict=True):
        close(one, expected, 1e-12)
    with pytest.raises(ValueError, match=r"with h and w of at least 16 and multiples of 4"):
        network(torch.zeros(1, 3, 18, 16, dtype=torch.float64), Level(0))
