"""What a run shows: one shard set, plain or of pairs, or an unpaired one for each domain of a translation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from hires_gan.data.manifest import IMAGE, pictures_of
from hires_gan.data.opening import open_shards
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError


@dataclass(frozen=True)
class Source:
    """A shard set, and what each of its samples shows: one image of every domain.

    Attributes:
        shards: The set.
        domains: What its images are called, at least one name.
        columns: For each of them, the column of the set in which its images lie.
        location: How the configuration names the set.
    """

    shards: ShardSet
    domains: tuple[str, ...]
    columns: tuple[str, ...]
    location: str

    def stored(self, resolution: int) -> tuple[tuple[str, ...], int]:
        """Where the smallest stored copies are that are large enough for a resolution.

        Returns:
            Their columns, one for each domain, and their side in pixels, the same for all: a copy that not every domain
            has is left alone.
        """
        there = set(self.shards.manifest.columns)
        levels = [int(name.partition(".")[2] or 0) for name in there]
        for level in sorted(level for level in levels if level >= resolution):
            columns = tuple(f"{column}.{level}" for column in self.columns)
            if there.issuperset(columns):
                return columns, level
        return self.columns, self.shards.resolution


@dataclass(frozen=True)
class Domains:
    """The images of a run by domain.

    Attributes:
        sources: One set for plain images or for pairs; unpaired, one for each domain.
    """

    sources: tuple[Source, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The domains, in the order in which a batch holds them; `image` alone for plain images."""
        return tuple(name for source in self.sources for name in source.domains)

    @property
    def is_plain(self) -> bool:
        """Whether there are just images: one set, no domains."""
        return self.names == (IMAGE,)

    def only(self, name: str) -> Domains:
        """One of the domains alone.

        Args:
            name: One of `names`.
        """
        for source in self.sources:
            for domain, column in zip(source.domains, source.columns, strict=True):
                if domain == name:
                    return Domains((Source(source.shards, (name,), (column,), source.location),))
        raise ValueError(f"domain is {name!r}; there are {', '.join(self.names)}")

    @property
    def location(self) -> str:
        """Where all of them are, for people."""
        return ", ".join(source.location for source in self.sources)

    def digest(self) -> str:
        """The sha256 that identifies the data: that of the manifest; of several, with the names of their domains."""
        digests = [source.shards.manifest.digest() for source in self.sources]
        if len(digests) == 1:
            return digests[0]
        return digest_of([(*source.domains, digest) for source, digest in zip(self.sources, digests, strict=True)])

    def check_resolution(self, resolution: int) -> None:
        """Make sure that every domain has images large enough for the recipe.

        Raises:
            UsageError: Naming the first domain that has not.
        """
        for source in self.sources:
            found = source.shards.resolution
            if found < resolution:
                raise UsageError(
                    f"recipe.resolution is {resolution}, but the images{self.of(source)} in {source.location} have "
                    f"{found}; prepare them again at --resolution {resolution}, or lower it"
                )

    def of(self, source: Source) -> str:
        """The domains of a source, for people: ` of domain b`; nothing for plain images."""
        if self.is_plain:
            return ""
        return f" of domain{'s' if len(source.domains) > 1 else ''} {' and '.join(source.domains)}"


def in_one_set(shards: ShardSet, location: str | None = None) -> Domains:
    """A single set: plain images, or pairs, whose domains are the columns that its manifest lists.

    Args:
        shards: The set.
        location: How the configuration names it; by default its folder.
    """
    names = pictures_of(shards.manifest.columns)
    return Domains((Source(shards, names, names, location or str(shards.folder)),))


def open_data(settings: DataSettings) -> Domains:
    """Open what the `data` block names.

    Raises:
        UsageError: There is no such set, or a domain's is not one of plain images, or that of another domain, too.
        Failure: A set cannot be read.
    """
    if settings.domains is None:
        assert settings.shards is not None
        shards = open_shards(settings.shards, settings.stream)
        return in_one_set(shards, _shown(shards, settings.shards))
    found: dict[str, str] = {}
    sources: list[Source] = []
    for name, location in settings.domains.items():
        try:
            shards = open_shards(location, settings.stream)
        except Failure as error:
            kind = UsageError if isinstance(error, UsageError) else Failure
            raise kind(_of_domain(name, str(error))) from error
        twin = found.setdefault(shards.manifest.digest(), name)
        if twin != name:
            raise UsageError(
                f"data.domains.{twin} and data.domains.{name} hold the same images ({_of(sources, twin).location} and "
                f"{_shown(shards, location)}): each domain needs a set of its own; pairs of images are one set, made "
                f"with `hires-gan prepare --pair`, for data.shards"
            )
        sources.append(_unpaired(name, shards, _shown(shards, location)))
    return Domains(tuple(sources))


def digest_of(named: Sequence[tuple[str, ...]]) -> str:
    """The sha256 of several sets, in their order: of each its domains' names and its manifest's digest."""
    return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()


def _of_domain(name: str, problem: str) -> str:
    """What is wrong with a domain's set, where it is said as of a set that stands alone."""
    key = f"data.domains.{name}"
    renamed = problem.replace("data.shards", key)
    return renamed if key in renamed else f"{key}: {problem}"


def _of(sources: Sequence[Source], domain: str) -> Source:
    return next(source for source in sources if domain in source.domains)


def _shown(shards: ShardSet, location: str) -> str:
    """How a set is named to people: a pipe's command may hold what nobody else should read."""
    return str(shards.folder) if shards.streamed else location


def _unpaired(name: str, shards: ShardSet, location: str) -> Source:
    domains = in_one_set(shards)
    if not domains.is_plain:
        raise UsageError(
            f"data.domains.{name} is {location}, which has the domains {', '.join(domains.names)} itself: such a set "
            f"is given whole, data.shards={location}; a domain of its own is a set of plain images"
        )
    return Source(shards, (name,), (IMAGE,), location)
