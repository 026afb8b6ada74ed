"""The feature networks and distances that metrics need: opened once, and what cannot be had is said once."""

from __future__ import annotations

import functools
import importlib.util
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need
from hires_gan.evaluation.crew import Crew, in_step
from hires_gan.evaluation.features import INCEPTION, PUBLISHED, VGG16, Extractor, open_extractor
from hires_gan.evaluation.perceptual import LPIPS, open_lpips
from hires_gan.evaluation.probe import are_close
from hires_gan.evaluation.weights import COMMAND, CONFIGURATION, state_checksum
from hires_gan.networks.published import OptionNames
from hires_gan.networks.vgg import VGG16Features, obtain_vgg
from hires_gan.progress import say

T = TypeVar("T")

_MOST_NAMED = 4
"""Processes that an error names of those that have the same."""


@dataclass(frozen=True)
class Sources:
    """Where networks and weights come from.

    Attributes:
        features: `inception`, `vgg16`, or `package.module:factory`.
        weights: The file of the feature network's weights; None for torch hub's cache, and for vgg16 for `vgg`.
        vgg: That of VGG16, for path lengths and content preservation.
        alexnet: That of AlexNet, for the diversity of translations.
        download: Whether published weights may be fetched.
    """

    features: str = INCEPTION
    weights: Path | None = None
    vgg: Path | None = None
    alexnet: Path | None = None
    download: bool = False

    @property
    def features_file(self) -> Path | None:
        """The file that is named for the feature network."""
        return self.vgg if self.features == VGG16 and self.weights is None else self.weights


@dataclass(frozen=True)
class SourceNames:
    """What the options for these are called."""

    features: str
    weights: OptionNames
    vgg: OptionNames
    alexnet: OptionNames


def _named(features: str, weights: OptionNames, vgg: str, alexnet: str) -> SourceNames:
    def of(option: str) -> OptionNames:
        return OptionNames(option, weights.download, weights.without)

    return SourceNames(features, weights, of(vgg), of(alexnet))


COMMAND_NAMES = _named("--features", COMMAND, "--vgg", "--alexnet")
"""On the command line."""
CONFIGURATION_NAMES = _named("evaluation.features", CONFIGURATION, "evaluation.vgg", "evaluation.alexnet")
"""In the configuration."""


@dataclass
class Instruments:
    """What was opened.

    Attributes:
        extractor: The feature network of FID and others.
        path: LPIPS for path lengths.
        diversity: LPIPS for the diversity of translations.
        content: VGG16 for content preservation.
        missing: The metrics that cannot be computed, and why: a sentence without a capital and a full stop.
    """

    extractor: Extractor | None = None
    path: LPIPS | None = None
    diversity: LPIPS | None = None
    content: VGG16Features | None = None
    missing: dict[MetricName, str] = field(default_factory=dict)

    def agree(self, crew: Crew) -> None:
        """Leave out what any of the processes cannot compute; all have to come here.

        Raises:
            UsageError: If they would measure with different networks, weights, or versions of torch.
        """
        for told in crew.gathered(self.missing):
            self.missing = {**told, **self.missing}
        if crew.size > 1:
            self._take_checksum_of_first(crew)
            require_same(crew, self._identities())

    def _take_checksum_of_first(self, crew: Crew) -> None:
        """Where weights cannot be seen, the checksum depends on rounding: what is close has that of the first."""
        own = self.extractor
        first = crew.gathered(None if own is None else [own.checksum, own.sketch])[0]
        if own is not None and own.sketch and first is not None and are_close(own.sketch, first[1]):
            own.checksum = first[0]

    def _identities(self) -> dict[str, tuple[str, str] | None]:
        own = self.extractor
        found: dict[str, tuple[str, str] | None] = {"version of torch": (torch.__version__, torch.__version__)}
        found["feature network"] = None
        if own is not None:
            identity = " ".join((own.name, own.version, own.checksum, own.resize))
            found["feature network"] = identity, f"{own.name} of {own.version} with sha256 {own.checksum[:12]}"
        for what, network in (("VGG16 of LPIPS", self.path), ("AlexNet of LPIPS", self.diversity)):
            found[what] = _identity(network)
        return found | {"VGG16 of content preservation": _identity(self.content)}

    def reasons(self) -> dict[str, list[MetricName]]:
        """The metrics that cannot be computed, by the reason."""
        found: dict[str, list[MetricName]] = {}
        for name, reason in self.missing.items():
            found.setdefault(reason, []).append(name)
        return found


def _identity(network: LPIPS | VGG16Features | None) -> tuple[str, str] | None:
    if network is None:
        return None
    checksum = weights_of(network)
    return checksum, f"one with sha256 {checksum[:12]}"


