"""The features of reals, kept for the next time: by what they are of, not by where it lies.

Two files in a folder: `<key>.safetensors` with features and moments, and `<key>.json`, written last, with what
the key was made from and the sha256 of the other. Each appears whole or not at all. The key is the sha256 of everything
that decides a feature: the data's digest, which images, at which size and how decoded, and the network with its
weights. Features of 50,000 images take 0.4 GB with FID's Inception. Nothing is ever deleted but what is damaged: delete
the folder, or files in it, to have the room back.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from hires_gan.data.cache_locks import locked
from hires_gan.data.demo import cache_folder
from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.data.writer import PARTIAL, write_atomically
from hires_gan.errors import Failure
from hires_gan.evaluation.beside import beside
from hires_gan.evaluation.moments import Moments
from hires_gan.progress import say

FORMAT = 2
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
        moments: Of the features.
    """

    features: Tensor
    moments: Moments


class FeatureCache:
    """The features that are kept in a folder.

    Processes may read and write at once, on one machine or, where the file system has locks, on several. It only saves
    time: where it cannot be read or written, that is said, and things go on without it.

    Args:
        folder: Where; None for the user's cache. It is made when something is kept.

    Attributes:
        folder: None for a user who has no cache: then nothing is kept, which is said once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = _users_folder() if folder is None else folder

    def read(self, key: RealsKey, stopped: Asked = never) -> RealFeatures | None:
        """What is kept for a key; None if there is nothing, or it is damaged, which is said.

        Args:
            key: What it is of.
            stopped: Asked while it is read and its sha256 taken: hundreds of megabytes, maybe over a network.

        Raises:
            Stopped: If `stopped` became true.
        """
        folder = self.folder
        return None if folder is None else beside(lambda: _read(folder, key), stopped)

    def write(self, key: RealsKey, reals: RealFeatures, stopped: Asked = never) -> None:
        """Keep features.

        Args:
            key: What they are of.
            reals: The features, as many as the key says.
            stopped: Asked while another process writes the same, and while this one writes.

        Raises:
            Stopped: If `stopped` became true; what was begun may still be kept.
            Failure: If there are more or fewer than the key says.
        """
        _check_count(key, reals)
        folder = self.folder
        if folder is not None and _is_made(folder):
            lock, problem = _locked(folder, key, stopped)
            beside(lambda: _write(folder, key, reals, lock, problem), stopped)


def _users_folder() -> Path | None:
    try:
        return cache_folder() / "features"
    except Failure as problem:
        _say_once(f"warning: features of reals are made anew each time: {problem}")
        return None


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _paths(folder: Path, key: RealsKey) -> tuple[Path, Path]:
    digest = key.digest()
    return folder / f"{digest}.json", folder / f"{digest}.safetensors"


def _read(folder: Path, key: RealsKey) -> RealFeatures | None:
    description, tensors = _paths(folder, key)
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


def _is_made(folder: Path) -> bool:
    """Whether a folder is there, or could be made; where not, that is said."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _say_not_kept(folder, error)
        return False
    return True


def _say_not_kept(folder: Path, error: OSError) -> None:
    say(f"warning: features of reals cannot be kept in {folder} ({error.strerror})")


def _locked(folder: Path, key: RealsKey, stopped: Asked) -> tuple[contextlib.ExitStack, OSError | None]:
    """The lock of a key, held until the stack is closed; or nothing where there can be none, and why.

    Raises:
        Stopped: If `stopped` became true before it was free.
    """

    def give_up_if_stopped() -> None:
        if stopped():
            raise Stopped

    problem: OSError | None = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / f".{key.digest()}.lock", give_up_if_stopped))
        except OSError as error:
            problem = error
        return stack.pop_all(), problem


def _write(
    folder: Path, key: RealsKey, reals: RealFeatures, lock: contextlib.ExitStack, problem: OSError | None
) -> None:
    """Write the files, and give the lock back: whoever waited for this may have gone on meanwhile.

    Why there is no lock is said only where the files could be written: mostly neither can, for one reason.
    """
    description, tensors = _paths(folder, key)
    with lock:
        data = save(_packed(reals))
        digest = hashlib.sha256(data).hexdigest()
        about = {"format": FORMAT, "key": asdict(key), "bytes": len(data), "sha256": digest}
        try:
            for left in folder.glob(f".{tensors.name}.*{PARTIAL}"):  # by a process that was killed
                left.unlink(missing_ok=True)
            write_atomically(tensors, data)
            write_atomically(description, json.dumps(about, indent=1, sort_keys=True).encode())
        except OSError as error:
            _say_not_kept(folder, error)
            return
        if problem is not None:
            say(f"warning: {folder} could not be locked ({problem.strerror}): others may write the same features")
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
    return {
        "features": reals.features.contiguous(),
        "moments.count": torch.tensor(moments.count),
        "moments.mean": torch.from_numpy(moments.mean),
        "moments.scatter": torch.from_numpy(np.ascontiguousarray(moments.scatter)),
    }


def _unpacked(tensors: dict[str, Tensor]) -> RealFeatures:
    mean, scatter = tensors["moments.mean"].numpy(), tensors["moments.scatter"].numpy()
    moments = Moments(int(tensors["moments.count"]), mean, scatter)
    return RealFeatures(tensors["features"], moments)
