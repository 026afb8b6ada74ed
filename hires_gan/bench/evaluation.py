"""What an evaluation costs beside the generator and the feature network, which it cannot do without.

`hires-gan bench evaluate`: the same images, made and described once by these two alone, chunk by chunk, and
once by a whole evaluation with FID; the features of the reals come from the cache, as from the second one on.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hires_gan.bench.identity import identity
from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.waiting import never
from hires_gan.evaluation.crew import chunks
from hires_gan.evaluation.evaluator import Evaluator, counted
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.instruments import Instruments
from hires_gan.evaluation.protocol import CheckpointRecord
from hires_gan.evaluation.reals import CHUNK, Reals
from hires_gan.evaluation.subjects import Generated
from hires_gan.inference.files import write_whole
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.stylegan2_settings import StyleGAN2Settings

FEATURES = "torchvision.models:resnet18"
_REALS = 256


@dataclass(frozen=True)
class Costs:
    """Seconds of each round, and what they are of.

    Attributes:
        resolution: Of the images.
        count: How many are generated.
        alone: The generator and the feature network.
        whole: An evaluation with FID.
        share: By how much the fastest evaluation takes longer than the fastest of the others.
    """

    resolution: int
    count: int
    alone: list[float]
    whole: list[float]

    @property
    def share(self) -> float:
        """By how much the fastest evaluation takes longer than the fastest pass of the two networks alone."""
        return min(self.whole) / min(self.alone) - 1


def measure(resolution: int, count: int, rounds: int, device: torch.device) -> Costs:
    """Take turns, so that what else the machine does is shared fairly."""
    settings = StyleGAN2Settings.model_validate({"name": "stylegan2", "resolution": resolution})
    recipe = build_recipe(settings, 8, torch.float32, 0, None)
    network = recipe.players["generator"].to(device).eval().requires_grad_(False)
    subject = Generated(recipe, network, 0, resolution)  # type: ignore[arg-type]
    extractor = open_extractor(FEATURES, None, False, device)
    alone: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = _evaluator(Path(folder), resolution, count, extractor, device)
        evaluator.describe_reals(never)
        for _ in range(rounds):
            alone.append(_seconds(lambda: _pass(subject, extractor, count), device))
            whole.append(_seconds(lambda: evaluator.measure(subject, CheckpointRecord(nimg=0), never), device))
    return Costs(resolution, count, alone, whole)


def _evaluator(folder: Path, resolution: int, count: int, extractor: Extractor, device: torch.device) -> Evaluator:
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(_REALS):
        pixels = random.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    prepare([str(folder / "images")], folder / "shards", PrepareOptions(resolution=resolution))
    reals = Reals(ShardSet(folder / "shards"), DataSettings(shards=str(folder / "shards"), workers=0), resolution)
    counts = counted(count, None, _REALS)
    return Evaluator(("fid",), counts, reals, Instruments(extractor), device, cache=folder / "cache")


def _pass(subject: Generated, extractor: Extractor, count: int) -> None:
    for shown in subject.chunks(chunks(count, CHUNK), never):
        extractor(shown.images)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bench_evaluation(resolution: int, count: int, rounds: int, device: str | None, out: Path | None) -> dict[str, Any]:
    """Measure, and keep what was measured in a file.

    Args:
        resolution: Of the images.
        count: How many are generated.
        rounds: How often each of the two is measured.
        device: Where; None: on a GPU if there is one.
        out: The JSON file; None for none.

    Raises:
        Failure: If the file cannot be written.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    costs = measure(resolution, count, rounds, torch.device(name))
    record = {**identity("evaluation"), "device": name, "share": costs.share, **asdict(costs)}
    if out is not None:
        write_whole(out, lambda partial: partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))
    return record
