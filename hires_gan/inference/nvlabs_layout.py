"""What kind of StyleGAN2 a file of NVlabs holds: told from the shapes of its tensors, and held against what it says.

The sizes follow from the shapes. What no shape shows (activations, gains, filters, the architecture of the blocks) the
modules say in attributes; where one says something else than what our networks compute, the file is refused, since
its images would come out wrong without a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hires_gan.errors import Failure
from hires_gan.inference.nvlabs_file import ForeignNetwork
from hires_gan.inference.nvlabs_names import Architecture
from hires_gan.networks.growth import resolutions_to
from hires_gan.networks.stylegan2 import resampling_filter

_HIGHEST = 4096
_LR_MULTIPLIER = 0.01


@dataclass(frozen=True)
class GeneratorLayout:
    """The sizes of a generator; as the keys of the `recipe` block say them.

    Attributes:
        noise: Whether its layers take noise.
        half: How many of the highest resolutions it computed in half precision.
    """

    resolution: int
    latent_size: int
    w_size: int
    classes: int
    mapping_layers: int
    fmap_base: int
    fmap_max: int
    noise: bool
    half: int


@dataclass(frozen=True)
class DiscriminatorLayout:
    """The sizes of a discriminator; as the keys of the `recipe` block say them."""

    resolution: int
    architecture: Architecture
    classes: int
    mapping_layers: int
    fmap_base: int
    fmap_max: int
    group_size: int


def generator_layout(network: ForeignNetwork) -> GeneratorLayout:
    """The sizes of a generator of StyleGAN2 with summed images ("skip").

    Raises:
        Failure: If it is another one, or says of itself what ours do not compute.
    """
    _refuse_stylegan3(network)
    sides = _sides(network, r"synthesis\.b(\d+)\.")
    _check_architecture(network, {"skip"}, "a generator that sums the images of all resolutions")
    channels = {r: _size(network, f"synthesis.b{r}.torgb.weight", 1) for r in sides}
    w_size = _size(network, "mapping.w_avg", 0)
    classes, embedded, layers = _mapping(network)
    base, most = _feature_maps(channels, network.what)
    _check_attributes(network)
    return GeneratorLayout(
        resolution=sides[-1],
        latent_size=_size(network, "mapping.fc0.weight", 1) - embedded,
        w_size=w_size,
        classes=classes,
        mapping_layers=layers,
        fmap_base=base,
        fmap_max=most,
        noise="synthesis.b4.conv1.noise_strength" in network.tensors,
        half=sum(network.attributes[f"synthesis.b{r}."].get("use_fp16") is True for r in sides),
    )


def discriminator_layout(network: ForeignNetwork) -> DiscriminatorLayout:
    """The sizes of a discriminator, residual or plain.

    Raises:
        Failure: If it is another one, or says of itself what ours do not compute.
    """
    sides = _sides(network, r"b(\d+)\.")
    _check_architecture(network, {"resnet", "orig"}, "a residual or plain discriminator")
    channels = {r: _size(network, f"b{r}.conv0.weight", 0) for r in sides[1:]}
    channels[4] = _size(network, "b4.conv.weight", 0)
    classes, _, layers = _mapping(network) if "mapping.embed.weight" in network.tensors else (0, 0, 0)
    base, most = _feature_maps(channels, network.what)
    _check_attributes(network)
    residual = f"b{sides[-1]}.skip.weight" in network.tensors
    group = network.attributes.get("b4.mbstd.", {}).get("group_size", 4)
    if type(group) is not int or group < 1:
        raise _other(network, f"takes the standard deviation over groups of {_shown(group)}", "numbers of 1 or more")
    return DiscriminatorLayout(sides[-1], "resnet" if residual else "orig", classes, layers, base, most, group)


def _refuse_stylegan3(network: ForeignNetwork) -> None:
    layers = [name for name in network.attributes if re.fullmatch(r"synthesis\.(input|L\d+_\d+_\d+)\.", name)]
    if layers:
        raise Failure(
            f"{network.what} is a generator of StyleGAN3 (configuration T or R: it has {layers[0].rstrip('.')}), whose "
            "layers are others; checkpoints of StyleGAN2 are imported, also those that stylegan3 trains with "
            "--cfg=stylegan2"
        )


def _sides(network: ForeignNetwork, pattern: str) -> list[int]:
    """4, 8, ... up to the resolution of the images."""
    found = {int(match[1]) for match in (re.match(pattern, name) for name in network.tensors) if match}
    highest = max(found, default=0)
    if not 8 <= highest <= _HIGHEST or found != {2**level for level in range(2, highest.bit_length())}:
        names = ", ".join(sorted(network.tensors)[:3]) or "none"
        raise Failure(
            f"{network.what} is no network of StyleGAN2: it has no blocks for 4x4, 8x8 and so on up to its images, but "
            f"a {network.class_name:.40} with the tensors {names:.200}..."
        )
    return resolutions_to(highest)


def _size(network: ForeignNetwork, name: str, axis: int) -> int:
    shape = network.tensors[name].shape if name in network.tensors else ()
    if axis >= len(shape):
        raise Failure(f"{network.what} has no {name} of StyleGAN2's shape; another network cannot be imported")
    return shape[axis]


def _mapping(network: ForeignNetwork) -> tuple[int, int, int]:
    """Classes, features of their embedding, and dense layers."""
    layers = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in network.tensors)
    if "mapping.embed.weight" not in network.tensors:
        return 0, 0, layers
    return _size(network, "mapping.embed.weight", 1), _size(network, "mapping.embed.weight", 0), layers


def _feature_maps(channels: Mapping[int, int], what: str) -> tuple[int, int]:
    """Base and most, such that there are `min(base // r, most)` maps at each resolution r; the least such base."""
    most = max(channels.values())
    base = max(maps * r for r, maps in channels.items())
    if any(min(base // r, most) != maps for r, maps in channels.items()):
        widths = ", ".join(f"{maps} at {r}" for r, maps in sorted(channels.items()))
        raise Failure(
            f"{what} has feature maps ({widths:.200}) that are not min(base / resolution, most) for any base; such a "
            "network cannot be built here"
        )
    return base, most


def _check_architecture(network: ForeignNetwork, known: set[str], words: str) -> None:
    for name, attributes in network.attributes.items():
        found = attributes.get("architecture")
        if found is not None and _shown(found) not in known:
            raise _other(network, f"has the architecture {_shown(found)} in {name.rstrip('.')}", words)


def _check_attributes(network: ForeignNetwork) -> None:
    """Hold what the modules say of themselves against what ours compute."""
    for name, attributes in network.attributes.items():
        for found, allowed in _differences(name.rstrip("."), attributes):
            raise _other(network, f"has {found} in {name.rstrip('.')}", allowed)
    taps = resampling_filter()
    ours = torch.outer(taps, taps)
    for name, stored in network.tensors.items():
        same = stored.shape == tuple(ours.shape) and torch.allclose(stored.tensor().float(), ours, atol=1e-6)
        if name.endswith("resample_filter") and not same:
            raise _other(network, f"has another filter than [1, 3, 3, 1] in {name}", "[1, 3, 3, 1]")


def _differences(name: str, attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a module says that ours do not compute, and what they do; only what it says counts."""
    last = name.rpartition(".")[2]
    activation = attributes.get("activation")
    linear = last in ("affine", "embed", "out", "skip")
    if activation is not None and activation != ("linear" if linear else "lrelu"):
        yield f"the activation {_shown(activation)}", "linear" if linear else "lrelu"
    multiplier = _LR_MULTIPLIER if re.fullmatch(r"mapping\.fc\d+", name) else 1.0
    gain = attributes.get("bias_gain")
    if isinstance(gain, float | int) and not math.isclose(gain, multiplier, rel_tol=1e-6):
        yield f"the learning rate multiplier {gain:g}", f"{multiplier:g}"
    if attributes.get("img_channels", 3) != 3:
        yield f"{_shown(attributes['img_channels'])} channels of the image", "3"
    if last == "mbstd" and attributes.get("num_channels", 1) != 1:
        yield f"{_shown(attributes['num_channels'])} channels of standard deviations", "1"


def _shown(value: Any) -> str:
    """A plain value in a few letters; of anything else its kind, since showing it may take for ever."""
    return f"{value}"[:40] if type(value) in (str, int, float, bool) else f"a {type(value).__name__}"


def _other(network: ForeignNetwork, found: str, allowed: str) -> Failure:
    return Failure(f"{network.what} {found}; {allowed} is what our networks compute, so it cannot be imported")
