"""Checkpoints of small models that nobody has trained, their shards, and networks that stand for published ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair_metrics import random_alexnet, random_heads, random_vgg
from PIL import Image

from hires_gan import checkpoint
from hires_gan.config import Configuration
from hires_gan.data.command import PrepareOptions
from hires_gan.data.domains import open_data
from hires_gan.data.prepare import prepare
from hires_gan.evaluation import comparing, instruments, sampled
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.catalogue import parse_metrics
from hires_gan.evaluation.command import Request
from hires_gan.evaluation.diversity import PROTOCOLS, DiversityProtocol
from hires_gan.evaluation.instruments import Sources
from hires_gan.evaluation.perceptual import LPIPS
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import LabelDistribution

COUNT = 70  # more than one chunk, so that two processes have work
RECIPES: dict[str, dict[str, Any]] = {
    "progressive": {
        "resolution": 16,
        "generator": {"latent_size": 8, "fmap_base": 64, "fmap_max": 8},
        "discriminator": {"fmap_base": 64, "fmap_max": 8},
        "schedule": {"stable_kimg": 1, "fade_kimg": 1},
    },
    "stylegan2": {
        "resolution": 16,
        "labels": True,
        "generator": {"latent_size": 8, "w_size": 8, "mapping_layers": 2, "fmap_base": 64, "fmap_max": 8},
        "discriminator": {"fmap_base": 64, "fmap_max": 8},
    },
    "munit": {
        "resolution": 16,
        "generator": {
            "style_size": 4,
            "base": 4,
            "most": 8,
            "content_downs": 1,
            "style_downs": 2,
            "blocks": 1,
            "features": 8,
        },
        "discriminator": {"scales": 1, "layers": 2, "base": 4, "most": 8},
        "loss": {"perceptual": 0},
    },
}


def shards(folder: Path, count: int = COUNT, seed: int = 0, side: int = 16, classes: int = 2) -> Path:
    """A set of noise over plain colours, in classes of nothing."""
    random = np.random.default_rng(seed)
    source = folder.with_name(f"{folder.name}-images")
    for number in range(count):
        kind = source / f"class{number % classes}"
        kind.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 200, (1, 1, 3)) + random.integers(0, 56, (side, side, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(kind / f"{number:03d}.png")
    prepare([str(source)], folder, PrepareOptions(resolution=side, labels="folders", processes=1))
    return folder


def data_of(family: str, root: Path) -> dict[str, Any]:
    """The `data` block, of sets that lie in a folder, or are made there."""

    def at(name: str, seed: int) -> str:
        return str(root / name if (root / name).is_dir() else shards(root / name, COUNT - seed, seed))

    if family == "munit":
        return {"domains": {"left": at("left", 1), "right": at("right", 2)}, "workers": 0}
    return {"shards": at("plain", 0), "workers": 0}


def configured(family: str, root: Path, **blocks: Any) -> Configuration:
    return Configuration.model_validate(
        {
            "run": {"name": family, "dir": str(root / "runs"), "total_kimg": 5, "seed": 3},
            "data": data_of(family, root),
            "recipe": {"name": family, **RECIPES[family]},
            "batch": {"size": 8},
            "precision": "fp32",
            **blocks,
        }
    )


def untrained(family: str, root: Path, nimg: int = 4000, run_id: str = "") -> Path:
    """A run's folder with one checkpoint, in which nothing but its layout is like that of a run."""
    plan = configured(family, root)
    data = open_data(plan.data)
    counts = data.sources[0].shards.label_counts
    labels = LabelDistribution(tuple(int(one) for one in counts)) if plan.recipe.labels and counts is not None else None
    recipe = build_recipe(plan.recipe, 8, torch.float32, 3, labels, data.names)
    folder = root / "runs" / family
    state = {
        "configuration": plan.model_dump(mode="json"),
        "inference": recipe.inference(nimg),
        "mlflow_run_id": run_id,
        "versions": {},
    }
    weights = dict(recipe.players["generator"].state_dict())
    checkpoint.write(folder / "checkpoints", nimg, {"generator.average": weights}, state)
    return folder


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Let random weights stand for the published ones of VGG16 and AlexNet, which are not here."""

    def open_lpips(backbone: str, *rest: Any) -> LPIPS:
        if backbone == "vgg":
            return LPIPS(random_vgg(), random_heads((64, 128, 256, 512, 512)))
        return LPIPS(random_alexnet(), random_heads((64, 192, 384, 256, 256)))

    patch.setattr(instruments, "open_lpips", open_lpips)
    patch.setattr(instruments, "obtain_vgg", lambda *_: random_vgg())
    # Fewer samples and translations than are published, which take minutes on a CPU.
    patch.setattr(sampled, "SAMPLES", 9)
    few = {name: DiversityProtocol(one.inputs, 4, one.pairs[:2]) for name, one in PROTOCOLS.items()}
    patch.setattr(sampled, "PROTOCOLS", few)


SETS = "swd,fid,kid,precision,recall,density,coverage,inception_score"
METRICS = {
    "progressive": f"{SETS},ms_ssim,ppl_z_full,ppl_z_end,ppl_z_full_cropped,ppl_z_end_cropped",
    "stylegan2": f"{SETS},ppl_w_full,ppl_w_end,ppl_w_full_cropped,ppl_w_end_cropped",
    "munit": f"{SETS},lpips_diversity_munit,lpips_diversity_stargan2,content_preservation",
}
"""Every metric there is, by a family that it fits."""


def requested(family: str, count: int = COUNT - 2) -> Request:
    return Request(parse_metrics(METRICS[family]), count=count, sources=Sources("tiny_network:Tiny"))


def lapsing_at(number: int) -> Callable[..., float]:
    """FID, which at its so many-th time is no finite number."""
    fid, calls = comparing.fid, itertools.count(1)

    def lapsing(*arguments: Any) -> float:
        if next(calls) == number:
            raise NotFinite("the features are too large for float32")
        return fid(*arguments)

    return lapsing
