"""Which parameter of NVlabs' StyleGAN2 is which of ours.

Both store weights as they learn, N(0, 1) at first, and multiply them at run time by 1 / sqrt(fan-in), where a layer has
a gain at all; mapping layers store them divided by the learning rate multiplier of 0.01, and so do we. So every tensor
is taken as it is, but for one: the weights of the convolution that doubles the resolution. They are stored for a
convolution in the sense of mathematics, the kernel turned by half a turn against the correlation that torch calls a
convolution, because they are meant for a transposed convolution, which scatters each input pixel over the kernel.
Every other kernel, also those that halve the resolution, is stored for a correlation. Ours are all for correlations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from hires_gan.networks.growth import resolutions_to

Architecture = Literal["resnet", "orig"]


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors comes from.

    Attributes:
        name: Theirs.
        turned: Whether the kernel is turned by half a turn.
    """

    name: str
    turned: bool = False


def generator_names(resolution: int, mapping_layers: int, conditional: bool) -> dict[str, Origin]:
    """By our name, the tensors of a generator with the architecture "skip"."""
    names = {"w_average": Origin("mapping.w_avg"), "synthesis.constant": Origin("synthesis.b4.const")}
    names |= _mapping(mapping_layers, conditional)
    for r in resolutions_to(resolution):
        theirs = f"synthesis.b{r}"
        ours = f"synthesis.blocks.{r}"
        for number, layer in enumerate(["conv1"] if r == 4 else ["conv0", "conv1"]):
            own, other = f"{ours}.layers.{number}", f"{theirs}.{layer}"
            names |= _same(own, other, ("affine.weight", "affine.bias", "noise_strength", "bias"))
            names[f"{own}.weight"] = Origin(f"{other}.weight", turned=layer == "conv0")
            names[f"synthesis.noise.{r}_{number}"] = Origin(f"{other}.noise_const")
        names |= _same(f"{ours}.to_rgb", f"{theirs}.torgb", ("affine.weight", "affine.bias", "weight", "bias"))
    return names


def discriminator_names(
    resolution: int, architecture: Architecture, mapping_layers: int, conditional: bool
) -> dict[str, Origin]:
    """By our name, the tensors of a discriminator."""
    both = ("weight", "bias")
    names = _same("from_rgb", f"b{resolution}.fromrgb", both)
    for r, _ in pairwise(reversed(resolutions_to(resolution))):
        names |= _same(f"blocks.{r}.first", f"b{r}.conv0", both)
        names |= _same(f"blocks.{r}.second", f"b{r}.conv1", both)
        if architecture == "resnet":
            names |= _same(f"blocks.{r}.shortcut", f"b{r}.skip", ("weight",))
    for own, other in (("convolution", "b4.conv"), ("dense", "b4.fc"), ("output", "b4.out")):
        names |= _same(own, other, both)
    return names | (_mapping(mapping_layers, True) if conditional else {})


def _mapping(layers: int, conditional: bool) -> dict[str, Origin]:
    names = _same("mapping.embedding", "mapping.embed", ("weight", "bias")) if conditional else {}
    for number in range(layers):
        names |= _same(f"mapping.layers.{number}", f"mapping.fc{number}", ("weight", "bias"))
    return names


def _same(ours: str, theirs: str, tensors: Iterable[str]) -> dict[str, Origin]:
    return {f"{ours}.{tensor}": Origin(f"{theirs}.{tensor}") for tensor in tensors}
