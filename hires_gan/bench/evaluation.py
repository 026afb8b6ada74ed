"""What an evaluation costs beside the generator and the feature network, which it cannot do without.

`hires-gan bench evaluate`: the same images, made and described once by these two alone, chunk by chunk, and
once by a whole evaluation; what is taken of the reals is there already, as from the second one on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hires_gan.bench.identity import identity
from hires_gan.bench.record_file import require_writable, write_record
from hires_gan.data.manifest import IMAGE, Manifest
from hires_gan.data.pictures import encode
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.waiting import never
from hires_gan.data.writer import ShardWriter, write_manifest
from hires_gan.errors import UsageError
from hires_gan.evaluation.catalogue import METRICS, MetricName, Need
from hires_gan.evaluation.crew import chunks
from hires_gan.evaluation.evaluator import COMMAND, Counts, Evaluator, check_metrics
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.instruments import Instruments
from hires_gan.evaluation.protocol import CheckpointRecord
from hires_gan.evaluation.reals import CHUNK, Reals
from hires_gan.evaluation.subjects import Generated
from hires_gan.inference.images import from_uint8
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings

STAND_IN = "inception, with random weights"
_SIDE = 299
_NOISE_SIDE = 64
_MEASURED = (Need.PATCHES, Need.FEATURES, Need.LOGITS)
"""Metrics of one set of images, with the feature network or without one."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        resolution: Of the images.
        count: How many are generated.
        metrics: swd, and those of features and of logits.
        features: The network, as for `hires-gan evaluate`; None for Inception's layers with random weights.
        rounds: How often each of the two is measured.
        device: Where; None: on a GPU if there is one.
        out: The JSON file; None for none.
        reals: With how many they are compared; None for as many.
    """

    resolution: int = 64
    count: int = 2048
    metrics: tuple[MetricName, ...] = ("fid",)
    features: str | None = None
    rounds: int = 3
    device: str | None = None
    out: Path | None = None
    reals: int | None = None


@dataclass(frozen=True)
class Costs:
    """Seconds of each round, and what they are of.

    Attributes:
        resolution: Of the images.
        count: How many are generated.
        reals: With how many they are compared.
        metrics: What an evaluation computes.
        features: Its feature network; None where the metrics take none.
        alone: The generator and the feature network.
        whole: An evaluation.
    """

    resolution: int
    count: int
    reals: int
    metrics: tuple[MetricName, ...]
    features: str | None
    alone: list[float]
    whole: list[float]

    @property
    def share(self) -> float:
        """By how much the fastest evaluation takes longer than the fastest pass of the networks alone."""
        return min(self.whole) / min(self.alone) - 1


def stand_in(device: torch.device) -> Extractor:
    """Inception v3 with random weights: the layers, the size of images and of features of FID's, and no file."""
    network = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=True)
    network.AuxLogits, network.fc = None, nn.Identity()
    network.to(device).eval().requires_grad_(False)

    def features(images: Tensor) -> tuple[Tensor, None]:
        return network(interpolate(from_uint8(images, torch.float32), (_SIDE, _SIDE), mode="bilinear")), None

    version = f"torchvision {torchvision.__version__}"
    return Extractor(features, STAND_IN, version, "0" * 64, f"to {_SIDE}x{_SIDE}, bilinear", device, side=_SIDE)


def measure(request: Request, device: torch.device, keep: Callable[[Costs], object] = lambda costs: None) -> Costs:
    """Take turns, so that what else the machine does is shared fairly.

    Reals and networks are made once, for all rounds.

    Args:
        request: What to measure.
        device: Where.
        keep: Told after each round what is known by then.

    Raises:
        UsageError: If a metric cannot be taken of so many images, or not here.
        Failure: If a factory of `features` fails.
    """
    counts = Counts(request.count, request.count if request.reals is None else request.reals)
    _check(request, counts)
    subject, extractor = _subject(request.resolution, device), _extractor(request, device)
    name = None if extractor is None else extractor.name
    costs = Costs(request.resolution, counts.fakes, counts.reals, request.metrics, name, [], [])
    with tempfile.TemporaryDirectory() as folder:
        evaluator = _evaluator(Path(folder), request, counts, Instruments(extractor), device)
        evaluator.describe_reals(never)
        for _ in range(request.rounds):
            alone = _seconds(lambda: _pass(subject, extractor, counts), device)
            whole = _seconds(lambda: evaluator.measure(subject, CheckpointRecord(nimg=0), never), device)
            costs = replace(costs, alone=[*costs.alone, alone], whole=[*costs.whole, whole])
            keep(costs)
    return costs


