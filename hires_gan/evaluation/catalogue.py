"""The metrics that there are: what each of them says, which way is better, how many images it takes, what it needs.

No number means anything without the protocol that it was taken with: `protocol` keeps that beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from hires_gan.errors import UsageError

MetricName = Literal[
    "swd",
    "fid",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "ms_ssim",
    "ppl_z_full",
    "ppl_z_end",
    "ppl_w_full",
    "ppl_w_end",
    "ppl_z_full_cropped",
    "ppl_z_end_cropped",
    "ppl_w_full_cropped",
    "ppl_w_end_cropped",
    "lpips_diversity_munit",
    "lpips_diversity_stargan2",
    "content_preservation",
]
"""What metrics are called on the command line, in the configuration and in MLflow."""


class Need(StrEnum):
    """What a metric is computed from."""

    PATCHES = "patches"
    """Images of both sets, and no weights: small patches of them."""
    FEATURES = "features"
    """What a feature network says of reals and of fakes."""
    LOGITS = "logits"
    """What a classifier says of fakes."""
    IMAGES = "images"
    """Images alone, and no weights: pairs of generated ones."""
    GENERATOR = "generator"
    """A generator that makes images from latents, and LPIPS."""
    TRANSLATOR = "translator"
    """A model that translates images into several styles, and a feature network of its own."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: In full, as `MetricName` has it.
        label: For people.
        scale: Its unit, or the values that it can take.
        better: Which way is better.
        need: What it is computed from.
        minimum: With fewer images it cannot be computed.
        least: With fewer images it can, but means little or something else; `bias` says what.
        bias: What few images do to it: a clause.
        library: The module of torch-fidelity that computes it; empty: this package does.
    """

    name: MetricName
    label: str
    scale: str
    better: Literal["lower", "higher"]
    need: Need
    minimum: int
    least: int
    bias: str
    library: str = ""


_RADII = "where the sets lie is known but roughly from so few, and values change with the number: compare equal ones"
_FEW_PAIRS = "the mean over few images varies from one set to the next"


def _path_length(name: MetricName, label: str) -> Metric:
    return Metric(
        name=name,
        label=label,
        scale="LPIPS / epsilon^2, from 0",
        better="lower",
        need=Need.GENERATOR,
        minimum=1,
        least=10_000,
        bias="a few long paths decide the mean, which varies from one set to the next",
    )


_ALL = (
    Metric(
        name="swd",
        label="Sliced Wasserstein distance",
        scale="x 1,000, from 0",
        better="lower",
        need=Need.PATCHES,
        minimum=1,
        least=1024,
        bias="the fewer the images, the larger it is, even between two halves of one set",
    ),
    Metric(
        name="fid",
        label="Fréchet inception distance",
        scale="from 0",
        better="lower",
        need=Need.FEATURES,
        minimum=2,
        least=10_000,
        bias="the fewer the images, the larger it is: below some 10,000 it is biased upwards; KID is not",
        library="metric_fid",
    ),
    Metric(
        name="kid",
        label="Kernel inception distance",
        scale="about 0 for equal sets, can be below it",
        better="lower",
        need=Need.FEATURES,
        minimum=2,
        least=1000,
        bias="it has no bias, but varies more from one set to the next",
        library="metric_kid",
    ),
    Metric(
        name="precision",
        label="Precision",
        scale="0 to 1",
        better="higher",
        need=Need.FEATURES,
        minimum=4,
        least=5000,
        bias=_RADII,
    ),
    Metric(
        name="recall",
        label="Recall",
        scale="0 to 1",
        better="higher",
        need=Need.FEATURES,
        minimum=4,
        least=5000,
        bias=_RADII,
    ),
    Metric(
        name="density",
        label="Density",
        scale="from 0, about 1 for equal sets",
        better="higher",
        need=Need.FEATURES,
        minimum=6,
        least=1000,
        bias="it has no bias, but varies more from one set to the next",
    ),
    Metric(
        name="coverage",
        label="Coverage",
        scale="0 to 1",
        better="higher",
        need=Need.FEATURES,
        minimum=6,
        least=1000,
        bias="it varies more from one set to the next, and is smaller where there are fewer fakes than reals",
    ),
    Metric(
        name="inception_score",
        label="Inception score",
        scale="from 1",
        better="higher",
        need=Need.LOGITS,
        minimum=10,
        least=10_000,
        bias="the fewer the images in each of the 10 parts, the smaller it is",
        library="metric_isc",
    ),
    Metric(
        name="ms_ssim",
        label="MS-SSIM between generated images",
        scale="0 to 1, lower is more diverse",
        better="lower",
        need=Need.IMAGES,
        minimum=2,
        least=1000,
        bias=_FEW_PAIRS,
    ),
    _path_length("ppl_z_full", "Perceptual path length in Z, full paths"),
    _path_length("ppl_z_end", "Perceptual path length in Z, ends of paths"),
    _path_length("ppl_w_full", "Perceptual path length in W, full paths"),
    _path_length("ppl_w_end", "Perceptual path length in W, ends of paths"),
    _path_length("ppl_z_full_cropped", "Perceptual path length in Z, full paths, cropped"),
    _path_length("ppl_z_end_cropped", "Perceptual path length in Z, ends of paths, cropped"),
    _path_length("ppl_w_full_cropped", "Perceptual path length in W, full paths, cropped"),
    _path_length("ppl_w_end_cropped", "Perceptual path length in W, ends of paths, cropped"),
    Metric(
        name="lpips_diversity_munit",
        label="LPIPS diversity, MUNIT's protocol",
        scale="LPIPS, from 0",
        better="higher",
        need=Need.TRANSLATOR,
        minimum=1,
        least=100,
        bias=_FEW_PAIRS,
    ),
    Metric(
        name="lpips_diversity_stargan2",
        label="LPIPS diversity, StarGAN v2's protocol",
        scale="LPIPS, from 0",
        better="higher",
        need=Need.TRANSLATOR,
        minimum=1,
        least=100,
        bias=_FEW_PAIRS,
    ),
    Metric(
        name="content_preservation",
        label="Domain-invariant perceptual distance between input and translation",
        scale="from 0",
        better="lower",
        need=Need.TRANSLATOR,
        minimum=1,
        least=100,
        bias=_FEW_PAIRS,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""All of them, by name, in the order in which they are listed."""


