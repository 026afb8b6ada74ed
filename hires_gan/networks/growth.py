"""How wide networks are at each resolution, and how far those that grow have grown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn

from hires_gan.networks.blending import Alpha, fades


@dataclass(frozen=True)
class Growth:
    """How far a network has grown.

    Attributes:
        resolution: The resolution of the images now.
        alpha: The share of the newest block, in [0, 1]; below 1 the output of the block before is blended in. In a
            step of a fade it may be a tensor, as `Step.alpha` is: such a growth is neither compared nor printed.
    """

    resolution: int
    alpha: Alpha = 1.0

    @property
    def fades(self) -> bool:
        """Whether the block before is blended in."""
        return fades(self.alpha)

    def blending(self, alpha: Tensor | None) -> Growth:
        """The same, with the alpha of a step if it has one."""
        return self if alpha is None else replace(self, alpha=alpha)

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ... up to the present resolution."""
        return resolutions_to(self.resolution)


@dataclass(frozen=True)
class Width:
    """How many feature maps a network has at each resolution.

    Attributes:
        base: `2 * base / resolution` maps,
        most: but never more than this.
    """

    base: int = 8192
    most: int = 512

    def at(self, resolution: int) -> int:
        """Feature maps at `resolution`; at least 1."""
        return max(1, min(2 * self.base // resolution, self.most))


def resolutions_to(last: int) -> list[int]:
    """4, 8, ... up to `last`.

    Raises:
        ValueError: If `last` is no power of two, or below 4.
    """
    if last < 4 or last & (last - 1):
        raise ValueError(f"the resolution is {last}; powers of two from 4 on are allowed")
    return [2**level for level in range(2, int(math.log2(last)) + 1)]


def live_at(network: nn.Module, growth: Growth, rgb: str, always: tuple[str, ...], blocks: str = "blocks") -> list[str]:
    """The names of the parameters that the output at a growth depends on.

    Args:
        network: Whose parameters are asked for.
        growth: How far it has grown.
        rgb: The name of the layers, by resolution, between images and feature maps.
        always: Beginnings of the names that live at every growth.
        blocks: The name of the blocks, by resolution.
    """
    ends = {growth.resolution} | ({growth.resolution // 2} if growth.fades else set())
    prefixes = (
        *always,
        *(f"{rgb}.{r}." for r in ends),
        *(f"{blocks}.{r}." for r in growth.resolutions),
    )
    return [name for name, _ in network.named_parameters() if name.startswith(prefixes)]
