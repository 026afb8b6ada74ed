"""Feature networks: from images as they are stored to what FID, KID and the others compare.

`inception` is the network of the published FID, from torch-fidelity: it takes uint8 images and resizes them as
TensorFlow 1 did. Any callable of an installed package can stand in for it: `package.module:factory`.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.fidelity import torch_fidelity
from hires_gan.evaluation.installed import Installed, find_installed
from hires_gan.evaluation.moments import check_features
from hires_gan.evaluation.perceptual import exact_float32
from hires_gan.evaluation.weights import COMMAND, find_inception, load_inception, load_state, state_checksum
from hires_gan.networks.vgg import OptionNames

INCEPTION = "inception"
DIMENSION = 2048
"""Features of Inception, from its last pooling."""
_RESIZE_INCEPTION = "to 299x299, bilinear as TensorFlow 1 (no antialiasing)"
_RESIZE_OWN = "none: the network is given the images as they are"
_SEED = 0
_CHUNK_CPU, _CHUNK_GPU = 16, 64


@dataclass(frozen=True)
class Features:
    """What a feature network says of images, on the CPU.

    Attributes:
        features: float32 `[n, d]`.
        logits: float32 `[n, k]`, or None if the network gives none.
    """

    features: Tensor
    logits: Tensor | None


Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""From uint8 images `[n, 3, r, r]` on the device to features `[n, d]` and logits `[n, k]` or None."""