def parse_metrics(text: str, option: str = "--metrics") -> tuple[MetricName, ...]:
    """The metrics that a list such as `fid,kid` names.

    Args:
        text: Names between commas; spaces do not matter.
        option: What the list is given to, for errors.

    Returns:
        The names, in the order given.

    Raises:
        UsageError: If it is empty, or one is unknown or named twice.
    """
    found = [name.strip() for name in text.split(",")]
    known: Sequence[MetricName] = get_args(MetricName)
    for name in found:
        if name not in METRICS:
            raise UsageError(f"{option}: {_unknown(name)}; there are {', '.join(known)}")
        if found.count(name) > 1:
            raise UsageError(f"{option} names {name} {found.count(name)} times; name it once")
    return tuple(METRICS[name].name for name in found)


def _unknown(name: str) -> str:
    if not name:
        return "a name is missing"
    nearest = difflib.get_close_matches(name.lower().replace("-", "_"), METRICS, 1)
    return f"there is no metric {name!r}" + (f"; did you mean {nearest[0]}?" if nearest else "")


def is_better(name: str, value: float, than: float) -> bool:
    """Whether one value of a metric is better than another; NaN never is."""
    return value < than if METRICS[name].better == "lower" else value > than


def check_count(name: str, count: int, what: str) -> None:
    """Refuse a set that is too small for a metric.

    Args:
        name: The metric.
        count: The size of the set.
        what: What it holds, in the plural: reals, fakes.

    Raises:
        UsageError: If the metric cannot be computed from so few.
    """
    metric = METRICS[name]
    if count < metric.minimum:
        raise UsageError(
            f"{name} cannot be computed from {count} {what}: it takes {metric.minimum} at least, and {metric.least:,} "
            f"to mean something; give more, or leave {name} out"
        )


def caution(name: str, count: int) -> str | None:
    """What to keep in mind where a metric was computed from few images; None where they are enough.

    Args:
        name: The metric.
        count: The size of the smaller of the sets that it was computed from.
    """
    metric = METRICS[name]
    if count >= metric.least:
        return None
    return f"{name} from {count:,} images, fewer than {metric.least:,}: {metric.bias}"
