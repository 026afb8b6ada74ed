"""Plain images, pairs and unpaired domains for the tests, and what a run on each of them shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from input_definition import Definition, noise_files, write_columns, write_shards

from hires_gan.data.domains import open_data
from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings

SIDE, SEED = 16, 5
COUNTS = {"sun": 17, "rain": 3, "snow": 1}
"""Unpaired sets, one of them of a single image."""
PAIRS = 11
FILES = {name: noise_files(count, SIDE, seed) for seed, (name, count) in enumerate(COUNTS.items())}
LEFT, RIGHT = noise_files(PAIRS, SIDE, 7), noise_files(PAIRS, SIDE, 8)
DECODERS: dict[str, dict[str, Any]] = {
    "in this process": {"workers": 0},
    "one worker": {"workers": 1},
    "three workers": {"workers": 3},
    "dali-cpu": {"decoder": "dali-cpu", "threads": 2},
}


def make_kinds(root: Path) -> dict[str, dict[str, Any]]:
    """Settings that name plain images, pairs and unpaired domains."""
    for name, files in FILES.items():
        write_shards(root / name, files, SIDE, per_shard=5)
    write_columns(root / "pairs", {"left": LEFT, "right": RIGHT}, SIDE, per_shard=4)
    return {
        "plain": {"shards": str(root / "sun")},
        "pairs": {"shards": str(root / "pairs")},
        "unpaired": {"domains": {name: str(root / name) for name in COUNTS}},
    }


def definitions(kind: str, mirror: bool = True) -> dict[str, Definition]:
    """What each domain shows: those of a pair in one order with one set of flips, the unpaired each with its own."""
    if kind == "plain":
        return {"image": Definition(FILES["sun"], [], SEED, mirror)}
    if kind == "pairs":
        return {name: Definition(files, [], SEED, mirror) for name, files in (("left", LEFT), ("right", RIGHT))}
    return {name: Definition(files, [], SEED, mirror, stream) for stream, (name, files) in enumerate(FILES.items())}


def defined(domains: dict[str, Definition], request: Request) -> np.ndarray:
    return np.concatenate([one.images(request.samples, request.resolution) for one in domains.values()])


def loader_of(data: dict[str, Any], largest: int = 60 * SIDE * SIDE * 3, **more: Any) -> Loader:
    block = DataSettings(**({"mirror": True} | data | more))
    return Loader(open_data(block), block, SEED, largest)


def check(loader: Loader, wanted: list[Request], domains: dict[str, Definition]) -> None:
    for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
        assert batch.samples == request.samples
        assert batch.domains == tuple(domains)
        assert batch.labels is None
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(batch.images.numpy(), defined(domains, request))
