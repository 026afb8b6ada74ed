"""The weights of feature networks: at hand, in torch hub's cache, or downloaded; and checked each time."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.fidelity import torch_fidelity
from hires_gan.networks.published import OptionNames, PublishedWeights, published_tensors, read_tensors
from hires_gan.networks.vgg import VGG_SHA256, VGG_URL
from hires_gan.progress import say

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the published file, whose name holds its beginning."""
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""What torch-fidelity and pytorch-fid call that file in torch hub's cache."""

COMMAND = OptionNames(weights="--weights", download="--download", without="--metrics to swd, which needs no weights")
"""How `evaluate` names its options."""
CONFIGURATION = OptionNames(
    weights="evaluation.weights",
    download="evaluation.download=true",
    without="evaluation.metrics to [swd], which needs no weights",
)
"""How the configuration names them."""


def find_inception(path: Path | None, download: bool, names: OptionNames) -> Path:
    """Where the weights of FID's Inception are: in the file that is named, else in torch hub's cache, else fetched.

    Args:
        path: The file, or None.
        download: Whether it may be fetched (95 MB) into the cache if it is not there; without effect beside a path.
        names: What these two options are called.

    Returns:
        The file; its contents are not looked at yet.

    Raises:
        UsageError: If there is none.
        Failure: If the download fails.
    """
    if path is not None:
        if not path.is_file():
            raise UsageError(f"{names.weights} is {path}, but there is no such file; {_remedy(names)}")
        return path
    cached = [_cache() / name for name in INCEPTION_FILES]
    found = next((file for file in cached if file.is_file()), None)
    if found is not None:
        return found
    if not download:
        raise UsageError(
            f"FID's Inception needs {INCEPTION_FILES[0]} (95 MB), which is not in {_cache()}; {_remedy(names)}"
        )
    return _download(cached[0], names)


def _cache() -> Path:
    """Where torch hub keeps weights, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _remedy(names: OptionNames) -> str:
    fetch = f"fetch it with {names.download}"
    return (
        f"name the file with {names.weights}, {fetch}{names.otherwise}"
        if names.without
        else (f"name the file with {names.weights}, or {fetch}")
    )


def _download(path: Path, names: OptionNames) -> Path:
    url: str = torch_fidelity("feature_extractor_inceptionv3").URL_INCEPTION_V3
    say(f"downloading {url} to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), INCEPTION_SHA256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        remedy = f"fetch it elsewhere and name it with {names.weights}{names.otherwise}"
        raise Failure(f"cannot download {url} ({error}); {remedy}") from error
    return path


def load_inception(path: Path, names: OptionNames) -> tuple[dict[str, Tensor], str]:
    """The tensors of the published file, and its sha256; nothing in it executes.

    Raises:
        UsageError: If it is another file, or cannot be read.
    """
    what = f"the published {INCEPTION_FILES[0]}"
    return published_tensors(path, INCEPTION_SHA256, what, names), INCEPTION_SHA256


def load_vgg16(path: Path | None, download: bool, names: OptionNames) -> tuple[dict[str, Tensor], str]:
    """The tensors of torchvision's VGG16, all of its layers, and the sha256 of their file; nothing in it executes.

    Args:
        path: The file; None for torch hub's cache.
        download: Whether it may be fetched (528 MB) into the cache if it is not there; without effect beside a path.
        names: What these two options are called.

    Raises:
        UsageError: If there is none, or it is another file.
        Failure: If the download fails.
    """
    return PublishedWeights("VGG16", VGG_URL, VGG_SHA256).obtain(path, download, names), VGG_SHA256


def load_state(path: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a file of weights for a network of one's own: safetensors, or torch's format; nothing executes.

    Raises:
        UsageError: If it cannot be read, or holds anything but named tensors.
    """
    if not path.is_file():
        raise UsageError(f"{option} is {path}, but there is no such file; name a file of weights")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_file(path)
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        reason = "it is no safetensors file" if isinstance(error, SafetensorError) else type(error).__name__
        raise UsageError(
            f"{option}: {path} cannot be read as tensors alone ({reason}); give a state dict, best as .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{option}: {path} holds no state dict (names and tensors alone); save one there")
    return state


def _torch_file(path: Path) -> dict[str, Tensor]:
    """What a file in torch's format holds.

    Raises:
        ValueError: If it is an archive with a single member, which torch hub would unpack beside it.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) < 2:
                raise ValueError(f"{path} is an archive, and no file of torch's")
    return read_tensors(path)


def state_checksum(state: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors: of their names, dtypes, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
