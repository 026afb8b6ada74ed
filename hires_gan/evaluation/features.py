"""Feature networks: from images as they are stored to what FID, KID and the others compare.

`inception` is the network of the published FID and `vgg16` the one that precision and recall are published with, both
from torch-fidelity: they take uint8 images and resize them as TensorFlow 1 did. Any callable of an installed package
can stand in for them: `package.module:factory`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hires_gan.errors import Failure, UsageError
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.fidelity import torch_fidelity
from hires_gan.evaluation.moments import check_features
from hires_gan.evaluation.own_network import Network, open_own
from hires_gan.evaluation.perceptual import exact_float32
from hires_gan.evaluation.probe import differ, probe_images, sketch, sketch_digest
from hires_gan.evaluation.weights import COMMAND, find_inception, load_inception, load_vgg16
from hires_gan.networks.published import OptionNames

INCEPTION, VGG16 = "inception", "vgg16"
PUBLISHED = (INCEPTION, VGG16)
"""Networks that are known by name."""
DIMENSION = 2048
"""Features of Inception, from its last pooling."""
_VGG16_DIMENSION = 4096
_RESIZE_OWN = "none: the network is given the images as they are"
_SIDES = {INCEPTION: 299, VGG16: 224}

MOST_ON_CPU, MOST_ON_GPU = 16, 64
"""Images that go through a network at a time."""
PIXELS = 2**23
"""And no more pixels than these: 64 images of 299x299, 32 of 512x512, 8 of 1024x1024. A first layer of 64 maps, as
VGG16 has, makes 2 GiB of them."""


@dataclass(frozen=True)
class Features:
    """What a feature network says of images, on the CPU.

    Attributes:
        features: float32 `[n, d]`.
        logits: float32 `[n, k]`, or None if the network gives none.
    """

    features: Tensor
    logits: Tensor | None


class Extractor:
    """A feature network that gives the same for an image whatever it is in a batch with.

    Images go through it in chunks whose size follows from the images' and from the kind of device alone, the last of
    them filled up: kernels are chosen by shapes, and others would round otherwise. float32 is float32 meanwhile, also
    where the run has allowed TF32. A chunk of 64 images of 1024x1024 takes 0.8 GB before Inception makes it smaller.

    Args:
        network: Computes, on the device, without gradients.
        name: What it is called: `inception`, `vgg16` or `package.module:factory`.
        version: The package that brings it, and its version.
        checksum: sha256 of its weights.
        resize: How it changes the size of images, in words.
        device: Where it is.
        dimension: Values in a feature, if that is known.
        side: Images are brought to this side before its first layer; None where it is given them as they are.
        random: A weight that is drawn at random, by its name, where there is one.

    Attributes:
        most: Images that go through it at a time at the most.
        dimension: None until the first images, for a network of one's own.
        sketch: A few numbers that are part of the checksum where weights cannot be seen; else nothing.
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
        side: int | None = None,
        random: str | None = None,
    ) -> None:
        self._network = network
        self.name, self.version, self.checksum, self.resize = name, version, checksum, resize
        self.device, self.dimension, self.random = device, dimension, random
        self._side = side
        self.sketch: list[float] = []
        self.most = MOST_ON_CPU if device.type == "cpu" else MOST_ON_GPU

    def chunk(self, side: int) -> int:
        """How many images of a side go through it at a time: multiples of that waste nothing.

        A power of two, so that the chunks in which images are made can be cut evenly.
        """
        fitting = max(1, PIXELS // (self._side or side) ** 2)
        return min(self.most, 1 << (fitting.bit_length() - 1))

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
        size = self.chunk(images.shape[-1])
        parts = [self._chunk(part, size) for part in torch.split(images, size)]
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)

    def probe(self, side: int, seen: bool) -> None:
        """Try the network on a few images, and let what it says of them stand for weights that cannot be seen.

        Args:
            side: Of the images that it will be given, in pixels.
            seen: Whether all of its weights are in its checksum.

        Raises:
            Failure: If it cannot take such images, or gives other features for the same image.
        """
        try:
            once, again = (self._chunk(images, len(images)).features for images in probe_images(side))
        except NotFinite:  # noise is no photograph: what is not finite for it may be for those
            return
        if differ(once[0], again[0]):
            raise Failure(
                f"the feature network {self.name} gives other features for the same images: put it into eval(), and "
                f"let it draw nothing at random, nor look from one image of a batch at another"
            )
        if not seen:
            self.sketch = sketch(once)
            self.checksum = hashlib.sha256(f"{self.checksum} {sketch_digest(self.sketch)}".encode()).hexdigest()

    @torch.no_grad()
    def _chunk(self, images: Tensor, size: int) -> Features:
        count, side = len(images), images.shape[-1]
        filled = torch.cat((images, images[:1].expand(size - count, -1, -1, -1))) if count < size else images
        try:
            with exact_float32(), torch.autocast(self.device.type, enabled=False):
                features, logits = self._network(filled.to(self.device).contiguous())
        except (Failure, torch.OutOfMemoryError):  # the latter is told by whoever evaluates
            raise
        except Exception as error:  # whatever a network of somebody else's does
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
    side: int | None = None,
) -> Extractor:
    """Make a feature network ready.

    Args:
        source: `inception`, `vgg16`, or `package.module:factory` of an installed package: something that is called
            without arguments, with torch's random numbers seeded by 0, and returns a module or another callable. That
            takes float32 images `[n, 3, r, r]`, byte / 127.5 - 1, in [-1, 1], at the resolution at which sets are
            compared, and returns features `[n, ...]`, flattened to `[n, d]`, or a pair of features and logits `[n, k]`.
        weights: The published file, or a state dict for a module of one's own; None for torch hub's cache, and for a
            module as its factory makes it.
        download: Whether published weights may be fetched.
        device: Where it shall compute.
        names: What the options for weights are called.
        option: What the option for `source` is called.
        side: Of the images that sets are compared at, in pixels: a network of one's own is tried on a few of that size
            (`Extractor.probe`). None where that is not known: then it is not tried.

    Raises:
        UsageError: If there is no such network, or its weights are missing or others.
        Failure: If a download fails, or the factory does; if the network does not stand the trial.
    """
    if source == INCEPTION:
        return _published(source, _inception(find_inception(weights, download, names), names), device)
    if source == VGG16:
        return _published(source, _vgg16(weights, download, names), device)
    if download:
        raise UsageError(f"{names.download} fetches published weights, but {option} is {source}; leave it out")
    own = open_own(source, weights, device, names, option)
    made = Extractor(own.network, source, own.package, own.checksum, _RESIZE_OWN, device, random=own.random)
    if side is not None:
        made.probe(side, own.seen)
    return made


