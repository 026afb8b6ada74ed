"""The feature networks and distances that metrics need: opened once, and what cannot be had is said once."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need
from hires_gan.evaluation.crew import Crew
from hires_gan.evaluation.features import INCEPTION, Extractor, open_extractor
from hires_gan.evaluation.perceptual import LPIPS, open_lpips
from hires_gan.evaluation.weights import COMMAND, CONFIGURATION, state_checksum
from hires_gan.networks.published import OptionNames
from hires_gan.networks.vgg import VGG16Features, obtain_vgg

T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """Where networks and weights come from.

    Attributes:
        features: `inception`, or `package.module:factory`.
        weights: The file of the feature network's weights; None for torch hub's cache.
        vgg: That of VGG16, for path lengths and content preservation.
        alexnet: That of AlexNet, for the diversity of translations.
        download: Whether published weights may be fetched.
    """

    features: str = INCEPTION
    weights: Path | None = None
    vgg: Path | None = None
    alexnet: Path | None = None
    download: bool = False


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
        """Leave out what any of the processes cannot compute; all have to come here."""
        for told in crew.gathered(self.missing):
            self.missing = {**told, **self.missing}

    def reasons(self) -> dict[str, list[MetricName]]:
        """The metrics that cannot be computed, by the reason."""
        found: dict[str, list[MetricName]] = {}
        for name, reason in self.missing.items():
            found.setdefault(reason, []).append(name)
        return found


def open_instruments(
    metrics: Iterable[MetricName], sources: Sources, device: torch.device, names: SourceNames
) -> Instruments:
    """Open what metrics need, and nothing else.

    Weights that are looked for in torch hub's cache, or fetched, may be missing; those that are named have to be there.

    Raises:
        UsageError: If a feature network or a file that was named cannot be used.
        Failure: If a factory fails.
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
    found.extractor = attempt(
        of[Need.FEATURES] + of[Need.LOGITS],
        lambda: _extractor(sources, device, names),
        sources.features != INCEPTION or sources.weights is not None,
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


def _extractor(sources: Sources, device: torch.device, names: SourceNames) -> Extractor:
    download = sources.download and sources.features == INCEPTION  # else it is for the other networks
    return open_extractor(sources.features, sources.weights, download, device, names.weights, names.features)


def _require_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        raise UsageError("ms_ssim needs torchmetrics, which is not installed; install the extra `metrics`")


@functools.lru_cache(maxsize=8)  # they have no gradients, and are asked for in each evaluation
def weights_of(network: LPIPS | VGG16Features) -> str:
    """The sha256 of a network's weights, for the record."""
    return state_checksum(network.state_dict())
