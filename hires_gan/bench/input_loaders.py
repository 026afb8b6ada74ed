"""Our own loader as a contestant: with each of its decoders, as a training run has it."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch

from hires_gan.bench.input_contestants import Batches, Contestant, Kind, Measurement, Task, take
from hires_gan.bench.input_limits import dali_alone, settled, torchvision_alone
from hires_gan.data.dali_pipeline import check_installed
from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say

_SEED = 0

Decoder = Literal["torchvision", "dali-cpu", "dali"]
"""`dali` is DALI on a GPU here."""
DECODERS: tuple[Decoder, ...] = get_args(Decoder)


def usable_decoders(wanted: tuple[str, ...]) -> tuple[Decoder, ...]:
    """Those of the decoders that can be used on this machine; why another one cannot is said.

    Args:
        wanted: Their names; all of them if empty.

    Raises:
        UsageError: If one of those that are wanted by name is none, or cannot be used.
        Failure: Likewise, if it is installed but does not work.
    """
    for name in wanted:
        if name not in DECODERS:
            raise UsageError(f"--decoder is {name!r}; {', '.join(DECODERS)} are allowed")
    found = []
    for name in DECODERS:
        if wanted and name not in wanted:
            continue
        try:
            _check(name)
        except Failure as error:
            if wanted:
                raise
            say(f"not measured: {name}: {error}")
        else:
            found.append(name)
    return tuple(found)


def _check(decoder: Decoder) -> None:
    if decoder == "dali" and not torch.cuda.is_available():
        raise UsageError("this machine has no GPU on which DALI could decode")
    if decoder != "torchvision":
        check_installed(_device(decoder) if decoder == "dali" else None)


def _device(decoder: Decoder) -> torch.device:
    return torch.device("cuda", 0) if decoder == "dali" else torch.device("cpu")


def contestants(decoder: Decoder, folder: Path) -> list[Contestant]:
    """A decoder alone, and our loader with it.

    Args:
        decoder: Which.
        folder: The shard set.
    """
    gpu = "cuda:0" if decoder == "dali" else None
    alone: dict[Kind, functools.partial[Measurement]] = {
        "limit": functools.partial(torchvision_alone, folder)
        if decoder == "torchvision"
        else functools.partial(dali_alone, gpu, folder),
        "loader": functools.partial(take, functools.partial(loader, decoder, folder)),
    }
    name = "dali, GPU" if gpu else decoder
    names: dict[Kind, str] = {"limit": f"{name} alone", "loader": f"loader, {name}"}
    return [Contestant(names[kind], kind, measure, "cuda" if gpu else "cpu") for kind, measure in alone.items()]


@contextlib.contextmanager
def loader(decoder: Decoder, folder: Path, task: Task) -> Iterator[Batches]:
    """The input of a training run, its batches taken and dropped."""
    shards, device = ShardSet(folder), _device(decoder)
    settings = DataSettings(shards=str(folder), decoder=decoder, workers=task.workers, threads=task.workers)
    largest = task.batch * task.resolution**2 * 3
    with Loader(shards, settings, _SEED, largest, device=device) as loading:
        firsts = itertools.count(0, task.batch)
        batches = loading.batches(Request(range(first, first + task.batch), task.resolution) for first in firsts)
        settle = settled(device if device.type == "cuda" else None)
        yield Batches((len(batch.samples) for batch in batches), loading.decoder.slots, settle=settle)
