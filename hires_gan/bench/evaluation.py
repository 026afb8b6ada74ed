"""What an evaluation costs beside the generator and the feature network, which it cannot do without.

`hires-gan bench evaluate`: the same images, made and described once by these two alone, chunk by chunk, and
once by a whole evaluation; the features of the reals come from the cache, as from the second one on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hires_gan.bench.identity import identity, require_writable, write_record
from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.waiting import never
from hires_gan.evaluation.catalogue import MetricName
from hires_gan.evaluation.crew import chunks
from hires_gan.evaluation.evaluator import Evaluator, counted
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.instruments import Instruments
from hires_gan.evaluation.protocol import CheckpointRecord
from hires_gan.evaluation.reals import CHUNK, Reals
from hires_gan.evaluation.subjects import Generated
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings

STAND_IN = "inception, with random weights"
_SIDE = 299
_REALS = 256


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        resolution: Of the images.
        count: How many are generated.
        metrics: Those that compare features.
        features: The network, as for `hires-gan evaluate`; None for Inception's layers with random weights.
        rounds: How often each of the two is measured.
        device: Where; None: on a GPU if there is one.
        out: The JSON file; None for none.
    """

    resolution: int = 64
    count: int = 2048
    metrics: tuple[MetricName, ...] = ("fid",)
    features: str | None = None
    rounds: int = 3
    device: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Costs:
    """Seconds of each round, and what they are of.

    Attributes:
        resolution: Of the images.
        count: How many are generated.
        metrics: What an evaluation computes.
        features: Its feature network.
        alone: The generator and the feature network.
        whole: An evaluation.
    """

    resolution: int
    count: int
    metrics: tuple[MetricName, ...]
    features: str
    alone: list[float]
    whole: list[float]

    @property
    def share(self) -> float:
        """By how much the fastest evaluation takes longer than the fastest pass of the two networks alone."""
        return min(self.whole) / min(self.alone) - 1


def stand_in(device: torch.device) -> Extractor:
    """Inception v3 with random weights: the layers, the size of images and of features of FID's, and no file."""
    network = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=True)
    network.AuxLogits, network.fc = None, nn.Identity()
    network.to(device).eval().requires_grad_(False)

    def features(images: Tensor) -> tuple[Tensor, None]:
        scaled = images.float() / 127.5 - 1
        return network(interpolate(scaled, (_SIDE, _SIDE), mode="bilinear")), None

    version = f"torchvision {torchvision.__version__}"
    return Extractor(features, STAND_IN, version, "0" * 64, f"to {_SIDE}x{_SIDE}, bilinear", device, side=_SIDE)


def measure(request: Request, device: torch.device) -> Costs:
    """Take turns, so that what else the machine does is shared fairly."""
    resolution, count = request.resolution, request.count
    settings = StyleGAN2Settings.model_validate({"name": "stylegan2", "resolution": resolution})
    recipe = build_recipe(settings, 8, torch.float32, 0, None)
    network = recipe.players["generator"].to(device).eval().requires_grad_(False)
    subject = Generated(recipe, network, 0, resolution)  # type: ignore[arg-type]
    own = request.features is None
    extractor = stand_in(device) if own else open_extractor(str(request.features), None, False, device)
    alone: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = _evaluator(Path(folder), request, extractor, device)
        evaluator.describe_reals(never)
        for _ in range(request.rounds):
            alone.append(_seconds(lambda: _pass(subject, extractor, count), device))
            whole.append(_seconds(lambda: evaluator.measure(subject, CheckpointRecord(nimg=0), never), device))
    return Costs(resolution, count, request.metrics, extractor.name, alone, whole)


def _evaluator(folder: Path, request: Request, extractor: Extractor, device: torch.device) -> Evaluator:
    resolution = request.resolution
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(_REALS):
        pixels = random.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    prepare([str(folder / "images")], folder / "shards", PrepareOptions(resolution=resolution))
    reals = Reals(ShardSet(folder / "shards"), DataSettings(shards=str(folder / "shards"), workers=0), resolution)
    counts = counted(request.count, None, _REALS)
    return Evaluator(request.metrics, counts, reals, Instruments(extractor), device, cache=folder / "cache")


def _pass(subject: Generated, extractor: Extractor, count: int) -> None:
    for shown in subject.chunks(chunks(count, CHUNK), never):
        extractor(shown.images)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bench_evaluation(request: Request) -> dict[str, Any]:
    """Measure, and keep what was measured in a file.

    Raises:
        UsageError: If a metric cannot be taken of so many images, or needs weights that are not there.
        Failure: If the file cannot be written.
    """
    if request.out is not None:
        require_writable(request.out)
    name = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    costs = measure(request, torch.device(name))
    record = {**identity("evaluation"), "device": name, "share": costs.share, **asdict(costs)}
    if request.out is not None:
        write_record(request.out, record)
    return record
