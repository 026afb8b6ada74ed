"""MUNIT's content encoder and decoder over images that are larger than a device's memory, tile by tile, without seams.

A tile that is normalised by its own statistics does not fit its neighbours. Here every normalisation uses those of the
whole image, which are collected layer by layer: the result is that of the whole image, but for the order of sums.

The networks are run in segments: an encoder's convolutions down to the content, each residual block, and a decoder's
doublings. Between segments, a map at the content's resolution lies on the CPU; within one, only tiles are on the
device, each with as many pixels around it as its result depends on. What has to lie in memory as a whole is the image,
of three channels, and two such maps.

The first normalisation of a segment is measured in a pass over all tiles; the second one in another pass, which uses
the first one's statistics; and so on, until a last pass writes the result. Of k normalisations, the first is computed
k + 1 times and the last one twice: with two halvings, encoder and decoder compute about two and a half times as much as
over a whole image, with three about three times, and what lies around the tiles besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hires_gan.networks.munit import ContentEncoder, Decoder, Generator, check_content, check_images
from hires_gan.networks.munit_layers import Conv2d, ConvBlock, Level, ResidualBlock, Statistics, doubled

Progress = Callable[[int, int], None]
"""Is told how many passes over a tile are done, and how many there are."""


@torch.no_grad()
def encode_content_in_tiles(
    generator: Generator,
    images: Tensor,
    tile: int,
    device: torch.device | str,
    progress: Progress | None = None,
    level: Level | None = None,
) -> Tensor:
    """What `generator.encode_content` gives, with no more than a tile on the device.

    Args:
        generator: On `device`.
        images: `[n, 3, h, w]` in [-1, 1] on the CPU, float32 or float64, with sides as `encode` takes them.
        tile: Side of a tile in pixels of the image, a multiple of `generator.stride`, any; at borders tiles may be
            smaller. Some pixels around it (with the published network 8) are computed as well.
        device: Where tiles are computed.
        progress: Is called behind each pass over a tile.
        level: At which the images are, with an alpha of 1; None for `generator.level`.

    Returns:
        The content, on the CPU, in the dtype of the images.

    Raises:
        ValueError: If the tile is no such multiple, the images have another shape, or the level is a fade.
    """
    level = _plain(generator, level)
    stride = generator.stride(level)
    check_images(images, stride, 2 * stride, level)
    encoder = generator.content_encoder
    plan = _Plan(tile, stride, device, encoder.dtype or images.dtype, progress)
    return plan.run(list(_of_encoder(encoder, stride, level)), images).to(images.dtype)


@torch.no_grad()
def decode_in_tiles(
    generator: Generator,
    content: Tensor,
    style: Tensor,
    tile: int,
    device: torch.device | str,
    progress: Progress | None = None,
    level: Level | None = None,
) -> Tensor:
    """What `generator.decode` gives, with no more than a tile on the device.

    Args:
        generator: On `device`.
        content: `[n, content_channels, h, w]` on the CPU, float32 or float64; h and w at least 2.
        style: `[n, style_size]`, in the same dtype, on any device.
        tile: As for `encode_content_in_tiles`; with the published network 12 pixels around it are computed as well.
        device: Where tiles are computed.
        progress: Is called behind each pass over a tile.
        level: At which the images are to be, with an alpha of 1; None for `generator.level`.

    Returns:
        `[n, 3, h * stride, w * stride]` in [-1, 1], on the CPU, in the dtype of the content.

    Raises:
        ValueError: If the tile is no such multiple, content or style have another shape, or the level is a fade.
    """
    level = _plain(generator, level)
    check_content(content, style, generator.content_channels, generator.style_size)
    decoder = generator.decoder
    plan = _Plan(tile, generator.stride(level), device, decoder.dtype or content.dtype, progress)
    return plan.run(list(_of_decoder(decoder, style.to(device), content.dtype, level)), content)


def _plain(generator: Generator, level: Level | None) -> Level:
    level = level or generator.level
    if level.fades:
        raise ValueError(
            f"level is {level}, within a fade, in which two resolutions are blended; tiles are computed with an alpha "
            "of 1: take weights from behind the fade, or whole images"
        )
    return level


class _Layer(NamedTuple):
    """A normalised convolution, and what it is given."""

    block: ConvBlock
    doubles: bool = False
    affine: Tensor | None = None

    def __call__(self, x: Tensor, statistics: Statistics) -> Tensor:
        y: Tensor = self.block(doubled(x) if self.doubles else x, statistics, self.affine)
        return y


@dataclass(frozen=True)
class _Segment:
    """Layers, one behind the other, between two maps that lie on the CPU.

    Attributes:
        layers: All that is normalised.
        scale: Pixels of the input by pixel of content.
        finish: The input and what is behind the layers to the output.
        output: A convolution in `finish`, at the resolution of the last layer.
    """

    layers: tuple[_Layer, ...]
    scale: int
    finish: Callable[[Tensor, Tensor], Tensor]
    output: Conv2d | None = None

    def scales(self) -> list[int]:
        """Behind each layer, the pixels by pixel of content."""
        found, scale = [], self.scale
        for layer in self.layers:
            scale = scale * (2 if layer.doubles else 1) // layer.block.convolution.stride
            found.append(scale)
        return found

    def reach(self) -> int:
        """How many pixels of content around a tile its result depends on, rounded up."""
        scales = self.scales()
        reaches = [
            Fraction(_reach(layer.block.convolution), scale * layer.block.convolution.stride)
            for layer, scale in zip(self.layers, scales, strict=True)
        ]
        if self.output is not None:
            reaches.append(Fraction(_reach(self.output), scales[-1]))
        return math.ceil(sum(reaches))


def _reach(convolution: Conv2d) -> int:
    """How many pixels of its input, beyond the `stride` x `stride` ones in its place, an output depends on."""
    before = convolution.padding
    return max(before, convolution.weight.shape[2] - before - convolution.stride)


def _of_encoder(encoder: ContentEncoder, stride: int, level: Level) -> Iterator[_Segment]:
    blocks = (encoder.stems[level.number], *encoder.downs[level.number :])
    yield _Segment(tuple(_Layer(_typed(block)) for block in blocks), stride, lambda x, y: y)
    for block in encoder.blocks:
        yield _of_residual(block)


def _of_decoder(decoder: Decoder, style: Tensor, dtype: torch.dtype, level: Level) -> Iterator[_Segment]:
    for block, affine in zip(decoder.blocks, decoder.affines(style), strict=True):
        yield _of_residual(block, affine)
    ups = decoder.ups[: len(decoder.ups) - level.number]
    output = decoder.outputs[level.number]
    assert isinstance(output, Conv2d)
    layers = tuple(_Layer(_typed(up), doubles=True) for up in ups)
    yield _Segment(layers, 1, lambda x, y: decoder.colours(y, level.number, dtype), output)


def _of_residual(block: nn.Module, affine: Tensor | None = None) -> _Segment:
    assert isinstance(block, ResidualBlock)
    of_first, of_second = (None, None) if affine is None else affine.unbind(1)
    layers = (_Layer(block.first, affine=of_first), _Layer(block.second, affine=of_second))
    return _Segment(layers, 1, lambda x, y: x + y)


def _typed(block: nn.Module) -> ConvBlock:
    assert isinstance(block, ConvBlock)
    return block


class _Span(NamedTuple):
    """A tile along one side, in pixels of content: [start, stop) is its own, [first, last) is computed."""

    start: int
    stop: int
    first: int
    last: int

    def computed(self, scale: int) -> slice:
        """What is computed, of a whole map."""
        return slice(self.first * scale, self.last * scale)

    def own(self, scale: int) -> slice:
        """What is the tile's own, of a whole map."""
        return slice(self.start * scale, self.stop * scale)

    def within(self, scale: int) -> slice:
        """What is the tile's own, of what is computed."""
        return slice((self.start - self.first) * scale, (self.stop - self.first) * scale)


