"""What a user would pick instead of our loader, each written as its own documentation would have it for speed.

All give an endless stream of shuffled batches of the same files with the same number of processes: workers that stay,
torch's default of two batches ahead for each of them, images in the decoder's own layout until the batch is there.
"""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import to_tensor

from hires_gan.bench.input_contestants import Batches, Contestant, Task, take
from hires_gan.bench.input_images import Images

PIL_TO_UINT8 = "DataLoader: folder, PIL to uint8"
"""The one that our loader is held against by a promise."""
DALI_READER = "DALI's webdataset reader, CPU"
_AHEAD = 2
"""Batches that each worker of a DataLoader decodes while nobody asks: torch's default."""
_SHUFFLED = 1000
"""Samples in a shuffle buffer."""
_ENDLESS = 2**40


Give = Callable[[Images, Task], Iterator[Tensor]]
"""Starts an input: shuffled batches `[n, 3, r, r]` without end."""


def peers(images: Images, dali: bool) -> list[Contestant]:
    """All of them as contestants.

    Args:
        images: What they read.
        dali: Whether DALI can be used.
    """
    return [
        Contestant(name, "peer", functools.partial(take, functools.partial(_opened, give, images)))
        for name, give in inputs(dali).items()
    ]


def inputs(dali: bool) -> dict[str, Give]:
    """All of them by name."""
    found: dict[str, Give] = {
        "DataLoader: folder, PIL, ToTensor": pil_to_float,
        PIL_TO_UINT8: pil_to_bytes,
        "DataLoader: zip, torchvision": zipped,
        "webdataset, PIL": functools.partial(webdataset, "rgb8"),
        "webdataset, torchvision": functools.partial(webdataset, _decode_by_torchvision),
    }
    if dali:
        found[DALI_READER] = dali_reader
    return found


@contextlib.contextmanager
def _opened(give: Give, images: Images, task: Task) -> Iterator[Batches]:
    wanted = (task.batch, 3, task.resolution, task.resolution)

    def counts() -> Iterator[int]:
        for batch in give(images, task):
            assert tuple(batch.shape) == wanted, (batch.shape, wanted)
            yield task.batch

    if give is dali_reader:
        yield Batches(counts(), _AHEAD)
    else:  # each worker makes whole batches
        yield Batches(counts(), _AHEAD * task.workers, cycle=task.workers)


class Files(Dataset[Tensor]):
    """Image files in a folder.

    Args:
        paths: The files.
        load: Reads one.
    """

    def __init__(self, paths: Sequence[str], load: Callable[[str], Tensor]) -> None:
        self._paths, self._load = paths, load

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Tensor:
        return self._load(self._paths[number])


class Zipped(Dataset[Tensor]):
    """Image files in a zip file, which each worker opens once; decoded by torchvision."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: zipfile.ZipFile | None = None
        with zipfile.ZipFile(path) as file:
            self._names = file.namelist()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> Tensor:
        if self._file is None:
            self._file = zipfile.ZipFile(self._path)
        return _decode(self._file.read(self._names[number]))


def pil_to_float(images: Images, task: Task) -> Iterator[Tensor]:
    """What most tutorials do: float32 in [0, 1], made by torchvision's ToTensor in the workers."""
    yield from _data_loader(Files(images.files, _load_float), task)


def pil_to_bytes(images: Images, task: Task) -> Iterator[Tensor]:
    """A quarter of the bytes, and no transposition: uint8 in channels_last memory."""
    for batch in _data_loader(Files(images.files, _load_bytes), task):
        yield batch.permute(0, 3, 1, 2)


def zipped(images: Images, task: Task) -> Iterator[Tensor]:
    """The same from a zip file and with torchvision's decoder."""
    for batch in _data_loader(Zipped(images.zip), task):
        yield batch.permute(0, 3, 1, 2)


def _load_float(path: str) -> Tensor:
    with Image.open(path) as image:
        tensor: Tensor = to_tensor(image.convert("RGB"))
        return tensor


def _load_bytes(path: str) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def _decode(data: bytes) -> Tensor:
    """uint8 `[h, w, 3]`, which is how torchvision's decoder lays it out."""
    image: Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return image.permute(1, 2, 0)


def _data_loader(dataset: Files | Zipped, task: Task) -> Iterable[Tensor]:
    return DataLoader(
        dataset,
        batch_size=task.batch,
        # One epoch behind the other without a pause, as in a large set; its own end would empty the workers.
        sampler=RandomSampler(dataset, num_samples=_ENDLESS),
        num_workers=task.workers,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=_AHEAD,
    )


def webdataset(how: str | Callable[[str, bytes], Tensor | None], images: Images, task: Task) -> Iterator[Tensor]:
    """Webdataset's own pipeline in its WebLoader, resampling the shards as its authors recommend for training.

    Args:
        how: `rgb8`, its own decoding with PIL to uint8 `[h, w, 3]`; or another decoder.
        images: What it reads.
        task: What it is given.
    """
    import webdataset as wds

    dataset = wds.WebDataset(list(images.tars), resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node)
    dataset = dataset.shuffle(_SHUFFLED).decode(how)
    dataset = dataset.to_tuple("jpg;png").map_tuple(_as_tensor).batched(task.batch, partial=False)
    loading = wds.WebLoader(
        dataset, batch_size=None, num_workers=task.workers, persistent_workers=True, prefetch_factor=_AHEAD
    )
    for (batch,) in loading:
        yield batch.permute(0, 3, 1, 2)


def _decode_by_torchvision(key: str, data: bytes) -> Tensor | None:
    return _decode(data) if key.endswith(("jpg", "png")) else None


def _as_tensor(image: Tensor | np.ndarray) -> Tensor:
    return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))


def dali_reader(images: Images, task: Task) -> Iterator[Tensor]:
    """DALI's own pipeline on the CPU: its reader of webdataset tars, its shuffle buffer, its decoder, its iterator."""
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    pipeline = Pipeline(batch_size=task.batch, num_threads=task.workers, device_id=None, prefetch_queue_depth=_AHEAD)
    with pipeline:
        files: Any = fn.readers.webdataset(
            paths=list(images.tars),
            index_paths=list(images.indexes),
            ext=["jpg;png"],
            random_shuffle=True,
            initial_fill=_SHUFFLED,
            name="reader",
        )
        pipeline.set_outputs(fn.decoders.image(files, device="cpu", output_type=types.RGB))
    pipeline.build()
    for batch in DALIGenericIterator([pipeline], ["images"], size=-1):
        yield batch[0]["images"].permute(0, 3, 1, 2)
