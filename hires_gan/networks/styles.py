"""What StyleGAN and StyleGAN2 share around their synthesis networks: styles, their average, and the constant noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from hires_gan.networks.mapping import MappingNetwork


class ConstantNoise(nn.Module):
    """The noise of each layer where none is given: N(0, 1), drawn once, part of the state.

    Args:
        sides: The resolution of each layer that takes noise, ascending.

    Attributes:
        shapes: The height and width of each layer's noise.
    """

    def __init__(self, sides: Iterable[int]) -> None:
        super().__init__()
        self.names: list[str] = []
        self.shapes: list[tuple[int, int]] = []
        for side in sides:
            self.names.append(f"{side}_{self.shapes.count((side, side))}")
            self.shapes.append((side, side))
            self.register_buffer(self.names[-1], torch.randn(side, side))

    def total_at(self, resolution: int) -> int:
        """How many values all layers up to a resolution take together."""
        return sum(h * w for h, w in self.shapes if h <= resolution)

    def tensors(self) -> list[Tensor]:
        """The constant noise, `[1, 1, h, w]` for each layer."""
        return [self.get_buffer(name)[None, None] for name in self.names]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut one row of numbers per sample into the noise of the layers, from the lowest resolution on.

        Args:
            flat: `[n, total]`, with what all layers take, or the first of them.

        Returns:
            `[n, 1, h, w]` for each of these layers.

        Raises:
            ValueError: If the row ends within a layer's noise.
        """
        sizes = [h * w for h, w in self.shapes]
        totals = list(accumulate(sizes))
        if flat.ndim != 2 or flat.shape[1] not in totals:
            raise ValueError(f"the noise is {list(flat.shape)}; [n, total] is allowed, with a total of one of {totals}")
        layers = totals.index(flat.shape[1]) + 1
        parts = torch.split(flat, sizes[:layers], 1)
        return [part.reshape(-1, 1, h, w) for part, (h, w) in zip(parts, self.shapes, strict=False)]

    def checked(self, noise: Sequence[Tensor] | None, samples: int, layers: int, dtype: torch.dtype) -> list[Tensor]:
        """The noise that is given, in a dtype, or the constant one.

        Args:
            noise: For each layer `[samples or 1, 1, h, w]`; None for the constant noise.
            samples: Of the batch.
            layers: How many layers are asked for; what is given for more is left alone.
            dtype: Of the result.

        Raises:
            ValueError: If there is noise for too few or too many layers, or of another shape.
        """
        given = self.tensors() if noise is None else list(noise)
        if not layers <= len(given) <= len(self.shapes):
            raise ValueError(f"there is noise for {len(given)} layers; {layers} to {len(self.shapes)} are allowed")
        for number, (part, (h, w)) in enumerate(zip(given[:layers], self.shapes, strict=False)):
            if tuple(part.shape[1:]) != (1, h, w) or part.shape[0] not in (1, samples):
                raise ValueError(f"noise {number} is {list(part.shape)}; [{samples} or 1, 1, {h}, {w}] is allowed")
        return [part.to(dtype) for part in given[:layers]]


class StyleGenerator(nn.Module):
    """A mapping network, the running mean of its output, and a synthesis network that takes a style for each layer.

    Args:
        mapping: Latents to W.
        num_ws: How many layers take a style.
        resolution: Of the images.

    Attributes:
        w_average: `[w_size]`, the running mean of W, towards which styles are truncated; see `track_w`.
    """

    synthesis: nn.Module
    w_average: Tensor

    def __init__(self, mapping: MappingNetwork, num_ws: int, resolution: int) -> None:
        super().__init__()
        self.mapping = mapping
        self.latent_size, self.w_size, self.classes = mapping.latent_size, mapping.w_size, mapping.classes
        self.num_ws, self.resolution = num_ws, resolution
        self.register_buffer("w_average", torch.zeros(self.w_size))

    def forward(
        self, latents: Tensor, labels: Tensor | None = None, truncation: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Generate images with the constant noise.

        Args:
            latents: `[n, latent_size]`, N(0, 1), float32 or float64.
            labels: int64 `[n]` in [0, classes), if the generator is conditional.
            truncation: See `truncate`.
            cutoff: See `truncate`.

        Returns:
            `[n, 3, r, r]` in about [-1, 1], in the dtype of the latents.

        Raises:
            ValueError: If labels are missing for a conditional generator, or given to an unconditional one.
        """
        images: Tensor = self.synthesis(self.truncate(self.styles(latents, labels), truncation, cutoff))
        return images

    def styles(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """`[n, latent_size]`, and int64 `[n]` -> `[n, num_ws, w_size]`: the same style for every layer."""
        w: Tensor = self.mapping(latents, labels)
        return w[:, None].expand(-1, self.num_ws, -1)

    def truncate(self, ws: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Draw styles towards their mean: `w_average + truncation * (w - w_average)` (Karras et al. 2019, appendix B).

        Args:
            ws: `[n, num_ws, w_size]`.
            truncation: 1 leaves styles as they are, 0 makes them the mean.
            cutoff: Only the first so many layers are truncated; None for all.
        """
        if truncation == 1.0:
            return ws
        drawn = torch.lerp(self.w_average.to(ws.dtype), ws, truncation)
        if cutoff is None:
            return drawn
        return torch.cat((drawn[:, :cutoff], ws[:, cutoff:]), 1)

    def mix(self, ws: Tensor, other: Tensor, cutoffs: Tensor) -> Tensor:
        """Take the styles of the last layers from elsewhere (Karras et al. 2019, section 3.1).

        Args:
            ws: `[n, num_ws, w_size]`.
            other: Likewise.
            cutoffs: int64 `[n]`: each sample's first layer that takes `other`; `num_ws` and more for none.
        """
        first = torch.arange(self.num_ws, device=ws.device) < cutoffs[:, None]
        return torch.where(first[:, :, None], ws, other)

    @torch.no_grad()
    def track_w(self, mean: Tensor, beta: float) -> None:
        """Move the running mean of W: `beta` of it stays.

        Args:
            mean: `[w_size]`, the mean of W over the global batch.
            beta: In [0, 1].
        """
        self.w_average.lerp_(mean.to(self.w_average), 1.0 - beta)


def check_styles(ws: Tensor, num_ws: int, w_size: int) -> None:
    """Refuse anything but `[n, num_ws, w_size]`."""
    if ws.ndim != 3 or ws.shape[1:] != (num_ws, w_size):
        raise ValueError(f"styles are {list(ws.shape)}; [n, {num_ws}, {w_size}] is allowed")


def check_images(images: Tensor, resolution: int) -> None:
    """Refuse anything but `[n, 3, resolution, resolution]`."""
    if images.ndim != 4 or images.shape[1:] != (3, resolution, resolution):
        raise ValueError(f"images are {list(images.shape)}; [n, 3, {resolution}, {resolution}] is allowed")
