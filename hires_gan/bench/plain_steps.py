"""Steps without something that runs always have: what `bench train --without` leaves out, and where that cannot be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hires_gan.errors import UsageError
from hires_gan.ops.leaving_out import PARTS
from hires_gan.randomness import Purpose, RandomSource
from hires_gan.recipes.passes import whole_groups
from hires_gan.recipes.progressive_settings import ProgressiveSettings
from hires_gan.recipes.stylegan_settings import StyleGANSettings
from hires_gan.training.levers import pulled
from hires_gan.training.settings import Plan


def lacking(part: str, plan: Plan, micro: int) -> str:
    """Why a configuration has not got a part with so many images at once; nothing if it has."""
    recipe = plan.recipe
    if part == "epilogue" and isinstance(recipe, ProgressiveSettings | StyleGANSettings):
        return "the family's convolutions are not modulated, and have no epilogue"
    if part == "one-pass" and isinstance(recipe, StyleGANSettings):
        return "the family differentiates the scores of reals in the pass that gives them, and scores fakes in another"
    if part == "one-pass" and isinstance(recipe, ProgressiveSettings) and recipe.loss.apart:
        return "r1 and r2 differentiate the scores of their own images, and each kind has a pass of its own then"
    if part == "one-pass" and not whole_groups(micro, recipe.group_size):
        return (
            f"{micro} images at once are no whole groups of {recipe.group_size}, of which one would hold reals and "
            "fakes: they go one after the other as it is"
        )
    return ""


def check_names(parts: Iterable[str]) -> None:
    """See that there are such parts.

    Raises:
        UsageError: There is one that is not.
    """
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"--without is {part!r}; {', '.join(PARTS)} are allowed")


def check_without(parts: Collection[str], plan: Plan, device: torch.device, micros: Collection[int]) -> None:
    """See that parts can be left out.

    Args:
        parts: As `--without` names them.
        plan: The configuration.
        device: Where the steps are computed.
        micros: How many images go through the networks at once, one measurement after the other.

    Raises:
        UsageError: The configuration has not got one, or what would be recorded or compiled draws on the CPU.
    """
    for part in parts:
        for micro in micros:
            if reason := lacking(part, plan, micro):
                raise UsageError(f"--without is {part}: {reason}; leave it away")
    levers = pulled(plan.levers, plan.performance, device.type)
    if "device-draws" in parts and levers.whole:
        raise UsageError(
            "--without is device-draws, and what is recorded or compiled would keep the first numbers that come from "
            "the CPU; set levers.graphs=false levers.compile=none as well"
        )


class TorchRandom(RandomSource):
    """Numbers of the same kinds from torch's own generators.

    They are others than `RandomSource` gives, and depend on the order in which they are asked for.

    Args:
        seed: Of the numbers.
        device: Where they are drawn, to be copied to where the samples are; None: there, by the generator that torch
            has for that device: all of torch's own are seeded. CUDA graphs let it go on with every replay.
    """

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        super().__init__(seed)
        self._device = device
        self._generator = None if device is None else torch.Generator(device).manual_seed(seed)
        if device is None:
            torch.manual_seed(seed)

    def bits(self, purpose: Purpose, samples: Tensor, count: int) -> Tensor:
        """int64 `[n, count]` in [0, 2^32)."""
        return torch.randint(2**32, (len(samples), count), **self._drawn(samples)).to(samples.device)

    def uniform(self, purpose: Purpose, samples: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 `[n, *shape]` in [0, 1)."""
        return torch.rand(len(samples), *shape, **self._drawn(samples)).to(samples.device)

    def normal(self, purpose: Purpose, samples: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 `[n, *shape]` from N(0, 1)."""
        return torch.randn(len(samples), *shape, **self._drawn(samples)).to(samples.device)

    def _drawn(self, samples: Tensor) -> dict[str, Any]:
        return {"generator": self._generator, "device": self._device or samples.device}


def lay_out_contiguously(networks: Iterable[nn.Module]) -> None:
    """Weights as a program has them that never heard of channels_last."""
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@torch.no_grad()
def follow_one_by_one(average: nn.Module, network: nn.Module, decay: float) -> None:
    """What `hires_gan.ema.update_average` does, with a call for each parameter."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)


def read(means: Mapping[str, Tensor]) -> None:
    """Wait for every value, as a program does that logs all losses at every step."""
    for mean in means.values():
        mean.tolist()
