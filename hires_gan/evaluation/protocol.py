"""What goes with every number: how it was taken, so that it can be taken again, and set against others or not."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from hires_gan import __version__
from hires_gan.data.domains import digest_of
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need, caution
from hires_gan.evaluation.coverage import NEIGHBOURS
from hires_gan.evaluation.features import Extractor
from hires_gan.evaluation.fidelity import KID_KERNEL, KID_SUBSETS, NEIGHBOURHOOD, SCORE_SPLITS, SEED, kid_subset_size
from hires_gan.settings import Settings

FORMAT = 1
"""Of the record."""
QUANTISATION = "uint8: clamp(round(127.5 x + 127.5), 0, 255)"
"""How generated images in [-1, 1] become bytes before anything looks at them."""
COVARIANCE = "divided by N - 1"
"""In FID; N gives an FID that is smaller by a part of about 1 / N."""


class DataRecord(Settings):
    """The reals.

    Attributes:
        digest: Of the shards' manifest: equal digests are equal samples in equal order.
        name: What the configuration or the command called them; people tell splits apart by it.
        domain: Of a translation, the target; `image` for plain images.
        source: Of a translation, the domain that was translated; None for generated images.
        column: Where in the shards the images lie: `image`, or `image.64` for a stored level.
        filter: That resized them when the shards were made.
        order_seed: The reals are the first ones of this order.
        decoder: And its version: `torchvision 0.26.0`; by the name alone, numbers are told apart.
        replaced: So many of the reals are corrupt, and other images stand in their places; 0 in older records.
    """

    digest: str
    name: str
    domain: str = "image"
    source: str | None = None
    column: str = "image"
    filter: str
    order_seed: int
    decoder: str
    replaced: int = Field(default=0, ge=0)


class FeaturesRecord(Settings):
    """The feature network.

    Attributes:
        name: `inception`, `vgg16`, or `package.module:factory`.
        version: The package that brings it, and its version.
        checksum: sha256 of its weights, of weights and source, or of what stands for them (`own_network`).
        resize: How it changes the size of images.
        random: A weight that the factory draws at random; None where none is known.
    """

    name: str
    version: str
    checksum: str
    resize: str
    random: str | None = None


class CheckpointRecord(Settings):
    """What was judged.

    Attributes:
        nimg: Images shown in its training.
        sha256: Of the file of the averaged generator's weights; None while it is in training and not written.
        precision: In which the network computed what was judged: `bf16`; None in older records.
        trained_on: Digest of the data that it was trained on, as `Domains.digest` has it; None where it is not known.
    """

    nimg: int = Field(ge=0)
    sha256: str | None = None
    precision: str | None = None
    trained_on: str | None = None


class Record(Settings):
    """One number, and how it was taken.

    Attributes:
        format: Of this record.
        metric: As `catalogue.MetricName` has it; `swd/64` for a level is left to the metric's details.
        value: The number.
        deviation: Over the parts that it is a mean of; None for a number that is no mean, or whose parts are the same.
        better: Which way is better.
        scale: The metric's unit, or the values that it can take.
        reals: Size of the set; None where no reals are looked at.
        fakes: Likewise; of path lengths paths, of the diversity of translations inputs, each translated several times.
        resolution: Side in pixels at which images were compared.
        data: The reals; None where none are looked at.
        features: The feature network; None for metrics without.
        quantisation: How generated images became bytes; None where they did not.
        parameters: Of the metric: subsets, neighbours, a truncation, and what else decides it.
        seeds: Of what is drawn at random; two draws may be compared.
        caution: What few images do to it; None where there are enough.
        checkpoint: What was judged.
        device: What computed: `cpu`, or the GPU's name, and whether float32 could round to TF32 in the model.
        versions: Of libraries.
        date: When, in UTC: 2026-01-31T12:00:00Z.
    """

    format: int = FORMAT
    metric: MetricName
    value: float
    deviation: float | None = None
    better: Literal["lower", "higher"]
    scale: str
    reals: int | None = Field(default=None, ge=1)
    fakes: int | None = Field(default=None, ge=1)
    resolution: int = Field(ge=1)
    data: DataRecord | None = None
    features: FeaturesRecord | None = None
    quantisation: str | None = QUANTISATION
    parameters: dict[str, str | int | float | None] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    caution: str | None = None
    checkpoint: CheckpointRecord
    device: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    date: str

    def sentence(self) -> str:
        """The number and how it was taken, in one line for people."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:.4g}"
        number = f"{METRICS[self.metric].label} {self.value:.6g}{deviation} ({self.better} is better)"
        parts = [number, self._sets(), self._trained_on()]
        if self.features is not None:
            parts.append(f"features of {self.features.name} {self.features.checksum[:8]}")
        if self.data is not None and self.data.filter:
            parts.append(f"shards resized with {self.data.filter}")
        parts += [f"{what}, and others stand in their places" for what in self._corrupt()]
        if self.caution is not None:
            parts.append(f"caution: {self.caution}")
        return "; ".join(part for part in parts if part)

    def _corrupt(self) -> list[str]:
        reals, inputs = 0 if self.data is None else self.data.replaced, self.parameters.get("inputs_replaced")
        return [f"{count} of the {what} are corrupt" for count, what in ((reals, "reals"), (inputs, "inputs")) if count]

    def _trained_on(self) -> str:
        """Whether these data are those of the training; nothing where that is not known."""
        trained = self.checkpoint.trained_on
        if trained is None or self.data is None:
            return ""
        return f"on {'the data' if trained in self._digests(self.data) else 'other data than'} it was trained on"

    def _digests(self, data: DataRecord) -> list[str]:
        """What the digest of the training's data would be if they were these."""
        target, source = (_of_manifest(text) for text in (data.digest, str(self.parameters.get("inputs"))))
        if data.source is None:
            return [target]
        both = ((data.domain, target), (data.source, source))
        # A set of pairs is one; of two sets either may have stood first.
        return [target] * (source == target) + [digest_of(named) for named in (both, both[::-1])]

    def _sets(self) -> str:
        where = f"at {self.resolution}x{self.resolution}"
        at = f", at {self.checkpoint.nimg / 1000:g} kimg"
        fakes = "" if self.fakes is None else f"{self.fakes:,} fakes "
        if self.data is None or self.reals is None:
            return f"{fakes}{where}{at}"
        domain = "" if self.data.domain == "image" else f", {self.data.domain}"
        direction = "" if self.data.source is None else f" from {self.data.source}"
        return f"{fakes}against {self.reals:,} reals of {self.data.name}{domain}{direction} {where}{at}"


