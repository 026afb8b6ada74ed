"""MUNIT over tiles against MUNIT over whole images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_style_layers import close, normal, randomise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_layers import ConvBlock, Statistics, merged, moments
from hires_gan.networks.munit_tiles import decode_in_tiles, encode_content_in_tiles

SIZES: dict[str, Any] = {"style_size": 3, "base": 4, "most": 16, "style_downs": 3, "blocks": 2, "features": 5}


def tiny(content_downs: int = 2, **more: Any) -> Generator:
    torch.manual_seed(0)
    network = Generator(content_downs=content_downs, **{**SIZES, **more})
    randomise(network)
    return network


def pictures(height: int, width: int, n: int = 1) -> Tensor:
    """Brighter from the left to the right, and more contrasty from above to below, so that no tile is as the whole."""
    down, right = torch.linspace(0.1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return (0.5 * normal(n, 3, height, width, seed=3) * down + 0.7 * right).tanh()


def whole(network: Generator, images: Tensor, style: Tensor, level: Level | None = None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        content = network.encode_content(images, level=level)
        return content, network.decode(content, style, level=level)


def tiled(
    network: Generator, images: Tensor, style: Tensor, tile: int, level: Level | None = None
) -> tuple[Tensor, Tensor]:
    content = encode_content_in_tiles(network, images, tile, "cpu", level=level)
    return content, decode_in_tiles(network, content, style, tile, "cpu", level=level)


# The whole.


@pytest.mark.parametrize(
    ("downs", "height", "width", "tile"),
    [
        (2, 64, 64, 16),  # tiles that fit
        (2, 52, 76, 24),  # odd sizes of content, and narrow last tiles
        (2, 36, 60, 4),  # tiles of one pixel of content, within more of what is around them
        (2, 8, 100, 8),  # a strip that one row of tiles covers
        (2, 100, 12, 32),
        (2, 40, 24, 256),  # tiles larger than the image
        (1, 22, 38, 6),
        (3, 72, 104, 32),
        (3, 40, 56, 8),
        (4, 80, 112, 32),
        (4, 32, 32, 16),
    ],
)
def test_tiles_give_what_the_whole_gives(downs: int, height: int, width: int, tile: int) -> None:
    network, images, style = tiny(downs).double(), pictures(height, width), normal(1, 3, seed=4)
    for found, expected in zip(tiled(network, images, style, tile), whole(network, images, style), strict=True):
        close(found, expected, 1e-10)


@pytest.mark.parametrize("downs", [2, 3])
def test_in_single_precision_no_grey_level_differs(downs: int) -> None:
    network, images, style = tiny(downs, base=16, most=32), pictures(160, 224).float(), normal(1, 3, seed=4).float()
    for found, expected in zip(tiled(network, images, style, 48), whole(network, images, style), strict=True):
        assert found.dtype == torch.float32
        close(found, expected, 1e-4)


def test_tiles_by_themselves_would_show_seams() -> None:
    """What the comparison above has to tell apart: the same tiles and surroundings, each with its own statistics."""
    network, images, style = tiny(1, blocks=1).double(), pictures(64, 128), normal(1, 3, seed=4)
    expected = whole(network, images, style)[1]
    alone = whole(network, images[:, :, :, :96], style)[1][:, :, :, :64]
    assert float((alone - expected[:, :, :, :64]).abs().max()) > 20 / 127.5
    found = tiled(network, images, style, 64)[1]
    assert float((found - expected).abs().max()) < 1e-9


def test_a_halo_that_is_a_pixel_too_small_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from hires_gan.networks import munit_tiles

    network, images, style = tiny(3).double(), pictures(96, 96), normal(1, 3, seed=4)
    content, expected = whole(network, images, style)
    reach = munit_tiles._Segment.reach
    monkeypatch.setattr(munit_tiles._Segment, "reach", lambda segment: reach(segment) - 1)
    assert float((encode_content_in_tiles(network, images, 32, "cpu") - content).abs().max()) > 1e-6
    assert float((decode_in_tiles(network, content, style, 32, "cpu") - expected).abs().max()) > 1e-6


def test_samples_keep_statistics_of_their_own() -> None:
    network, images, style = tiny().double(), pictures(40, 56, n=2), normal(2, 3, seed=4)
    for found, expected in zip(tiled(network, images, style, 16), whole(network, images, style), strict=True):
        close(found, expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_whole_does(dtype: torch.dtype) -> None:
    network, images, style = tiny(dtype=dtype), pictures(48, 64).float(), normal(1, 3, seed=4).float()
    content, colours = tiled(network, images, style, 16)
    expected = whole(network, images, style)
    assert content.dtype == colours.dtype == torch.float32
    close(content, expected[0], 0.01 if dtype == torch.float16 else 0.06)
    close(decode_in_tiles(network, expected[0], style, 16, "cpu"), expected[1], 0.02 if dtype == torch.float16 else 0.2)


@pytest.mark.parametrize("number", [1, 2])
def test_a_coarser_level_is_computed_in_tiles(number: int) -> None:
    network, style = tiny(3, levels=2, style_downs=4).double(), normal(1, 3, seed=4)
    images, level = pictures(72 >> number, 104 >> number), Level(number)
    expected = whole(network, images, style, level)
    for found, exact in zip(tiled(network, images, style, 8, level), expected, strict=True):
        close(found, exact, 1e-10)
    network.level = level
    assert torch.equal(tiled(network, images, style, 8)[1], tiled(network, images, style, 8, level)[1])


def test_no_graph_is_kept_and_progress_is_told() -> None:
    network, told = tiny(), []
    images, style = pictures(32, 48).float(), normal(1, 3, seed=4).float()
    content = encode_content_in_tiles(network, images, 16, "cpu", progress=lambda *pair: told.append(pair))
    passes = 6 * (4 + 2 * 3)  # over six tiles, with three normalisations, and two in each block
    assert told == [(done, passes) for done in range(1, passes + 1)]
    told.clear()
    colours = decode_in_tiles(network, content, style, 16, "cpu", progress=lambda *pair: told.append(pair))
    passes = 6 * (2 * 3 + 3)
    assert told == [(done, passes) for done in range(1, passes + 1)]
    assert not content.requires_grad
    assert not colours.requires_grad


# Memory.


class Shapes(TorchDispatchMode):
    """Of all tensors that operators give."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self.found.add(tuple(one.shape))
        return result


