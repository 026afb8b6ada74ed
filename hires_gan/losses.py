"""Adversarial losses and discriminator penalties: pure functions, one value per sample.

Nothing here reduces over the batch or applies a weight. The caller sums over samples and divides by the global batch,
so that a value never depends on how a batch is cut into ranks and micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from hires_gan.networks.layers import EqualizedConv2d, EqualizedLinear
from hires_gan.ops import inputs_only

EQUALIZED = (EqualizedLinear, EqualizedConv2d)

Loss = Callable[[Tensor], Tensor]


class Adversarial(NamedTuple):
    """The three terms of one adversarial game, each from raw logits to losses, elementwise (`[n]` to `[n]`).

    A logit is the discriminator's last output before any sigmoid: the higher, the more real. The discriminator
    minimises `discriminator_real(D(x)) + discriminator_fake(D(G(z)))`, the generator minimises `generator(D(G(z)))`.

    Attributes:
        discriminator_real: the discriminator's loss on real images.
        discriminator_fake: the discriminator's loss on generated images.
        generator: the generator's loss on its images.
    """

    discriminator_real: Loss
    discriminator_fake: Loss
    generator: Loss


def _cross_entropy_real(logits: Tensor) -> Tensor:
    return softplus(-logits)  # -log sigmoid(logits)


def _cross_entropy_fake(logits: Tensor) -> Tensor:
    return softplus(logits)  # -log(1 - sigmoid(logits))


def _saturating(logits: Tensor) -> Tensor:
    return -softplus(logits)  # log(1 - sigmoid(logits))


def _half_square_to_one(logits: Tensor) -> Tensor:
    return 0.5 * (logits - 1).square()


def _half_square_to_zero(logits: Tensor) -> Tensor:
    return 0.5 * logits.square()


def _raise(logits: Tensor) -> Tensor:
    return -logits


def _lower(logits: Tensor) -> Tensor:
    return logits


def _hinge_real(logits: Tensor) -> Tensor:
    return relu(1 - logits)


def _hinge_fake(logits: Tensor) -> Tensor:
    return relu(1 + logits)


_WASSERSTEIN = Adversarial(discriminator_real=_raise, discriminator_fake=_lower, generator=_raise)

ADVERSARIAL: Mapping[str, Adversarial] = MappingProxyType(
    {
        "minimax": Adversarial(_cross_entropy_real, _cross_entropy_fake, _saturating),
        "non_saturating": Adversarial(_cross_entropy_real, _cross_entropy_fake, _cross_entropy_real),
        "least_squares": Adversarial(_half_square_to_one, _half_square_to_zero, _half_square_to_one),
        "wgan": _WASSERSTEIN,
        "wgan_gp": _WASSERSTEIN,
        "hinge": Adversarial(_hinge_real, _hinge_fake, _raise),
    }
)
"""The field's adversarial losses by name.

- `minimax`: Goodfellow et al. 2014, equation 1; the generator minimises log(1 - sigmoid(D(G(z)))).
- `non_saturating`: Goodfellow et al. 2014, section 3; the generator minimises -log sigmoid(D(G(z))).
- `least_squares`: Mao et al. 2017 (LSGAN), equation 9: targets 0 and 1, with the paper's factor 1/2. Recipes published
  without that factor (MUNIT) weigh it by 2.
- `wgan`: Arjovsky et al. 2017; meant to be used with `clip_weights`.
- `wgan_gp`: Gulrajani et al. 2017; the same critic loss, meant to be used with `gradient_penalty`.
- `hinge`: Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17.
"""


def gradient_square(images: Tensor, logits: Tensor) -> Tensor:
    """Sum of the squared image gradients of each sample: R1 on real images, R2 on generated ones.

    Mescheder et al. 2018, section 4.1, without the factor gamma / 2, which is the caller's. The result can be
    differentiated again with respect to whatever `logits` depends on.

    Args:
        images: `[n, ...]` float32 or float64, requiring grad, from which `logits` were computed.
        logits: `[n]`; sample i's logit as a function of the images.

    Returns:
        `[n]` in the dtype of `images`, zero or more.
    """
    with inputs_only():
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def _root(squares: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, a subgradient of the norm, where that of `sqrt` is infinite."""
    positive = squares > 0
    # The inner `where` keeps sqrt's infinite slope out of the backward pass, in which 0 * inf would be nan.
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