def make_record(
    name: MetricName,
    value: float,
    *,
    resolution: int,
    checkpoint: CheckpointRecord,
    deviation: float | None = None,
    reals: int | None = None,
    fakes: int | None = None,
    data: DataRecord | None = None,
    extractor: Extractor | None = None,
    parameters: Mapping[str, str | int | float | None] | None = None,
    seeds: Mapping[str, int] | None = None,
    quantisation: str | None = QUANTISATION,
    device: torch.device | None = None,
) -> Record:
    """The record of a number that was just taken: what the metric itself decides is filled in.

    Args:
        name: The metric.
        value: The number, finite.
        resolution: At which images were compared.
        checkpoint: What was judged.
        deviation: Over the parts that it is a mean of.
        reals: How many there were.
        fakes: How many there were.
        data: The reals.
        extractor: What the features are from.
        parameters: Beside those of `standard_parameters`.
        seeds: Of what was drawn at random.
        quantisation: How they became bytes.
        device: What computed.

    Raises:
        NotFinite: If the value is not finite.
    """
    if not abs(value) < float("inf"):
        raise NotFinite(f"{name} is {value}, and no such number is recorded; look at the images that it was taken from")
    metric = METRICS[name]
    return Record(
        metric=name,
        value=value,
        deviation=deviation,
        better=metric.better,
        scale=metric.scale,
        reals=reals,
        fakes=fakes,
        resolution=resolution,
        data=data,
        features=None if extractor is None else features_record(extractor),
        quantisation=quantisation,
        parameters={**standard_parameters(name, reals, fakes), **(parameters or {})},
        seeds=dict(seeds or {}),
        caution=_caution(name, reals, fakes),
        checkpoint=checkpoint,
        device=None if device is None else device_named(device),
        versions=library_versions(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _caution(name: MetricName, reals: int | None, fakes: int | None) -> str | None:
    counts = [count for count in (reals, fakes) if count is not None]
    return caution(name, min(counts)) if counts else None


def standard_parameters(name: MetricName, reals: int | None, fakes: int | None) -> dict[str, str | int | float | None]:
    """What decides a metric of features beside these: subsets, neighbours, seeds; nothing for the other metrics."""
    if METRICS[name].need not in (Need.FEATURES, Need.LOGITS):
        return {}
    size = kid_subset_size(reals or 1, fakes or 1)
    found: dict[str, dict[str, str | int | float | None]] = {
        "fid": {"covariance": COVARIANCE},
        "kid": {"subsets": KID_SUBSETS, "subset_size": size, "seed": SEED, **_kernel()},
        "inception_score": {"splits": SCORE_SPLITS, "seed": SEED},
        "precision": {"neighbours": NEIGHBOURHOOD},
        "recall": {"neighbours": NEIGHBOURHOOD},
        "density": {"neighbours": NEIGHBOURS},
        "coverage": {"neighbours": NEIGHBOURS},
    }
    return found[name]


def _kernel() -> dict[str, int | None]:
    return {key.removeprefix("kid_kernel_poly_"): value for key, value in KID_KERNEL.items()}


def _of_manifest(text: str) -> str:
    """The digest of a manifest alone: without the column before it, and without the order in which it is streamed."""
    return text.rpartition(" of ")[2].partition(" in ")[0]


def features_record(extractor: Extractor) -> FeaturesRecord:
    """What is recorded of a feature network."""
    return FeaturesRecord(
        name=extractor.name,
        version=extractor.version,
        checksum=extractor.checksum,
        resize=extractor.resize,
        random=extractor.random,
    )


def checkpoint_record(state: Mapping[str, Any]) -> CheckpointRecord:
    """What is recorded of a checkpoint that is read to be judged: then it computes in float32, or in float64.

    Args:
        state: What its `state.json` holds.
    """
    data = state.get("data")
    return CheckpointRecord(
        nimg=state["nimg"],
        sha256=state["files"].get("generator.average.safetensors"),
        precision="fp64" if state["configuration"]["precision"] == "fp64" else "fp32",
        trained_on=data if isinstance(data, str) else None,
    )


def device_named(device: torch.device) -> str:
    """What a device is called in a record."""
    if device.type != "cuda":
        return device.type
    rounding = ", TF32" if torch.backends.cuda.matmul.allow_tf32 else ""
    return f"{torch.cuda.get_device_name(device)}{rounding}"


def library_versions() -> dict[str, str]:
    """Versions of what computes metrics; a library that is not installed is left out."""
    found = {"hires_gan": __version__}
    for name in ("torch", "torchvision", "torch-fidelity", "torchmetrics", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
