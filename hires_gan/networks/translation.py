"""One network for each domain, as one module: what a player of a translation learns with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hires_gan.networks.layers import cross_fade
from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator


class Translator(nn.Module):
    """The generators of all domains; an image is translated by the content encoder of its own and the target's decoder.

    Args:
        generators: By the domain's name.
    """

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        super().__init__()
        self.domains = tuple(generators)
        for name, generator in generators.items():
            self.add_module(_of_domain("generator", name), generator)

    def generator(self, domain: str) -> Generator:
        """The one of a domain.

        Raises:
            ValueError: If there is no such domain.
        """
        return _found(self, "generator", domain, self.domains)  # type: ignore[return-value]

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
        generator = self.generator(source)
        content = generator.encode_content(cross_fade(images, generator.level.alpha))
        return self.generator(target).decode(content, style)

    @property
    def level(self) -> Level:
        """How far the networks have grown."""
        return self.generator(self.domains[0]).level

    @level.setter
    def level(self, level: Level) -> None:
        for domain in self.domains:
            self.generator(domain).level = level

    def live_parameters(self, level: Level) -> list[str]:
        """The names of the parameters that what is made at a level depends on."""
        return _live(self, "generator", self.domains, level)


class Discriminators(nn.Module):
    """The discriminators of all domains.

    Args:
        discriminators: By the domain's name.
    """

    def __init__(self, discriminators: Mapping[str, MultiScaleDiscriminator]) -> None:
        super().__init__()
        self.domains = tuple(discriminators)
        for name, discriminator in discriminators.items():
            self.add_module(_of_domain("discriminator", name), discriminator)

    def discriminator(self, domain: str) -> MultiScaleDiscriminator:
        """The one of a domain.

        Raises:
            ValueError: If there is no such domain.
        """
        return _found(self, "discriminator", domain, self.domains)  # type: ignore[return-value]

    def live_parameters(self, level: Level) -> list[str]:
        """The names of the parameters on which scores at a level depend."""
        return _live(self, "discriminator", self.domains, level)


def _of_domain(kind: str, domain: str) -> str:
    """The name of a submodule; with the prefix, a domain may be called `train` or `type`."""
    return f"{kind}_{domain}"


def _found(module: nn.Module, kind: str, domain: str, domains: tuple[str, ...]) -> nn.Module:
    if domain not in domains:
        raise ValueError(f"domain is {domain!r}; this network has {', '.join(domains)}")
    return module.get_submodule(_of_domain(kind, domain))


def _live(module: nn.Module, kind: str, domains: tuple[str, ...], level: Level) -> list[str]:
    return [
        f"{_of_domain(kind, domain)}.{name}"
        for domain in domains
        for name in _found(module, kind, domain, domains).live_parameters(level)  # type: ignore[operator]
    ]