def _published(name: str, opened: tuple[nn.Module, str, int], device: torch.device) -> Extractor:
    network, checksum, dimension = opened
    side = _SIDES[name]
    resize = f"to {side}x{side}, bilinear as TensorFlow 1 (no antialiasing)"
    version = f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"
    return Extractor(_both(network.to(device)), name, version, checksum, resize, device, dimension, side)


def _both(network: nn.Module) -> Network:
    """What torch-fidelity's networks give, a tuple of what they were asked for, as features and logits."""

    def both(images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = network(images)
        return found[0], found[1] if len(found) > 1 else None

    return both


def _inception(path: Path, names: OptionNames) -> tuple[nn.Module, str, int]:
    module = torch_fidelity("feature_extractor_inceptionv3")  # first: without the library, no file helps
    tensors, checksum = load_inception(path, names)
    with _of_this_network(f"{names.weights}: {path}"):
        network: nn.Module = module.FeatureExtractorInceptionV3(
            INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=_safe(tensors)
        )
    return network, checksum, DIMENSION


def _vgg16(path: Path | None, download: bool, names: OptionNames) -> tuple[nn.Module, str, int]:
    """With what comes behind the rectifier of the second fully connected layer: torch-fidelity's choice, too."""
    module = torch_fidelity("feature_extractor_vgg16")
    tensors, checksum = load_vgg16(path, download, names)
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}  # one copy of 0.5 GB is enough
    with _of_this_network(f"{names.weights}: {path or 'the file in the cache'}"), torch.device("meta"):
        network: nn.Module = module.FeatureExtractorVGG16(
            VGG16, ["fc2_relu"], feature_extractor_weights_path=_safe(shapes)
        )
    kept = {name: tensors[name.removeprefix("model.")] for name in network.state_dict()}
    network.load_state_dict(kept, assign=True)
    return network, checksum, _VGG16_DIMENSION


def _safe(tensors: Mapping[str, Tensor]) -> io.BytesIO:
    """A file of tensors that was written here: torch-fidelity's constructors unpickle theirs without restraint."""
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    file.seek(0)
    return file


@contextlib.contextmanager
def _of_this_network(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UsageError(f"{what} is of another network ({' '.join(str(error).split())})") from error