class Extractor:
    """A feature network that gives the same for an image whatever it is in a batch with.

    Images go through it in chunks of a fixed size, the last of them filled up: kernels are chosen by shapes, and others
    would round otherwise. float32 is float32 meanwhile, also where the run has allowed TF32. A chunk at 1024x1024 takes
    12 MB for each image before Inception makes it smaller.

    Args:
        network: Computes, on the device, without gradients.
        name: What it is called: `inception`, or `package.module:factory`.
        version: The package that brings it, and its version.
        checksum: sha256 of its weights.
        resize: How it changes the size of images, in words.
        device: Where it is.
        dimension: Values in a feature, if that is known.

    Attributes:
        chunk: Images that go through it at a time; multiples of it waste nothing.
        dimension: None until the first images, for a network of one's own.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        version: str,
        checksum: str,
        resize: str,
        device: torch.device,
        dimension: int | None = None,
    ) -> None:
        self._network = network
        self.name, self.version, self.checksum, self.resize = name, version, checksum, resize
        self.device, self.dimension = device, dimension
        self.chunk = _CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU

    def __call__(self, images: Tensor) -> Features:
        """The features of images.

        Args:
            images: uint8 `[n, 3, r, r]`, n at least 1, on any device.

        Raises:
            Failure: If the images are none of these, or the network cannot take them, or gives something else than
                finite rows of one size.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or len(images) == 0:
            raise Failure(
                f"the feature network {self.name} takes uint8 images [n, 3, r, r], but was given {images.dtype} of "
                f"shape {list(images.shape)}"
            )
        parts = [self._chunk(part) for part in torch.split(images, self.chunk)]
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)

    @torch.no_grad()
    def _chunk(self, images: Tensor) -> Features:
        count = len(images)
        filled = (
            torch.cat((images, images[:1].expand(self.chunk - count, -1, -1, -1))) if count < self.chunk else images
        )
        try:
            with exact_float32(), torch.autocast(self.device.type, enabled=False):
                features, logits = self._network(filled.to(self.device).contiguous())
        except (Failure, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a network of somebody else's does
            side = images.shape[-1]
            raise Failure(
                f"the feature network {self.name} fails on images of {side}x{side} ({error}); take images of another "
                f"size, or another network"
            ) from error
        return Features(self._checked(features[:count], "features"), self._checked_logits(logits, count))

    def _checked(self, rows: Tensor, what: str) -> Tensor:
        rows = rows.float().cpu()
        check_features(rows, f"{what} from {self.name}")
        if what == "features":
            if self.dimension not in (None, rows.shape[1]):
                raise Failure(
                    f"the feature network {self.name} gives {rows.shape[1]} features for images of this size, but "
                    f"{self.dimension} before; compare images of one size"
                )
            self.dimension = rows.shape[1]
        return rows

    def _checked_logits(self, logits: Tensor | None, count: int) -> Tensor | None:
        return None if logits is None else self._checked(logits[:count], "logits")


def open_extractor(
    source: str,
    weights: Path | None,
    download: bool,
    device: torch.device,
    names: OptionNames = COMMAND,
    option: str = "--features",
) -> Extractor:
    """Make a feature network ready.

    Args:
        source: `inception`, or `package.module:factory` of an installed package: something that is called without
            arguments, with torch's random numbers seeded by 0, and returns a module or another callable. That takes
            float32 images `[n, 3, r, r]`, byte / 127.5 - 1, in [-1, 1], at the resolution at which sets are compared,
            and returns features `[n, ...]`, flattened to `[n, d]`, or a pair of features and logits `[n, k]`.
        weights: Inception's published file, or a state dict for a module of one's own; None for torch hub's cache, and
            for a module as its factory makes it.
        download: Whether Inception's weights may be fetched.
        device: Where it shall compute.
        names: What the options for weights are called.
        option: What the option for `source` is called.

    Raises:
        UsageError: If there is no such network, or its weights are missing or others.
        Failure: If a download fails, or the factory does.
    """
    if source == INCEPTION:
        return _inception(find_inception(weights, download, names), names, device)
    if download:
        raise UsageError(f"{names.download} fetches the weights of inception, but {option} is {source}; leave it out")
    return _own(source, find_installed(source, option), weights, device, names, option)


def _inception(path: Path, names: OptionNames, device: torch.device) -> Extractor:
    module = torch_fidelity("feature_extractor_inceptionv3")  # first: without the library, no file helps
    tensors, checksum = load_inception(path, names)
    # Its constructor unpickles a file without restraint: it gets these tensors, and what is written here of them.
    safe = io.BytesIO()
    torch.save(tensors, safe)
    safe.seek(0)
    try:
        network: nn.Module = module.FeatureExtractorInceptionV3(
            INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
        )
    except RuntimeError as error:
        raise UsageError(f"{names.weights}: {path} is of another network ({' '.join(str(error).split())})") from error
    version = f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"
    return Extractor(network.to(device), INCEPTION, version, checksum, _RESIZE_INCEPTION, device, DIMENSION)


def _own(
    source: str, found: Installed, weights: Path | None, device: torch.device, names: OptionNames, option: str
) -> Extractor:
    made = _made(source, found, option)
    state: Mapping[str, Tensor] = {}
    if isinstance(made, nn.Module):
        if weights is not None:
            _load_into(made, weights, source, names)
        made = made.to(device).eval().requires_grad_(False)
        state = made.state_dict()
    elif weights is not None:
        raise UsageError(
            f"{names.weights} is {weights}, but {source} makes a {type(made).__name__} and no torch module that could "
            f"take weights; leave it out"
        )
    # Where there are no weights to be seen, name and version have to stand for what it computes.
    checksum = state_checksum(state or {f"{source} of {found.package}": torch.empty(0)})
    return Extractor(_scaled(made, source), source, found.package, checksum, _RESIZE_OWN, device)


def _made(source: str, found: Installed, option: str) -> Callable[[Tensor], Any]:
    """What the factory makes: the same in every process and run, also if its weights are random ones."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SEED)  # torch.manual_seed would touch the GPUs' generators, too
            made = found.call()
    except Exception as error:  # whatever a factory of somebody else's does
        raise Failure(f"{option} is {source}, which fails when it is called without arguments: {error}") from error
    if not callable(made):
        raise UsageError(
            f"{option} is {source}, which makes a {type(made).__name__}; a torch module, or something else that can be "
            f"called with images, is needed"
        )
    return made  # type: ignore[no-any-return]


def _load_into(module: nn.Module, path: Path, source: str, names: OptionNames) -> None:
    try:
        module.load_state_dict(load_state(path, names.weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{names.weights}: {path} does not hold the weights of {source}: {reason}") from error


def _scaled(network: Callable[[Tensor], Any], source: str) -> Network:
    """A network for images in [-1, 1] as one for bytes."""

    def scaled(images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = network(images.float() / 127.5 - 1)
        parts = found if isinstance(found, tuple) else (found, None)
        if not _is_output(parts, len(images)):
            raise Failure(
                f"the feature network {source} returns {_described(found)} for {len(images)} images; a tensor "
                f"[{len(images)}, ...] of features is needed, or a pair of that and of logits"
            )
        return parts[0].flatten(1), None if parts[1] is None else parts[1].flatten(1)

    return scaled


def _is_output(parts: tuple[Any, ...], count: int) -> bool:
    def is_rows(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() >= 2 and len(value) == count and value.is_floating_point()

    return len(parts) == 2 and is_rows(parts[0]) and (parts[1] is None or is_rows(parts[1]))


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} of shape {list(found.shape)}"
    if isinstance(found, tuple):
        return f"a tuple of {len(found)}"
    return f"a {type(found).__name__}"
