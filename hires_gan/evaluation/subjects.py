"""What is judged: a generator, or one direction of a translation, at one moment of its training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.evaluation.diversity import DiversityProtocol, lpips_diversity
from hires_gan.evaluation.path_length import PATHS, PathLength
from hires_gan.evaluation.perceptual import PairDistance
from hires_gan.evaluation.reals import Reals
from hires_gan.inference.images import enlarge, finite, from_uint8, to_uint8
from hires_gan.networks import progressive, stylegan
from hires_gan.networks.growth import Growth
from hires_gan.networks.layers import cross_fade, halve_box
from hires_gan.networks.munit import Level
from hires_gan.networks.translation import Translator
from hires_gan.randomness import Purpose, RandomSource
from hires_gan.recipes.protocol import Generates, LabelDistribution, Translates

PIXELS_AT_ONCE = 4 * 1024 * 1024
"""That many pass through a network at once where nothing else is said."""
_MOST_AT_ONCE = 64
_MOST_NAMED = 10  # classes whose counts stand in a record themselves


class Draws(Generates, Protocol):
    """A family that makes images from latents, and what these follow from."""

    @property
    def random(self) -> RandomSource:
        """Of the run's seed."""

    @property
    def labels(self) -> LabelDistribution | None:
        """How often each class occurs; None for an unconditional model."""


class Grows(Translates, Protocol):
    """A family that translates, whose networks may still have to grow."""

    @property
    def random(self) -> RandomSource:
        """Of the run's seed."""

    def level(self, nimg: int) -> Level:
        """How far they have grown."""


@dataclass(frozen=True)
class Shown:
    """Some images of a subject.

    Attributes:
        images: uint8 `[n, 3, r, r]`, at the full resolution, on the device.
        inputs: What was translated, likewise, on any device; None for images from latents.
        finite: Which of the images were finite before they became bytes: bool `[n]`, on the device; None for all of
            them.
    """

    images: Tensor
    inputs: Tensor | None = None
    finite: Tensor | None = None


class Subject(Protocol):
    """What makes the images that are compared with reals."""

    @property
    def seeds(self) -> dict[str, int]:
        """Of what its images are drawn from."""

    def chunks(self, wanted: Sequence[range], stopped: Asked) -> Iterator[Shown]:
        """The images of some numbers, for each range.

        Raises:
            Stopped: If `stopped` became true.
        """


class Generated:
    """Images from fixed latents.

    Args:
        recipe: Whose images they are.
        network: The averaged one.
        nimg: Images shown in its training; it says how far the network has grown.
        resolution: To which smaller images are enlarged: the full one.
    """

    def __init__(self, recipe: Draws, network: nn.Module, nimg: int, resolution: int) -> None:
        self.recipe, self.network, self.nimg, self.resolution = recipe, network, nimg, resolution
        self.device = next(network.parameters()).device

    @property
    def seeds(self) -> dict[str, int]:
        """That of the latents."""
        return {"latents": self.recipe.random.seed}

    def chunks(self, wanted: Sequence[range], stopped: Asked) -> Iterator[Shown]:
        """The images of some numbers, for each range.

        Raises:
            Stopped: If `stopped` became true.
        """
        for chunk in wanted:
            yield self.shown(torch.arange(chunk.start, chunk.stop), stopped)

    def at(self, numbers: Tensor, stopped: Asked = never) -> Tensor:
        """The images of some latents, as `shown` has them: uint8 `[n, 3, r, r]` on the device."""
        return self.shown(numbers, stopped).images

    def shown(self, numbers: Tensor, stopped: Asked = never) -> Shown:
        """The images of some latents.

        Args:
            numbers: int64 `[n]`, of the latents.
            stopped: Asked before each few of them.

        Raises:
            Stopped: If `stopped` became true.
        """
        parts = torch.split(numbers.to(self.device), chunk_at(self.resolution))
        return _joined([self._made(part, stopped) for part in parts])

    def _made(self, numbers: Tensor, stopped: Asked) -> Shown:
        if stopped():
            raise Stopped
        with torch.no_grad():
            images = self.recipe.sample(self.network, numbers, self.nimg)
        return _in_bytes(images, self.resolution)

    @property
    def parameters(self) -> dict[str, str]:
        """What decides its images beside the network, for records: how often each class is drawn, where there are any.

        Classes are drawn as they occur in the data, which no other part of a record of images alone knows.
        """
        labels = self.recipe.labels
        return {} if labels is None else {"class_frequencies": frequencies(labels)}

    def classes(self, numbers: Tensor) -> Tensor | None:
        """The classes of these images: int64 `[n]`; None where there are none."""
        labels, random = self.recipe.labels, self.recipe.random
        return labels.draw(random.uniform(Purpose.LABEL_SAMPLE, numbers)) if labels else None

    def paths(self, metric: str, distance: PairDistance) -> PathLength:
        """What measures the paths of one of `path_length.PATHS`, at the growth that the network has by now."""
        space, sampling, crop = PATHS[metric]
        return PathLength(self.network, distance, space, sampling, self.recipe.labels, crop, self._growth())

    def _growth(self) -> Growth | None:
        if not isinstance(self.network, progressive.Generator | stylegan.Generator):
            return None
        now = self.recipe.inference(self.nimg)
        return Growth(now["resolution"], now["alpha"])


