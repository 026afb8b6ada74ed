"""The features of reals, kept for the next time: by what they are of, not by where it lies.

Two files in a folder: `<key>.safetensors` with features, logits and moments, and `<key>.json`, written last, with what
the key was made from and the sha256 of the other. Each appears whole or not at all. The key is the sha256 of everything
that decides a feature: the data's digest, which images, at which size and how decoded, and the network with its
weights. Features of 50,000 images take 0.4 GB with FID's Inception. Nothing is ever deleted but what is damaged: delete
the folder, or files in it, to have the room back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from hires_gan.data.cache_locks import locked
from hires_gan.data.demo import cache_folder
from hires_gan.data.waiting import Stopped, never
from hires_gan.data.writer import PARTIAL, write_atomically
from hires_gan.errors import Failure
from hires_gan.evaluation.moments import Moments
from hires_gan.progress import say

FORMAT = 1
"""Of the files; part of the key, so that another version makes its own."""


@dataclass(frozen=True)
class RealsKey:
    """What features of reals depend on.

    Attributes:
        data: Digest of the shards' manifest.
        domain: The domain of a translation; `image` for plain images.
        column: Where in the shards the images lie: `image`, or `image.64` for a stored level.
        resolution: Side in pixels at which they are compared.
        count: How many, the first ones of the order.
        order_seed: Which order.
        decoder: What decoded them, and its version: `torchvision 0.26.0`.
        extractor: Name of the feature network.
        extractor_version: The package that brings it, and its version.
        checksum: sha256 of its weights.
        resize: How it changes the size of images.
        device: The kind of device that computed: `cpu` or `cuda`; they round differently.
    """

    data: str
    domain: str
    column: str
    resolution: int
    count: int
    order_seed: int
    decoder: str
    extractor: str
    extractor_version: str
    checksum: str
    resize: str
    device: str

    def digest(self) -> str:
        """The sha256 by which features are kept."""
        identity = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(identity.encode()).hexdigest()


@dataclass(frozen=True)
class RealFeatures:
    """What metrics need of the reals.

    Attributes:
        features: float32 `[n, d]`, on the CPU.
        logits: float32 `[n, k]`, or None.
        moments: Of the features.
    """

    features: Tensor
    logits: Tensor | None
    moments: Moments


class FeatureCache:
    """The features that are kept in a folder.

    Processes may read and write at once, on one machine or, where the file system has locks, on several. It only saves
    time: where it cannot be read or written, that is said, and things go on without it.

    Args:
        folder: Where; None for the user's cache. It is made when something is kept.

    Raises:
        Failure: If there is no user's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() / "features" if folder is None else folder

    def read(self, key: RealsKey) -> RealFeatures | None:
        """What is kept for a key; None if there is nothing, or it is damaged, which is said."""
        description, tensors = self._paths(key)
        try:
            expected = json.loads(description.read_bytes())
            data = tensors.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            say(f"warning: features of reals in {description} cannot be read ({error}): they are made anew")
            return None
        problem = _problem(expected, data, key)
        if problem is not None:
            say(f"warning: features of reals in {tensors} {problem}: they are made anew")
            return None
        return _unpacked(load(data))

    def write(self, key: RealsKey, reals: RealFeatures, stopped: Callable[[], bool] = never) -> None:
        """Keep features.

        Args:
            key: What they are of.
            reals: The features, as many as the key says.
            stopped: Asked while another process writes the same.

        Raises:
            Stopped: If `stopped` became true.
            Failure: If there are more or fewer than the key says.
        """
        _check_count(key, reals)
        with self._locked(key, stopped):
            self._write(key, reals)

    def obtain(
        self, key: RealsKey, make: Callable[[], RealFeatures], stopped: Callable[[], bool] = never
    ) -> RealFeatures:
        """What is kept for a key, else what `make` makes, which is kept from then on.

        Of several processes that ask at once, one makes them, and the others wait for it.

        Args:
            key: What the features are of.
            make: Computes them, in order.
            stopped: Asked while another process makes them.

        Raises:
            Stopped: If `stopped` became true, or `make` was stopped.
            Failure: If `make` gives more or fewer than the key says.
        """
        found = self.read(key) if self._paths(key)[0].is_file() else None
        if found is not None:
            return found
        with self._locked(key, stopped) as had_to_wait:
            found = self.read(key) if had_to_wait else None
            if found is None:
                found = make()
                _check_count(key, found)
                self._write(key, found)
        return found

    def _paths(self, key: RealsKey) -> tuple[Path, Path]:
        digest = key.digest()
        return self.folder / f"{digest}.json", self.folder / f"{digest}.safetensors"

    @contextlib.contextmanager
    def _locked(self, key: RealsKey, stopped: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock of a key, or go on without where there can be none; yields whether another held it first."""

        def give_up_if_stopped() -> None:
            if stopped():
                raise Stopped

        with contextlib.ExitStack() as stack:
            had_to_wait = False
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                had_to_wait = stack.enter_context(locked(self.folder / f".{key.digest()}.lock", give_up_if_stopped))
            except OSError as error:
                say(f"warning: {self.folder} cannot be locked ({error.strerror}): others may make the same features")
            yield had_to_wait

    def _write(self, key: RealsKey, reals: RealFeatures) -> None:
        description, tensors = self._paths(key)
        data = save(_packed(reals))
        about = {"format": FORMAT, "key": asdict(key), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        try:
            for left in self.folder.glob(f".{tensors.name}.*{PARTIAL}"):  # by a process that was killed
                left.unlink(missing_ok=True)
            write_atomically(tensors, data)
            write_atomically(description, json.dumps(about, indent=1, sort_keys=True).encode())
        except OSError as error:
            say(f"warning: features of reals cannot be kept in {self.folder} ({error.strerror})")
            return
        say(f"features of {key.count:,} reals are kept in {tensors} ({len(data) / 2**20:,.0f} MiB)")


def _problem(expected: Any, data: bytes, key: RealsKey) -> str | None:
    """What is wrong with files, as the end of a sentence."""
    if not isinstance(expected, dict) or expected.get("key") != asdict(key):
        return "are described as others"
    if expected.get("sha256") != hashlib.sha256(data).hexdigest():
        return "are not what was written (the sha256 differs)"
    return None


def _check_count(key: RealsKey, reals: RealFeatures) -> None:
    found = len(reals.features)
    if found != key.count or reals.moments.count != key.count:
        raise Failure(f"features of {key.count} reals were to be kept, but there are {found}; take as many")


def _packed(reals: RealFeatures) -> dict[str, Tensor]:
    moments = reals.moments
    tensors = {
        "features": reals.features.contiguous(),
        "moments.count": torch.tensor(moments.count),
        "moments.mean": torch.from_numpy(moments.mean),
        "moments.scatter": torch.from_numpy(np.ascontiguousarray(moments.scatter)),
    }
    return tensors if reals.logits is None else {**tensors, "logits": reals.logits.contiguous()}


def _unpacked(tensors: dict[str, Tensor]) -> RealFeatures:
    mean, scatter = tensors["moments.mean"].numpy(), tensors["moments.scatter"].numpy()
    moments = Moments(int(tensors["moments.count"]), mean, scatter)
    return RealFeatures(tensors["features"], tensors.get("logits"), moments)
