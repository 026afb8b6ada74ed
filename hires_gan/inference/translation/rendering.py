"""From pictures and styles to pixels: the networks of two domains, and how large an image they compute at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hires_gan import checkpoint
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.images import Pixels, from_uint8, pixels_of, to_uint8
from hires_gan.inference.loading import build, find
from hires_gan.inference.rendering import usable
from hires_gan.inference.translation.pictures import Remarks, padded
from hires_gan.inference.translation.request import Tile, check_tile, choose_domains, tile_for
from hires_gan.networks.layers import cross_fade
from hires_gan.networks.munit import Generator
from hires_gan.networks.munit_tiles import Progress, decode_in_tiles, encode_content_in_tiles
from hires_gan.networks.translation import Translator
from hires_gan.ops.selection import explain
from hires_gan.progress import say
from hires_gan.randomness import Purpose, RandomSource


@dataclass(frozen=True)
class Content:
    """What a picture shows, apart from its style.

    Attributes:
        features: `[1, channels, h / stride, w / stride]` of the padded picture; on the CPU if it is computed in tiles.
        height: Of the picture itself, in pixels.
        width: Likewise.
        tile: Side of the tiles, in pixels; None for a whole image.
    """

    features: Tensor
    height: int
    width: int
    tile: int | None


class Translation:
    """The way from one domain to another; one image at a time, so that none depends on its neighbours.

    Args:
        network: In evaluation mode, without gradients.
        resolution: Side of the images that it has learnt with, in pixels.
        source: The domain of the pictures.
        target: The domain to which they are translated.
        tile: How large a part of an image is computed at once.
        device: Where to compute.

    Raises:
        UsageError: If the network cannot compute in such tiles.
    """

    def __init__(
        self, network: Translator, resolution: int, source: str, target: str, tile: Tile, device: torch.device
    ) -> None:
        self.encoder: Generator = network.generator(source)
        self.decoder: Generator = network.generator(target)
        self.tile = check_tile(tile, self.encoder.stride(), fading=self.encoder.level.fades)
        network.to(device)
        self.resolution, self.source, self.target = resolution, source, target
        self.device, self.dtype = device, next(network.parameters()).dtype

    def content_of(self, pixels: Pixels, name: str, remarks: Remarks, progress: Progress | None = None) -> Content:
        """The content of a picture.

        Args:
            pixels: uint8 `[h, w, 3]`, of any size.
            name: The picture's, for messages.
            remarks: Is told if the picture is padded or computed in tiles.
            progress: Is told how many of the passes over tiles are done.

        Raises:
            Failure: If there is not enough memory.
        """
        height, width = pixels.shape[:2]
        fitting = padded(pixels, self.encoder.stride(), self.encoder.least_side())
        if fitting.shape != pixels.shape:
            how = "padded by reflection to what the network takes, and cut to its own size again"
            remarks.note(name, how, f" ({width}x{height}, to {fitting.shape[1]}x{fitting.shape[0]})")
        tile = tile_for(self.tile, *fitting.shape[:2])
        images = self._images(fitting)
        with self._memory(fitting.shape[0], fitting.shape[1]):
            if tile is None:
                return Content(self.encoder.encode_content(images.to(self.device)), height, width, None)
            remarks.note(name, f"computed in tiles of {tile}x{tile} pixels", f" (it has {width}x{height})")
            features = encode_content_in_tiles(self.encoder, images, tile, self.device, progress)
            return Content(features, height, width, tile)

    def image_of(self, content: Content, style: Tensor, progress: Progress | None = None) -> Pixels:
        """A content in a style of the target domain: uint8 `[h, w, 3]`, as large as the picture was.

        Args:
            content: Of a picture.
            style: `[1, style_size]`.
            progress: As for `content_of`.

        Raises:
            Failure: If there is not enough memory.
        """
        with self._memory(content.height, content.width):
            if content.tile is None:
                images = self.decoder.decode(content.features, style)
            else:
                images = decode_in_tiles(self.decoder, content.features, style, content.tile, self.device, progress)
        return pixels_of(to_uint8(images[:, :, : content.height, : content.width]))

    def style_of(self, pixels: Pixels) -> Tensor:
        """The style of a picture of the target domain, uint8 `[h, w, 3]`: `[1, style_size]`.

        Raises:
            Failure: If there is not enough memory.
        """
        multiple = len(self.decoder.level.numbers)  # where two levels are blended, both must see the whole picture
        fitting = padded(pixels, multiple, self.decoder.least_side())
        with self._memory(fitting.shape[0], fitting.shape[1]):
            return self.decoder.encode_style(self._images(fitting).to(self.device))

    def drawn_styles(self, count: int, seed: int) -> list[Tensor]:
        """Styles from N(0, 1), `[1, style_size]` each; the one of a number is a function of the seed alone."""
        numbers = torch.arange(count)
        styles = RandomSource(seed).normal(Purpose.LATENT_SAMPLE, numbers, (self.decoder.style_size,))
        return [style[None].to(self.device, self.dtype) for style in styles]

    def _images(self, pixels: Pixels) -> Tensor:
        """uint8 `[h, w, 3]` -> `[1, 3, h, w]` in [-1, 1], on the CPU, as blurred as networks in a fade see images."""
        images = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None], self.dtype)
        return cross_fade(images, self.decoder.level.alpha)

    @contextmanager
    def _memory(self, height: int, width: int) -> Iterator[None]:
        """Where a device's memory may be too small for an image."""
        try:
            with torch.no_grad():
                yield
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise Failure(
                f"{self.device} has not enough memory for an image of {width}x{height} pixels; give --tile 512 (or "
                "less), or a smaller --size"
            ) from None


def open_translator(
    reference: str, target: str, source: str | None = None, tile: Tile = "auto", device: str | None = None
) -> Translation:
    """Load a checkpoint's networks, and say where they compute.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        target: The domain to which pictures are translated.
        source: Their own domain; None for the other one of two.
        tile: How large a part of an image is computed at once.
        device: Where to compute; by default a GPU if there is one.

    Raises:
        UsageError: If the checkpoint is not there or of another family, or a domain, the tile or the device cannot be
            used.
        Failure: If the checkpoint is damaged, or lacks a domain.
    """
    place = usable(device)
    saved = find(reference)
    inference = saved.state["inference"]
    if "domains" not in inference:
        family = saved.state["configuration"]["recipe"].get("name")
        raise UsageError(
            f"{reference} holds a {family} model, which makes images from nothing; use `hires-gan generate`, or give a "
            "checkpoint of munit"
        )
    domains = choose_domains(inference["domains"], target, source)
    translation = Translation(_built(saved), inference["resolution"], *domains, tile, place)
    say(explain(place))
    return translation


def _built(saved: checkpoint.Checkpoint) -> Translator:
    try:
        network = build(saved)
    except Failure as error:
        raise _on_domains(saved, error) from error
    assert isinstance(network, Translator)
    return network


def _on_domains(saved: checkpoint.Checkpoint, error: Failure) -> Failure:
    """The sentence on a checkpoint without the weights of a domain; what was wrong, if it is something else."""
    domains: list[str] = saved.state["inference"]["domains"]
    names = list(saved.tensors("generator.average"))
    held = [domain for domain in domains if any(name.startswith(f"generator_{domain}.") for name in names)]
    if len(held) == len(domains):
        return error
    missing = " and ".join(domain for domain in domains if domain not in held)
    found = f"only domain {' and '.join(held)}" if held else "none of its domains"
    return Failure(
        f"{saved.folder} holds {found}: the weights of domain {missing} are missing from generator.average.safetensors;"
        " give another checkpoint of the run, which is whole"
    )
