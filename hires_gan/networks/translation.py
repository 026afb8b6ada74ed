"""One network for each domain, as one module: what a player of a translation learns with."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Generic, TypeVar

from torch import Tensor, nn

from hires_gan.networks.layers import cross_fade
from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator

N = TypeVar("N", Generator, MultiScaleDiscriminator)


class _ByDomain(nn.Module, Generic[N]):
    """Networks of one kind, by domain; the kind before its name lets a domain be called `train` or `type`."""

    def __init__(self, kind: str, networks: Mapping[str, N]) -> None:
        super().__init__()
        self._kind = kind
        self.domains = tuple(networks)
        for domain, network in networks.items():
            self.add_module(f"{kind}_{domain}", network)

    def _of(self, domain: str) -> N:
        if domain not in self.domains:
            raise ValueError(f"domain is {domain!r}; this network has {', '.join(self.domains)}")
        return self.get_submodule(f"{self._kind}_{domain}")  # type: ignore[return-value]  # what was added

    def live_parameters(self, level: Level) -> list[str]:
        """The names of the parameters on which what is computed at a level depends."""
        return [
            f"{self._kind}_{domain}.{name}"
            for domain in self.domains
            for name in self._of(domain).live_parameters(level)
        ]


class Translator(_ByDomain[Generator]):
    """The generators of all domains; an image is translated by the content encoder of its own and the target's decoder.

    Args:
        generators: By the domain's name.
    """

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        super().__init__("generator", generators)

    def generator(self, domain: str) -> Generator:
        """The one of a domain.

        Raises:
            ValueError: If there is no such domain.
        """
        return self._of(domain)

    @property
    def directions(self) -> list[tuple[str, str]]:
        """All pairs of a source and another domain, the target."""
        return list(permutations(self.domains, 2))

    def forward(self, images: Tensor, style: Tensor, source: str, target: str) -> Tensor:
        """Translate images.

        Args:
            images: `[n, 3, h, w]` in [-1, 1] of domain `source`; sides as `Generator.encode` takes them.
            style: `[n, style_size]` from N(0, 1), or encoded from images of domain `target`.
            source: The images' domain.
            target: The domain to which they are translated; may be the same.

        Returns:
            `[n, 3, h, w]` in [-1, 1], in the dtype of the images.

        Raises:
            ValueError: If there is no such domain, or a shape is another.
        """
        return self.translated(cross_fade(images, self.level.alpha), style, source, target, self.level)

    def translated(self, images: Tensor, style: Tensor, source: str, target: str, level: Level) -> Tensor:
        """As `forward`, of images at a level, which in a fade are blended with their halves already."""
        content = self.generator(source).encode_content(images, level=level)
        return self.generator(target).decode(content, style, level=level)

    @property
    def level(self) -> Level:
        """How far the networks have grown."""
        return self.generator(self.domains[0]).level

    @level.setter
    def level(self, level: Level) -> None:
        for domain in self.domains:
            self.generator(domain).level = level


class Discriminators(_ByDomain[MultiScaleDiscriminator]):
    """The discriminators of all domains.

    Args:
        discriminators: By the domain's name.
    """

    def __init__(self, discriminators: Mapping[str, MultiScaleDiscriminator]) -> None:
        super().__init__("discriminator", discriminators)

    def discriminator(self, domain: str) -> MultiScaleDiscriminator:
        """The one of a domain.

        Raises:
            ValueError: If there is no such domain.
        """
        return self._of(domain)
