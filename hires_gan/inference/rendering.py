"""From seeds and styles to pixels: a trained generator, and how its images shall look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hires_gan.errors import UsageError
from hires_gan.inference.images import to_uint8
from hires_gan.inference.loading import build, find_generator
from hires_gan.inference.request import Given, Look
from hires_gan.inference.styles_file import Styles, StylesFile
from hires_gan.networks import stylegan
from hires_gan.networks.styles import ConstantNoise, StyleGenerator
from hires_gan.ops.selection import explain
from hires_gan.progress import say
from hires_gan.randomness import Purpose, RandomSource


@dataclass(frozen=True)
class Source:
    """What one image is made of.

    Attributes:
        name: What its file is called, without the ending.
        number: Chooses its noise, if that is random: the seed, or how many styles came before.
        latents: `[1, latent_size]`; None if it is known by its styles only.
        styles: None for a generator without styles.
    """

    name: str
    number: int
    latents: Tensor | None
    styles: Styles | None


class Renderer:
    """A generator, and how its images look; one image at a time, so that none depends on its neighbours' number.

    Args:
        network: In evaluation mode, without gradients.
        look: What the options say.
        device: Where to compute.

    Raises:
        UsageError: If the generator cannot do what the options ask for.
    """

    def __init__(self, network: nn.Module, look: Look, device: torch.device) -> None:
        check_label(network, look.label)
        _check_look(network, look)
        self.network = network.to(device)
        self.look, self.device = look, device
        self.dtype = next(network.parameters()).dtype
        self.labels = None if look.label is None else torch.tensor([look.label], device=device)

    @property
    def styled(self) -> StyleGenerator | None:
        """The generator, if it has a space of styles."""
        return self.network if isinstance(self.network, StyleGenerator) else None

    @property
    def layers(self) -> int:
        """How many layers take a style, as far as the generator has grown; 0 if it has no styles."""
        return 0 if self.styled is None else live_layers(self.styled)

    def open_files(self, given: Given, option: str = "--styles") -> list[StylesFile]:
        """The files of styles, checked; none is read yet.

        Raises:
            UsageError: If one does not fit the generator.
        """
        if not given.files:
            return []
        network = self.styled
        if network is None:
            raise UsageError(f"{option} is given, but Progressive GAN has no styles; leave it out")
        shapes = noise_shapes(network)
        return [StylesFile(Path(path), network.num_ws, network.w_size, shapes) for path in given.files]

    def sources(self, given: Given, files: list[StylesFile]) -> Iterator[Source]:
        """What is asked for: the rows of the files, then the seeds, each read or computed when its turn comes."""
        number = 0
        for file in files:
            for styles in file.rows(self.device, self.dtype):
                yield Source(f"styles{number:04d}", number, None, styles)
                number += 1
        for seed in given.seeds:
            yield self.from_latents(f"seed{seed:010d}", seed, self.latents(seed))

    def latents(self, seed: int) -> Tensor:
        """`[1, latent_size]`, a function of the seed alone."""
        size: int = self.network.latent_size  # type: ignore[assignment]
        latents = RandomSource(seed).normal(Purpose.LATENT_SAMPLE, torch.zeros(1, dtype=torch.int64), (size,))
        return latents.to(self.device, self.dtype)

    def from_latents(self, name: str, number: int, latents: Tensor) -> Source:
        """The image of latents, with their styles if the generator has any."""
        network = self.styled
        with torch.no_grad():
            styles = None if network is None else Styles(network.styles(latents, self.labels))
        return Source(name, number, latents, styles)

    def render(self, source: Source) -> Tensor:
        """The image: uint8 `[1, 3, r, r]` on the CPU."""
        network = self.styled
        with torch.no_grad():
            if network is None or source.styles is None:
                images: Tensor = self.network(source.latents, self.labels)
            else:
                ws = network.truncate(source.styles.ws, self.look.truncation, self.look.cutoff)
                images = network.synthesis(ws, self._noise(network, source))
        return to_uint8(images).cpu()

    def constant_noise(self) -> list[Tensor]:
        """The noise of all layers that is part of the generator, `[1, 1, h, w]` each."""
        assert self.styled is not None
        return constant_noise(self.styled)

    def _noise(self, network: StyleGenerator, source: Source) -> list[Tensor] | None:
        """The layers' noise; None for the generator's constant one."""
        if self.look.noise == "constant":
            own = source.styles.noise if source.styles is not None else None
            return None if own is None else list(own)
        shapes = noise_shapes(network)
        if self.look.noise == "none":
            return [torch.zeros(1, 1, h, w, device=self.device, dtype=self.dtype) for h, w in shapes]
        total = sum(h * w for h, w in shapes)
        flat = RandomSource(source.number).normal(Purpose.NOISE_GENERATOR, torch.zeros(1, dtype=torch.int64), (total,))
        split: list[Tensor] = network.synthesis.split_noise(flat.to(self.device, self.dtype))  # type: ignore[operator]
        return split


def open_renderer(reference: str, look: Look, device: str | None, purpose: str = "to generate images") -> Renderer:
    """Load a checkpoint's generator and say where it computes.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        look: How images shall look.
        device: Where to compute; by default a GPU if there is one.
        purpose: What for, in words.

    Raises:
        UsageError: If the checkpoint is not there or of no generator, or the device or an option cannot be used.
        Failure: If the checkpoint is damaged.
    """
    place = usable(device)
    renderer = Renderer(build(find_generator(reference, purpose)), look, place)
    say(explain(place))
    return renderer


def usable(device: str | None) -> torch.device:
    """The device of that name, by default a GPU if there is one.

    Raises:
        UsageError: If torch cannot compute there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        place = torch.device(device or ("cuda" if gpus else "cpu"))
        torch.zeros(1, device=place).cpu()  # a name may be known and the device absent
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        found = f"one of cpu, cuda, cuda:0 to cuda:{gpus - 1}" if gpus else "cpu, since there is no GPU"
        raise UsageError(f"--device is {device}, which cannot be used on this machine; give {found}") from error
    return place


