"""How much of an image's content its translation keeps: the domain-invariant perceptual distance. Lower is better.

Huang et al. 2018 (MUNIT), section 5.1 with the appendix: the mean square of the differences of VGG16's features of the
input and of the output, after instance normalisation, which takes out what the means and deviations of channels say:
more of the domain than of the content. It is 0 for a translation that changes nothing, and rises with every change of
structure: read it beside a measure of how well the target domain is met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hires_gan.evaluation.perceptual import FEATURES_SIDE, at_once, equal_parts, exact_float32, fitted
from hires_gan.networks.vgg import Layer, VGG16Features, perceptual_distance

LAYER: Layer = "relu5_3"
"""As in the loss of the published implementation and of the recipe here; the paper's appendix says relu4_3."""

_LEAST = 32  # relu5_3 has more than one pixel from here on


def content_preservation(inputs: Tensor, outputs: Tensor, vgg: VGG16Features, layer: Layer = LAYER) -> Tensor:
    """The distance between the content of images and that of their translations.

    Both are compared at 256x256 at the most.

    Args:
        inputs: `[n, 3, r, r]` in [-1, 1], r a power of two, on the device that computes.
        outputs: `[n, 3, s, s]`, the translation of each, likewise; s may differ from r, where a network has not grown
            to the end: the larger one is then reduced to the smaller.
        vgg: With torchvision's weights for the published metric, on the same device.
        layer: Whose features are compared.

    Returns:
        float64 `[n]` on the CPU: `content_preservation` of each image; the metric is their mean.

    Raises:
        ValueError: If there are not as many outputs as inputs.
    """
    if len(inputs) != len(outputs):
        raise ValueError(f"there are {len(inputs)} inputs and {len(outputs)} outputs; as many are allowed")
    size = at_once(FEATURES_SIDE) // 2
    most = min(FEATURES_SIDE, inputs.shape[-1], outputs.shape[-1])
    found = [torch.empty(0, dtype=torch.float64)]
    with torch.no_grad(), exact_float32():
        both = torch.stack([fitted(images, _LEAST, most) for images in (inputs, outputs)], 1)
        for part, count in equal_parts(both, size):
            a, b = (vgg.features_at(images, layer) for images in part.unbind(1))
            found.append(perceptual_distance(a, b)[:count].double().cpu())
    return torch.cat(found)