def gradient_penalty(
    discriminate: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor, target: float = 1.0
) -> Tensor:
    """WGAN-GP's penalty: the critic's gradient norm on random interpolates is drawn to `target`.

    Gulrajani et al. 2017, equation 3, in the form of Karras et al. 2018 (Progressive GAN):
    `(||grad||_2 - target)^2 / target^2` at `real + epsilon * (fake - real)`. The interpolates are detached: the penalty
    trains the critic alone. A sample whose gradient vanishes gives the value 1 and a gradient of 0.

    Args:
        discriminate: the critic, `[n, ...]` images to `[n]` logits.
        real: `[n, ...]` float32 or float64 images.
        fake: generated images, of the same shape and dtype.
        epsilon: `[n, 1, ..., 1]`, each sample's place between its real (0) and its fake image (1).
        target: the norm to hold, above 0.

    Returns:
        `[n]`, zero or more; the caller weighs it (lambda is 10 in both papers).
    """
    interpolates = torch.lerp(real.detach(), fake.detach(), epsilon).requires_grad_()
    norms = _root(gradient_square(interpolates, discriminate(interpolates)))
    return (norms / target - 1).square()


def path_lengths(images: Tensor, ws: Tensor, directions: Tensor) -> Tensor:
    """How far each image moves when its styles move by one, along a random direction in image space.

    Karras et al. 2020 ("Analyzing and Improving the Image Quality of StyleGAN"), section 3.2 and appendix B: the norm
    of the Jacobian's transpose times an image of noise, `||J_w^T y||_2`. Its square is averaged over the layers that
    take styles, as in the authors' training. The result can be differentiated again.

    Args:
        images: `[n, c, h, w]` float32 or float64, computed from `ws`.
        ws: `[n, layers, w]`, requiring grad.
        directions: `[n, c, h, w]` from N(0, 1); divided by `sqrt(h * w)` here.

    Returns:
        `[n]` in the dtype of `ws`, zero or more.
    """
    scale = math.sqrt(images.shape[2] * images.shape[3])
    with inputs_only():
        (gradient,) = torch.autograd.grad((images * (directions / scale)).sum(), ws, create_graph=True)
    return _root(gradient.square().sum(2).mean(1))


def drift(logits_real: Tensor) -> Tensor:
    """Square of the real logits, `[n]` to `[n]`, which keeps a Wasserstein critic's output from drifting away from 0.

    Karras et al. 2018 (Progressive GAN), appendix A.1, where its weight is 0.001.
    """
    return logits_real.square()


def absolute_difference(one: Tensor, other: Tensor) -> Tensor:
    """Mean of the absolute differences of each sample, `[n, ...]` and `[n, ...]` to `[n]`.

    The reconstruction terms of MUNIT (Huang et al. 2018, equations 1 to 3).
    """
    return (one - other).abs().flatten(1).mean(1)


def over_scales(loss: Loss, maps: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """A loss on the scores of several discriminators, each of which judges many places of an image.

    Args:
        loss: From scores to losses, elementwise.
        maps: For each scale `[n, 1, h, w]`.
        weights: Of the scales: numbers, or tensors without dimensions, which leave the dtype as it is.

    Returns:
        `[n]`: the mean over the places of each map, weighted and added.
    """
    terms = [loss(scores).flatten(1).mean(1) * weight for scores, weight in zip(maps, weights, strict=True)]
    return torch.stack(terms).sum(0)


def moment_matching(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """A term whose gradient draws the mean and the variance of `values` over many samples to 0 and 1.

    Half the square of the mean plus a quarter of the square of the variance minus one is, to second order, the
    divergence of N(mean, variance) from N(0, 1). Its gradient by one value, with running moments in place of those of
    a batch, is `mean + (variance - 1) * (value - mean)`: that of the term that is returned.

    Args:
        values: `[n, d]`.
        mean: `[d]`, of steps before, a constant for autograd.
        variance: `[d]`, likewise.

    Returns:
        `[n]`: mean over the dimensions of `mean * value + (variance - 1) / 2 * (value - mean)^2`.
    """
    return (mean * values + (variance - 1) / 2 * (values - mean).square()).mean(1)


@torch.no_grad()
def clip_weights(module: nn.Module, limit: float) -> None:
    """Clamp every parameter of `module` in place to [-limit, limit], as after each critic step of the WGAN.

    Arjovsky et al. 2017, algorithm 1, where the limit is 0.01. With an equalized learning rate it holds for the
    weights as they are used, scaled, not as they are stored.

    Args:
        module: the critic.
        limit: the bound, above 0.
    """
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            bound = limit / layer.scale if name == "weight" and isinstance(layer, EQUALIZED) else limit
            parameter.clamp_(-bound, bound)
