"""MUNIT's networks from their formulas, one sample and one channel after another: slow, differentiable by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5

Weights = dict[str, Tensor]


def weights_of(network: nn.Module) -> Weights:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def part(w: Weights, name: str) -> Weights:
    """What lies below a name."""
    return {key.removeprefix(f"{name}."): value for key, value in w.items() if key.startswith(f"{name}.")}


def activated(x: Tensor, act: str) -> Tensor:
    slope = {"relu": 0.0, "lrelu": 0.2, "linear": 1.0}[act]
    return torch.where(x >= 0, x, slope * x)


def convolved(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    """Mirrored at the edge, correlated, with the bias."""
    around = {1: 0, 3: 1, 4: 1, 5: 2, 7: 3}[w["weight"].shape[2]]
    x = F.pad(x, (around,) * 4, mode="reflect") if around else x
    return F.conv2d(x, w["weight"], w["bias"], stride=stride)


def z_score(channel: Tensor) -> Tensor:
    centred = channel - channel.mean()
    return centred / (centred.pow(2).mean() + EPS).sqrt()


def instance_normalised(x: Tensor, affine: Tensor | None = None) -> Tensor:
    """Each channel of each sample; `affine` `[n, 2 * c]`: c means, then c deviations."""
    samples = []
    for n, sample in enumerate(x):
        channels = []
        for c, channel in enumerate(sample):
            y = z_score(channel)
            channels.append(y if affine is None else affine[n, len(sample) + c] * y + affine[n, c])
        samples.append(torch.stack(channels))
    return torch.stack(samples)


def layer_normalised(x: Tensor, w: Weights) -> Tensor:
    samples = [(sample - sample.mean()) / (sample.flatten().std() + EPS) for sample in x]
    return torch.stack(samples) * w["gamma"][:, None, None] + w["beta"][:, None, None]


def block(x: Tensor, w: Weights, norm: str, act: str = "relu", stride: int = 1, affine: Tensor | None = None) -> Tensor:
    y = convolved(x, part(w, "convolution"), stride)
    if norm == "layer":
        y = layer_normalised(y, w)
    elif norm != "none":
        y = instance_normalised(y, affine)
    return activated(y, act)


def residual(x: Tensor, w: Weights, norm: str, affines: tuple[Tensor | None, Tensor | None] = (None, None)) -> Tensor:
    y = block(x, part(w, "first"), norm, "relu", affine=affines[0])
    return x + block(y, part(w, "second"), norm, "linear", affine=affines[1])


def entered(images: Tensor, w: Weights, norm: str, level: int, alpha: float) -> Tensor:
    """What is behind the first halving of images at a level."""
    x = block(images, part(w, f"stems.{level}"), norm)
    x = block(x, part(w, f"downs.{level}"), norm, stride=2)
    if alpha == 1:
        return x
    return alpha * x + (1 - alpha) * block(halved(images), part(w, f"stems.{level + 1}"), norm)


def content(images: Tensor, w: Weights, downs: int, blocks: int, level: int = 0, alpha: float = 1) -> Tensor:
    x = entered(images, w, "instance", level, alpha)
    for number in range(level + 1, downs):
        x = block(x, part(w, f"downs.{number}"), "instance", stride=2)
    for number in range(blocks):
        x = residual(x, part(w, f"blocks.{number}"), "instance")
    return x


def dense(x: Tensor, w: Weights) -> Tensor:
    return x @ w["weight"].T + w["bias"]


def style(images: Tensor, w: Weights, downs: int, level: int = 0, alpha: float = 1) -> Tensor:
    x = entered(images, w, "none", level, alpha)
    for number in range(level + 1, downs):
        x = block(x, part(w, f"downs.{number}"), "none", stride=2)
    return dense(x.mean((2, 3)), part(w, "output"))


def decoded(
    features: Tensor, code: Tensor, w: Weights, ups: int, blocks: int, level: int = 0, alpha: float = 1
) -> Tensor:
    numbers = dense(code, part(w, "mapping.0")).clamp_min(0)
    numbers = dense(dense(numbers, part(w, "mapping.1")).clamp_min(0), part(w, "mapping.2"))
    slices = list(numbers.split(2 * features.shape[1], 1))
    x = features
    for number in range(blocks):
        x = residual(x, part(w, f"blocks.{number}"), "adaptive", (slices.pop(0), slices.pop(0)))
    assert not slices
    before = x
    for number in range(ups - level):
        before, x = x, block(enlarged(x), part(w, f"ups.{number}"), "layer")
    colours = torch.tanh(convolved(x, part(w, f"outputs.{level}")))
    if alpha == 1:
        return colours
    return alpha * colours + (1 - alpha) * enlarged(torch.tanh(convolved(before, part(w, f"outputs.{level + 1}"))))


def enlarged(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x: Tensor) -> Tensor:
    return sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def averaged(images: Tensor) -> Tensor:
    """Half the size: the mean of those of 3x3 pixels, around every other one, that lie within the image."""
    ones = torch.ones_like(images[:1, :1])
    kernel = torch.ones(1, 1, 3, 3, dtype=images.dtype)
    sums = [F.conv2d(channel, kernel, stride=2, padding=1) for channel in images.split(1, 1)]
    return torch.cat(sums, 1) / F.conv2d(ones, kernel, stride=2, padding=1)


def scores(images: Tensor, w: Weights, scales: int, layers: int, level: int = 0, grows: bool = False) -> list[Tensor]:
    """Of a network that grows, images are reduced by the means of 2x2 pixels."""
    maps = []
    for scale in range(level, scales):
        own = part(w, f"scales.{scale}")
        x = images
        for layer in range(layers):
            x = block(x, part(own, f"blocks.{layer}"), "none", "lrelu", stride=2)
        maps.append(convolved(x, part(own, "output.convolution")))
        images = F.avg_pool2d(images, 2) if grows else averaged(images)
    return maps