class Translated:
    """Translations of the first images of a domain, each in a fixed style of its own.

    Args:
        recipe: Whose translations they are.
        network: The averaged one.
        nimg: Images shown in its training.
        source: The domain of the images.
        target: That to which they are translated.
        reals: The images of the source.
    """

    def __init__(self, recipe: Grows, network: nn.Module, nimg: int, source: str, target: str, reals: Reals) -> None:
        self.recipe, self.network, self.nimg = recipe, network, nimg
        self.source, self.target, self.reals = source, target, reals
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @property
    def direction(self) -> str:
        """Its name: `a_to_b`."""
        return f"{self.source}_to_{self.target}"

    def parameters(self, replaced: int) -> dict[str, str | int]:
        """What was translated, for records.

        Args:
            replaced: So many of the inputs are corrupt, and others were translated in their places.
        """
        data = self.reals.record()
        inputs = {"inputs": f"{data.column} of {data.digest}", "direction": self.direction}
        return inputs | ({"inputs_replaced": replaced} if replaced else {})

    @property
    def seeds(self) -> dict[str, int]:
        """That of the styles."""
        return {"styles": self.recipe.random.seed}

    def chunks(self, wanted: Sequence[range], stopped: Asked) -> Iterator[Shown]:
        """The translations of the images of some numbers, for each range, and these images.

        Raises:
            Stopped: If `stopped` became true.
        """
        for chunk, inputs in zip(wanted, self.reals.chunks(wanted, stopped), strict=True):
            made = self.shown(inputs, torch.arange(chunk.start, chunk.stop), stopped)
            yield replace(made, inputs=inputs)

    def of(self, images: Tensor, samples: Tensor, stopped: Asked = never) -> Tensor:
        """Translations, as `shown` has them: uint8 `[n, 3, r, r]` on the device."""
        return self.shown(images, samples, stopped).images

    def shown(self, images: Tensor, samples: Tensor, stopped: Asked = never) -> Shown:
        """Translations, enlarged to the full resolution, without their inputs.

        Args:
            images: uint8 `[n, 3, r, r]` of the source, at the full resolution.
            samples: int64 `[n]`: which of the fixed styles each gets.
            stopped: Asked before each few of them.

        Raises:
            Stopped: If `stopped` became true.
        """
        size = chunk_at(images.shape[-1])
        parts = zip(torch.split(images, size), torch.split(samples, size), strict=True)
        return _joined([self._made(part, numbers, stopped) for part, numbers in parts])

    def _made(self, images: Tensor, samples: Tensor, stopped: Asked) -> Shown:
        if stopped():
            raise Stopped
        with torch.no_grad():
            x = from_uint8(images.to(self.device), self.dtype)
            fakes = self.recipe.translate(self.network, x, samples.to(self.device), self.nimg, self.source, self.target)
        return _in_bytes(fakes, images.shape[-1])

    def diversity(self, images: Tensor, samples: Tensor, distance: PairDistance, protocol: DiversityProtocol) -> Tensor:
        """How different the translations of each image are in several styles: float64 `[n]`; see `diversity`.

        Args:
            images: uint8 `[n, 3, r, r]` of the source, at the full resolution.
            samples: int64 `[n]`, their numbers.
            distance: LPIPS.
            protocol: Which translations are compared.
        """
        network, level = self.network, self.recipe.level(self.nimg)
        assert isinstance(network, Translator)

        def translate(inputs: Tensor, styles: Tensor) -> Tensor:
            return network.translated(inputs, styles, self.source, self.target, level)

        size = network.generator(self.target).style_size
        return lpips_diversity(translate, self._at(images, level), samples, size, distance, protocol)

    def _at(self, images: Tensor, level: Level) -> Tensor:
        """Images as the networks see them at a level."""
        x = from_uint8(images.to(self.device), self.dtype)
        for _ in range(level.number):
            x = halve_box(x)
        return cross_fade(x, level.alpha)


def frequencies(labels: LabelDistribution) -> str:
    """How often each class is drawn, in short: equal texts are equal shares.

    Returns:
        For up to ten classes their counts, reduced: `1 : 3`; for more a digest of these, and how many there are.
    """
    divisor = math.gcd(*labels.counts) or 1
    text = " : ".join(str(count // divisor) for count in labels.counts)
    if len(labels.counts) <= _MOST_NAMED:
        return text
    return f"{len(labels.counts)} classes, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _in_bytes(images: Tensor, resolution: int) -> Shown:
    """Images as a network gives them, as bytes and enlarged; and which of them were finite, while that can be seen."""
    return Shown(enlarge(to_uint8(images), resolution), finite=finite(images))


def _joined(parts: Sequence[Shown]) -> Shown:
    """What was made in parts."""
    masks = [part.finite for part in parts if part.finite is not None]
    return Shown(torch.cat([part.images for part in parts]), finite=torch.cat(masks) if masks else None)


def chunk_at(resolution: int) -> int:
    """How many images are made at once."""
    return max(1, min(_MOST_AT_ONCE, PIXELS_AT_ONCE // resolution**2))