def larger_than(most: int, shapes: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {shape for shape in shapes if torch.Size(shape).numel() > most}


def test_nothing_but_images_and_contents_is_as_large_as_the_whole() -> None:
    network, images, style = tiny(), pictures(320, 384).float(), normal(1, 3, seed=4).float()
    with Shapes() as shapes:
        tiled(network, images, style, 32)
    side = 32 + 2 * 3 * 4 + 2 * 3  # a tile, what is around it, and what is reflected
    allowed = {(1, 3, 320, 384), (1, 16, 80, 96)}
    assert larger_than(16 * side * side, shapes.found) <= allowed
    with Shapes() as shapes:
        whole(network, images, style)
    assert (1, 4, 320, 384) in larger_than(16 * side * side, shapes.found) - allowed


# Moments that are merged.


def test_merged_moments_are_those_of_all_pixels() -> None:
    x = 100 + normal(2, 3, 6, 10)
    parts = [
        moments(x[:, :, rows, columns]) for rows in (slice(0, 1), slice(1, 6)) for columns in (slice(7), slice(7, 10))
    ]
    found = parts[0]
    for part in parts[1:]:
        found = merged(found, part)
    expected = moments(x)
    assert found.pixels == expected.pixels == 60
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-11, atol=0)


def test_windows_are_merged_for_one_layer_and_the_others_get_what_was_recorded() -> None:
    first, second = ConvBlock(2, 2, 1, norm="instance"), ConvBlock(2, 2, 1, norm="instance")
    x, statistics = normal(1, 2, 4, 6).float(), Statistics()
    statistics.at(first, 2 * x)
    for columns in (slice(0, 4), slice(4, 6)):
        given = statistics.merging(second, slice(1, 3), columns)
        given.at(second, x)
        torch.testing.assert_close(given.at(first, x).mean, moments(2 * x).mean)
    found, expected = statistics.fixed().at(second, x), moments(x[:, :, 1:3])
    assert found.pixels == 12
    assert found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)
    with pytest.raises(ValueError, match="statistics hold no values for a layer"):
        Statistics().merging(second, slice(1), slice(1)).at(first, x)


# Refusals.


def test_impossible_arguments_are_refused() -> None:
    network = tiny(3, levels=1)
    images, content, style = torch.zeros(1, 3, 32, 32), torch.zeros(1, 16, 4, 4), torch.zeros(1, 3)
    for tile in (0, -8, 12):
        with pytest.raises(ValueError, match=f"tile is {tile}; 8, .* and multiples are allowed"):
            encode_content_in_tiles(network, images, tile, "cpu")
        with pytest.raises(ValueError, match=f"tile is {tile}; 8, .* and multiples are allowed"):
            decode_in_tiles(network, content, style, tile, "cpu")
    with pytest.raises(ValueError, match=r"images are \[1, 3, 36, 32\]; .* multiples of 8"):
        encode_content_in_tiles(network, torch.zeros(1, 3, 36, 32), 16, "cpu")
    with pytest.raises(ValueError, match=r"content is \[1, 8, 4, 4\]"):
        decode_in_tiles(network, torch.zeros(1, 8, 4, 4), style, 16, "cpu")
    network.level = Level(0, 0.5)
    for call in (
        lambda: encode_content_in_tiles(network, images, 16, "cpu"),
        lambda: decode_in_tiles(network, content, style, 16, "cpu"),
    ):
        with pytest.raises(ValueError, match=r"level is Level\(number=0, alpha=0.5\), within a fade"):
            call()