def require_same(crew: Crew, own: Mapping[str, tuple[str, str] | None]) -> None:
    """Make sure that all processes measure the same with the same; all have to come here.

    Args:
        crew: The processes.
        own: By what it is, what this one has: what has to be equal, and how people are told of it. None where it has
            none, which is no difference.

    Raises:
        UsageError: If they differ, saying which process on which host has what.
    """
    told = crew.gathered([socket.gethostname(), {what: one and list(one) for what, one in own.items()}])
    in_step(crew, lambda: _check_same(told))


def _check_same(told: Sequence[tuple[str, dict[str, Any]]]) -> None:
    for what in told[0][1]:
        holders: dict[str, list[str]] = {}
        shown: dict[str, str] = {}
        for rank, (host, found) in enumerate(told):
            if found.get(what) is not None:
                identity, shown_as = found[what]
                holders.setdefault(identity, []).append(f"process {rank} on {host}")
                shown.setdefault(identity, shown_as)
        if len(holders) > 1:
            parts = "; ".join(f"{_listed(who)}: {shown[identity]}" for identity, who in holders.items())
            raise UsageError(
                f"the processes do not have the same {what} ({parts}): start all of them with the same files, packages "
                "and arguments"
            )


def _listed(who: list[str]) -> str:
    more = len(who) - _MOST_NAMED
    return ", ".join(who[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def open_instruments(
    metrics: Iterable[MetricName],
    sources: Sources,
    device: torch.device,
    names: SourceNames,
    side: int | None = None,
) -> Instruments:
    """Open what metrics need, and nothing else.

    Weights that are looked for in torch hub's cache, or fetched, may be missing; those that are named have to be there.
    A feature network whose weights are random is said to be one.

    Args:
        metrics: Which numbers.
        sources: Where networks and weights come from.
        device: Where they shall compute.
        names: What the options are called.
        side: Of the images that are compared, in pixels: a feature network of one's own is tried on such. None where
            that is not known: then it is not tried.

    Raises:
        UsageError: If a feature network or a file that was named cannot be used, or a metric takes logits that the
            network does not give.
        Failure: If a factory fails, or a network gives other features for the same images.
    """
    found = Instruments()

    def attempt(wanted: list[MetricName], make: Callable[[], T], named: bool) -> T | None:
        if not wanted:
            return None
        try:
            return make()
        except Failure as error:
            if named:
                raise
            found.missing |= dict.fromkeys(wanted, str(error))
            return None

    of = {need: [name for name in metrics if METRICS[name].need == need] for need in Need}
    preserving: list[MetricName] = [name for name in of[Need.TRANSLATOR] if name == "content_preservation"]
    diverse = [name for name in of[Need.TRANSLATOR] if name not in preserving]
    vgg, alexnet, download = sources.vgg, sources.alexnet, sources.download
    _check_logits(of[Need.LOGITS], sources, names)
    found.extractor = attempt(
        of[Need.FEATURES] + of[Need.LOGITS],
        lambda: _extractor(sources, device, names, side),
        sources.features not in PUBLISHED or sources.features_file is not None,
    )
    found.path = attempt(
        of[Need.GENERATOR], lambda: open_lpips("vgg", vgg, download, names.vgg, device), vgg is not None
    )
    found.diversity = attempt(
        diverse, lambda: open_lpips("alex", alexnet, download, names.alexnet, device), alexnet is not None
    )
    found.content = attempt(preserving, lambda: obtain_vgg(vgg, download, names.vgg).to(device), vgg is not None)
    attempt(of[Need.IMAGES], _require_torchmetrics, False)
    return found


def _check_logits(metrics: list[MetricName], sources: Sources, names: SourceNames) -> None:
    """Say of a published network without logits what else would be said of it when all images are made."""
    if metrics and sources.features == VGG16:
        raise UsageError(
            f"{', '.join(metrics)} needs the logits of a classifier, and {names.features} is {VGG16}, of which "
            f"features alone are taken; take {INCEPTION}, or leave {', '.join(metrics)} out"
        )


def _extractor(sources: Sources, device: torch.device, names: SourceNames, side: int | None) -> Extractor:
    download = sources.download and sources.features in PUBLISHED  # else it is for the other networks
    options = names.vgg if sources.features == VGG16 and sources.weights is None else names.weights
    found = open_extractor(sources.features, sources.features_file, download, device, options, names.features, side)
    if found.random is not None:
        say(
            f"warning: the weights of {found.name} are random ones, {found.random} among them: its factory makes "
            f"others with every seed, and numbers from them mean little; name a file with {names.weights.weights}"
        )
    return found


def _require_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise UsageError("ms_ssim needs torchmetrics, which is not installed; install the extra `metrics`")


@functools.lru_cache(maxsize=8)  # they have no gradients, and are asked for in each evaluation
def weights_of(network: LPIPS | VGG16Features) -> str:
    """The sha256 of a network's weights, for the record."""
    return state_checksum(network.state_dict())