def noise_shapes(network: StyleGenerator) -> list[tuple[int, int]]:
    """Height and width of each layer's noise."""
    shapes: list[tuple[int, int]] = network.synthesis.noise_shapes  # type: ignore[assignment]
    return shapes


def constant_noise(network: StyleGenerator) -> list[Tensor]:
    """The noise of all layers that is part of the generator, `[1, 1, h, w]` each."""
    noise = network.synthesis.noise
    assert isinstance(noise, ConstantNoise)
    return noise.tensors()


def live_layers(network: StyleGenerator) -> int:
    """How many layers take a style and have a part in the image; fewer than all while a generator grows."""
    return network.live_ws(network.growth) if isinstance(network, stylegan.Generator) else network.num_ws


def check_label(network: nn.Module, label: int | None) -> None:
    """Refuse a class that the generator lacks, and none where it needs one."""
    classes: int = network.classes  # type: ignore[assignment]
    if label is None and classes:
        raise UsageError(
            f"the generator is conditional: choose one of its {classes} classes with --class 0..{classes - 1}"
        )
    if label is not None and not classes:
        raise UsageError("--class is given, but the generator is unconditional; leave it out")
    if label is not None and not 0 <= label < classes:
        raise UsageError(f"--class is {label}; the generator has the classes 0 to {classes - 1}")


def _check_look(network: nn.Module, look: Look) -> None:
    if isinstance(network, StyleGenerator):
        layers = live_layers(network)
        if look.cutoff is not None and not 0 <= look.cutoff <= layers:
            raise UsageError(f"--cutoff is {look.cutoff}; the generator has {layers} layers: 0 to {layers} are allowed")
        return
    if look.truncation != 1:
        raise UsageError(
            f"--truncation is {look.truncation}, but Progressive GAN has no space of styles in which to truncate; "
            f"leave it out"
        )
    if look.noise != "constant":
        raise UsageError(f"--noise is {look.noise}, but Progressive GAN's layers take no noise; leave it out")
