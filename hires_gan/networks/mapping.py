"""The mapping network: latents, labels or both to the intermediate latent space W (Karras et al. 2019, section 2)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.networks.layers import LRELU_GAIN, EqualizedLinear, pixel_norm

Family = Literal["stylegan", "stylegan2"]


class MappingNetwork(nn.Module):
    """Dense layers with a leaky rectifier of slope 0.2 behind each.

    In StyleGAN (2018), the latent vector and the class's embedding, as long as it and without a bias, are concatenated
    and normalised together; He's gain is a factor of the weights. In StyleGAN2, each is normalised by itself, the
    embedding is a dense layer with a bias, and the gain is a factor of what is behind the rectifier, so that it acts on
    the bias too.

    Args:
        latent_size: Dimensions of a latent vector; 0 for a mapping of labels alone, as a projection discriminator has.
        w_size: Dimensions of W.
        classes: Number of classes; 0 for an unconditional network.
        layers: Dense layers, at least 1.
        features: Features between the layers; by default as many as W has dimensions.
        lr_multiplier: How much slower than the rest of the generator these layers learn (not the embedding).
        act: "lrelu", or "linear".
        family: Which of the two.
    """

    def __init__(
        self,
        latent_size: int,
        w_size: int,
        classes: int = 0,
        layers: int = 8,
        features: int | None = None,
        lr_multiplier: float = 0.01,
        act: str = "lrelu",
        family: Family = "stylegan2",
    ) -> None:
        super().__init__()
        if latent_size + classes < 1 or layers < 1:
            raise ValueError(
                f"a mapping of {latent_size} latents and {classes} classes in {layers} layers; at least one latent or "
                "class, and one layer, is allowed"
            )
        self.latent_size, self.w_size, self.classes = latent_size, w_size, classes
        self.together = family == "stylegan"
        self.embedding = _embedding(latent_size, w_size, classes, self.together)
        embedded = self.embedding.weight.shape[0] if self.embedding else 0
        sizes = [latent_size + embedded, *[features or w_size] * (layers - 1), w_size]
        gain = LRELU_GAIN if act == "lrelu" else 1.0
        gains = (gain, 1.0) if self.together else (1.0, gain)  # of the weights, and behind the rectifier
        self.layers = nn.ModuleList(
            EqualizedLinear(inputs, outputs, gains[0], act=act, act_gain=gains[1], lr_multiplier=lr_multiplier)
            for inputs, outputs in pairwise(sizes)
        )

    def forward(self, latents: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """Map to W.

        Args:
            latents: `[n, latent_size]`, N(0, 1), float32 or float64; None where `latent_size` is 0.
            labels: int64 `[n]` in [0, classes), if the network is conditional.

        Returns:
            `[n, w_size]`, in the dtype of the latents; of the parameters where there are none.

        Raises:
            ValueError: If latents or labels are missing, or given where none belong, or of another size.
        """
        self._check(latents, labels)
        parts = [] if latents is None else [latents]
        if self.embedding is not None:
            assert labels is not None
            dtype = self.embedding.weight.dtype if latents is None else latents.dtype
            parts.append(self.embedding(F.one_hot(labels, self.classes).to(dtype)))
        x = pixel_norm(torch.cat(parts, 1)) if self.together else torch.cat([pixel_norm(part) for part in parts], 1)
        for layer in self.layers:
            x = layer(x)
        return x

    def _check(self, latents: Tensor | None, labels: Tensor | None) -> None:
        check_labels(labels, self.classes)
        if (latents is not None) != (self.latent_size > 0):
            raise ValueError(
                f"latents {'given' if latents is not None else 'missing'}; a latent has {self.latent_size}"
            )
        if latents is not None and (latents.ndim != 2 or latents.shape[1] != self.latent_size):
            raise ValueError(f"latents are {list(latents.shape)}; [n, {self.latent_size}] is allowed")


def _embedding(latent_size: int, w_size: int, classes: int, together: bool) -> EqualizedLinear | None:
    """Classes as vectors; in StyleGAN the weights are the vectors as they are."""
    if not classes:
        return None
    if together:
        return EqualizedLinear(classes, latent_size, gain=math.sqrt(classes), bias=False)
    return EqualizedLinear(classes, w_size, gain=1.0)


def check_labels(labels: Tensor | None, classes: int) -> None:
    """Refuse labels without classes, classes without labels and, on the CPU, labels that are no classes.

    Reading them on a GPU would make it wait.
    """
    if (labels is not None) != (classes > 0):
        raise ValueError(f"labels {'given' if labels is not None else 'missing'}; classes is {classes}")
    if labels is None or labels.device.type != "cpu" or labels.numel() == 0 or torch.compiler.is_compiling():
        return
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(f"labels hold {int(wrong[0])}; classes 0 to {classes - 1} are allowed")