def _check(request: Request, counts: Counts) -> None:
    """Refuse what cannot be measured before anything is made."""
    other = [name for name in request.metrics if METRICS[name].need not in _MEASURED]
    if other:
        allowed = ", ".join(name for name, metric in METRICS.items() if metric.need in _MEASURED)
        takes = "takes" if len(other) == 1 else "take"
        raise UsageError(
            f"--metrics has {', '.join(other)}, which {takes} other images or networks than are measured here; allowed "
            f"are {allowed}: leave {', '.join(other)} out"
        )
    if request.features is None and (lacking := _of(request, Need.LOGITS)):
        raise UsageError(
            f"--metrics has {', '.join(lacking)}, which needs the logits of a classifier, and the network with random "
            f"weights gives none; name one that does with --features, or leave {', '.join(lacking)} out"
        )
    check_metrics(request.metrics, counts, request.resolution, COMMAND)


def _of(request: Request, *needs: Need) -> list[MetricName]:
    return [name for name in request.metrics if METRICS[name].need in needs]


def _subject(resolution: int, device: torch.device) -> Generated:
    settings = StyleGAN2Settings.model_validate({"name": "stylegan2", "resolution": resolution})
    recipe = build_recipe(settings, 8, torch.float32, 0, None)
    network = recipe.players["generator"].to(device).eval().requires_grad_(False)
    return Generated(recipe, network, 0, resolution)  # type: ignore[arg-type]


def _extractor(request: Request, device: torch.device) -> Extractor | None:
    """The feature network; None where no metric takes features."""
    if not _of(request, Need.FEATURES, Need.LOGITS):
        return None
    return stand_in(device) if request.features is None else open_extractor(request.features, None, False, device)


def _evaluator(
    folder: Path, request: Request, counts: Counts, instruments: Instruments, device: torch.device
) -> Evaluator:
    shards, resolution = folder / "shards", request.resolution
    write_reals(shards, counts.reals, resolution)
    reals = Reals(ShardSet(shards), DataSettings(shards=str(shards), workers=0), resolution)
    return Evaluator(request.metrics, counts, reals, instruments, device, cache=folder / "cache", options=COMMAND)


def write_reals(folder: Path, count: int, resolution: int) -> None:
    """Write a shard set of noise, all of it different: equal features would make eigenvalues and neighbours cheap.

    Large images are small ones, enlarged: they encode in milliseconds, and a thousand of them take less than 100 MB.

    Args:
        folder: A new one.
        count: How many images.
        resolution: Their height and width in pixels.
    """
    folder.mkdir()
    random, side = np.random.default_rng(0), min(resolution, _NOISE_SIDE)
    with ShardWriter(folder, 0, (IMAGE,), labelled=False, first_row=0) as writer:
        for _ in range(count):
            noise = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
            large = noise.resize((resolution, resolution), Image.Resampling.NEAREST)
            writer.write({IMAGE: encode(np.asarray(large), "jpeg")}, None)
        entry = writer.finish()
    write_manifest(
        folder, Manifest(resolution=resolution, count=count, columns=(IMAGE,), filter="nearest", shards=(entry,))
    )


def _pass(subject: Generated, extractor: Extractor | None, counts: Counts) -> None:
    """What no evaluation can do without: making the images, and where features are wanted describing them."""
    count = counts.patched if extractor is None else counts.fakes
    for shown in subject.chunks(chunks(count, CHUNK), never):
        if extractor is not None:
            extractor(shown.images)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bench_evaluation(request: Request) -> dict[str, Any]:
    """Measure, and keep what was measured in a file: after each round, so that one that is cut off leaves those before.

    Returns:
        What is written: the head, `device`, `complete`, `share` and what `Costs` has.

    Raises:
        UsageError: If a metric cannot be taken of so many images or not here, or needs weights that are not there.
        Failure: If the file cannot be written.
    """
    if request.out is not None:
        require_writable(request.out)
    name = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    head = {**identity("evaluation"), "device": name}

    def kept(costs: Costs, complete: bool = False) -> dict[str, Any]:
        record = {**head, "complete": complete, "share": costs.share, **asdict(costs)}
        if request.out is not None:
            write_record(request.out, record)
        return record

    return kept(measure(request, torch.device(name), kept), complete=True)


def line(record: dict[str, Any]) -> str:
    """What was measured, for people."""
    networks = "generator" if record["features"] is None else "generator and feature network"
    return (
        f"{', '.join(record['metrics'])} of {record['count']:,} fakes and {record['reals']:,} reals: "
        f"{networks} alone {min(record['alone']):.1f} s, a whole evaluation {min(record['whole']):.1f} s: "
        f"{record['share']:+.1%}"
    )