class _Tile(NamedTuple):
    rows: _Span
    columns: _Span


def _tiles(size: tuple[int, int], tile: int, reach: int) -> list[_Tile]:
    """Tiles that cover a map, each with `reach` pixels around it, as far as there are any.

    At the map's own borders layers reflect what they would in the whole; elsewhere what they reflect is wrong, and does
    not reach the tile.
    """
    rows, columns = (
        [
            _Span(start, min(start + tile, side), max(start - reach, 0), min(start + tile + reach, side))
            for start in range(0, side, tile)
        ]
        for side in size
    )
    return [_Tile(row, column) for row in rows for column in columns]


class _Plan:
    """How segments are run.

    Args:
        tile: Side of a tile in pixels of the image.
        stride: Pixels of the image by pixel of content.
        device: Where tiles are computed.
        dtype: In which they are.
        progress: Is called behind each pass over a tile.
    """

    def __init__(
        self, tile: int, stride: int, device: torch.device | str, dtype: torch.dtype, progress: Progress | None
    ) -> None:
        if tile < 1 or tile % stride:
            raise ValueError(f"tile is {tile}; {stride}, 2^content_downs at full resolution, and multiples are allowed")
        self.tile, self.device, self.dtype, self.progress = tile // stride, device, dtype, progress
        self.done = self.passes = 0

    def run(self, segments: list[_Segment], x: Tensor) -> Tensor:
        """A map on the CPU through all segments."""
        size = (x.shape[2] // segments[0].scale, x.shape[3] // segments[0].scale)
        tiles = [_tiles(size, self.tile, segment.reach()) for segment in segments]
        self.passes = sum((len(s.layers) + 1) * len(own) for s, own in zip(segments, tiles, strict=True))
        for segment, own in zip(segments, tiles, strict=True):
            x = self._output(segment, x, own, self._statistics(segment, x, own).fixed())
        return x

    def _statistics(self, segment: _Segment, x: Tensor, tiles: list[_Tile]) -> Statistics:
        """Those of the whole map, layer by layer."""
        statistics = Statistics()
        for number, scale in enumerate(segment.scales()):
            block = segment.layers[number].block
            for tile in tiles:
                merging = statistics.merging(block, tile.rows.within(scale), tile.columns.within(scale))
                y = self._cut(x, tile, segment.scale)
                for layer in segment.layers[: number + 1]:
                    y = layer(y, merging)
                self._tell()
        return statistics

    def _output(self, segment: _Segment, x: Tensor, tiles: list[_Tile], statistics: Statistics) -> Tensor:
        """The whole map behind a segment, on the CPU."""
        scale = segment.scales()[-1]
        whole = torch.empty(0)
        for tile in tiles:
            y = taken = self._cut(x, tile, segment.scale)
            for layer in segment.layers:
                y = layer(y, statistics)
            y = segment.finish(taken, y)[:, :, tile.rows.within(scale), tile.columns.within(scale)]
            if not whole.numel():
                sides = [side // segment.scale * scale for side in x.shape[2:]]
                whole = torch.empty(*y.shape[:2], *sides, dtype=y.dtype)
            whole[:, :, tile.rows.own(scale), tile.columns.own(scale)] = y.cpu()
            self._tell()
        return whole

    def _cut(self, x: Tensor, tile: _Tile, scale: int) -> Tensor:
        return x[:, :, tile.rows.computed(scale), tile.columns.computed(scale)].to(self.device, self.dtype)

    def _tell(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.passes)
