"""MUNIT's losses from their formulas (Huang et al. 2018, section 4), one sample after another; and small models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.augment.draws import draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.settings import AugmentSettings
from hires_gan.networks.munit import Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.networks.vgg import VGG16Features
from hires_gan.randomness import Purpose, RandomSource, SampleRandom
from hires_gan.recipes.munit import Munit
from hires_gan.recipes.munit_settings import MunitSettings
from hires_gan.recipes.protocol import Batch, Step
from hires_gan.training.backends import Backend

CPU = torch.device("cpu")
A, B = DOMAINS = ("cat", "dog")
SEED, BATCH, SIDE, STYLE = 7, 4, 16, 3
ALONE = {"adversarial": 1.0, "image": 0, "content": 0, "style": 0, "cycle": 0, "perceptual": 0, "style_prior": 0}
"""The adversarial term, and no other."""
NETWORKS: dict[str, Any] = {
    "generator": {
        "style_size": STYLE,
        "base": 4,
        "most": 16,
        "content_downs": 2,
        "style_downs": 2,
        "blocks": 1,
        "features": 8,
    },
    "discriminator": {"scales": 2, "layers": 2, "base": 4, "most": 16},
}
GROWING: dict[str, Any] = {
    "resolution": 64,
    "schedule": {"start_resolution": 16, "stable_kimg": 0.012, "fade_kimg": 0.012},
    "generator": NETWORKS["generator"] | {"content_downs": 3, "style_downs": 3},
    "discriminator": NETWORKS["discriminator"] | {"scales": 3},
}
"""From 16 to 64: five stages of 12 images, that is 3 steps."""


def model_of(dtype: torch.dtype = torch.float64, vgg: VGG16Features | None = None, **more: Any) -> Munit:
    settings = MunitSettings.model_validate({"name": "munit", "resolution": SIDE} | NETWORKS | more)
    return Munit(settings, BATCH, dtype, SEED, DOMAINS, vgg)


def batch_of(first: int, side: int = SIDE, dtype: torch.dtype = torch.float64, size: int = BATCH) -> Batch:
    """Photographs of noise, of which those of one domain are darker, and each has its own."""
    samples = torch.arange(first, first + size)
    noise = RandomSource(99).uniform(Purpose.MIRROR, samples, (2, 3, side, side)).to(dtype)
    return Batch(torch.cat((noise[:, 0] * 1.2 - 1, 1 - noise[:, 1] * 1.4)), None, DOMAINS)


def step_at(nimg: int, side: int = SIDE, size: int = BATCH) -> Step:
    return Step(batch_of(nimg, side, size=size), SampleRandom(RandomSource(SEED), torch.arange(nimg, nimg + size)))


def backend_of(model: Munit) -> Backend:
    backend = Backend(model, CPU, SEED)
    backend.enter(model.stages[0])
    return backend


def take_step(
    backend: Backend, nimg: int, micro: int = BATCH, batch: Batch | None = None, side: int = SIDE
) -> dict[str, Tensor]:
    model = backend.recipe
    assert isinstance(model, Munit)
    means = backend.step(model.phases(nimg), batch_of(nimg, side) if batch is None else batch, nimg, micro)
    model.advance(nimg + BATCH, means)
    return means


def random_vgg(dtype: torch.dtype = torch.float64) -> VGG16Features:
    """VGG16 with weights that are drawn."""
    random = torch.Generator().manual_seed(0)
    weights, inputs, number = {}, 3, 0
    for maps in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for outputs in maps:
            drawn = torch.randn(outputs, inputs, 3, 3, generator=random) * (2 / (9 * inputs)) ** 0.5
            weights |= {f"features.{number}.weight": drawn, f"features.{number}.bias": torch.zeros(outputs) + 0.05}
            inputs, number = outputs, number + 2
        number += 1
    return VGG16Features(weights).to(dtype)


# The formulas.


def mean_l1(one: Tensor, other: Tensor) -> Tensor:
    assert one.shape == other.shape
    return (one - other).abs().sum() / one.numel()


def games(name: str, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What reals and fakes cost a discriminator, and fakes the generator: means over a map of scores."""
    if name == "least_squares":
        return ((scores - 1) ** 2).mean(), (scores**2).mean(), ((scores - 1) ** 2).mean()
    if name == "hinge":
        return (1 - scores).clamp_min(0).mean(), (1 + scores).clamp_min(0).mean(), -scores.mean()
    ones = torch.ones_like(scores)
    real, fake = (F.binary_cross_entropy(torch.sigmoid(scores), label) for label in (ones, 0 * ones))
    return real, fake, real


def scale_weights(scales: int, reduction: str, level: Level) -> list[float]:
    weights = [level.alpha if scale == level.number else 1.0 for scale in range(level.number, scales)]
    return [weight / sum(weights) for weight in weights] if reduction == "mean" else weights


def adversarial(
    judge: MultiScaleDiscriminator, image: Tensor, loss: Any, level: Level
) -> tuple[Tensor, Tensor, Tensor]:
    """`games`, over the scales."""
    weights = scale_weights(len(judge.scales), loss.scales, level)
    found = [games(loss.name, scores) for scores in judge(image, level)]
    one, other, third = (
        sum((w * g[i] for w, g in zip(weights, found, strict=True)), torch.zeros(())) for i in range(3)
    )
    return one, other, third


def drawn_styles(sample: int, purpose: Purpose) -> tuple[Tensor, Tensor]:
    """Of the first and of the second domain, `[1, STYLE]`."""
    numbers = SampleRandom(RandomSource(SEED), torch.tensor([sample])).normal(purpose, 2, STYLE).double()
    return numbers[:, 0], numbers[:, 1]


def seen(image: Tensor, level: Level) -> Tensor:
    """An image as it fades in."""
    half = sum(image[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert isinstance(half, Tensor)
    return level.alpha * image + (1 - level.alpha) * half.repeat_interleave(2, 2).repeat_interleave(2, 3)


def generator_terms(
    model: Munit, x_a: Tensor, x_b: Tensor, drawn: tuple[Tensor, Tensor], level: Level
) -> dict[str, Tensor]:
    """All terms of one sample, without their weights; the images are `[1, 3, r, r]`."""
    g_a, g_b = (model.generator.generator(domain) for domain in DOMAINS)
    drawn_a, drawn_b = drawn
    c_a, c_b = g_a.encode_content(x_a, level=level), g_b.encode_content(x_b, level=level)
    s_a, s_b = g_a.encode_style(x_a, level=level), g_b.encode_style(x_b, level=level)
    x_ab, x_ba = g_b.decode(c_a, drawn_b, level=level), g_a.decode(c_b, drawn_a, level=level)
    c_a_again, s_b_again = g_b.encode_content(x_ab, level=level), g_b.encode_style(x_ab, level=level)
    c_b_again, s_a_again = g_a.encode_content(x_ba, level=level), g_a.encode_style(x_ba, level=level)
    loss = model.settings.loss
    wanted_a, wanted_b = (c_a.detach(), c_b.detach()) if loss.detach_content else (c_a, c_b)
    judge_a, judge_b = (model.discriminator.discriminator(domain) for domain in DOMAINS)
    terms = {
        f"image_{A}": mean_l1(g_a.decode(c_a, s_a, level=level), x_a),
        f"image_{B}": mean_l1(g_b.decode(c_b, s_b, level=level), x_b),
        f"style_{A}": mean_l1(s_a_again, drawn_a),
        f"style_{B}": mean_l1(s_b_again, drawn_b),
        f"content_{A}": mean_l1(c_a_again, wanted_a),
        f"content_{B}": mean_l1(c_b_again, wanted_b),
        f"cycle_{A}": mean_l1(g_a.decode(c_a_again, s_a, level=level), x_a),
        f"cycle_{B}": mean_l1(g_b.decode(c_b_again, s_b, level=level), x_b),
        f"generator_{A}": adversarial(judge_a, x_ba, loss, level)[2],
        f"generator_{B}": adversarial(judge_b, x_ab, loss, level)[2],
    }
    if loss.style_prior:
        terms |= {f"style_prior_{A}": prior(model, A, s_a), f"style_prior_{B}": prior(model, B, s_b)}
    if loss.perceptual:
        assert model.terms.vgg is not None
        layer = loss.perceptual_layer
        terms |= {
            f"perceptual_{A}": perceptual(x_ab, x_a, model.terms.vgg, layer),
            f"perceptual_{B}": perceptual(x_ba, x_b, model.terms.vgg, layer),
        }
    return terms


def prior(model: Munit, domain: str, style: Tensor) -> Tensor:
    """Whose gradient by each of the dimensions is (mean + (variance - 1) * (s - mean)) / dimensions."""
    total = torch.zeros((), dtype=style.dtype)
    for s, mean, square in zip(style[0], *model.terms.moments[domain].tolist(), strict=True):
        total = total + mean * s + (square - mean**2 - 1) * (s - mean) ** 2 / 2
    return total / len(style[0])


def perceptual(fake: Tensor, image: Tensor, vgg: VGG16Features, layer: str) -> Tensor:
    """The mean square of the differences of instance-normalised features: of a translation and of what it is from."""
    one, other = (vgg_features(x, dict(vgg.named_parameters()), layer)[0] for x in (fake, image))
    total = torch.zeros((), dtype=fake.dtype)
    for a, b in zip(one, other, strict=True):
        za, zb = ((c - c.mean()) / (((c - c.mean()) ** 2).mean() + 1e-5).sqrt() for c in (a, b))
        total = total + ((za - zb) ** 2).mean()
    return total / len(one)


def vgg_features(x: Tensor, weights: dict[str, nn.Parameter], layer: str) -> Tensor:
    convolutions = {"relu3_3": (0, 2, 5, 7, 10, 12, 14), "relu4_3": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)}[layer]
    mean, deviation = (
        torch.tensor(numbers)[:, None, None].to(x) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = ((x + 1) / 2 - mean) / deviation
    for number in convolutions:
        x = F.max_pool2d(x, 2) if number in (5, 10, 17) else x
        x = F.conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1)
        x = x.clamp_min(0)
    return x


def discriminator_terms(model: Munit, x_a: Tensor, x_b: Tensor, sample: int, level: Level) -> dict[str, Tensor]:
    """All terms of one sample, weighted as they are."""
    g_a, g_b = (model.generator.generator(domain) for domain in DOMAINS)
    drawn_a, drawn_b = drawn_styles(sample, Purpose.STYLE_DISCRIMINATOR)
    x_ab = g_b.decode(g_a.encode_content(x_a, level=level), drawn_b, level=level).detach()
    x_ba = g_a.decode(g_b.encode_content(x_b, level=level), drawn_a, level=level).detach()
    terms = {}
    for domain, real, fake in ((A, x_a, x_ba), (B, x_b, x_ab)):
        judge, loss = model.discriminator.discriminator(domain), model.settings.loss
        terms[f"discriminator_real_{domain}"] = adversarial(judge, real, loss, level)[0]
        terms[f"discriminator_fake_{domain}"] = adversarial(judge, fake, loss, level)[1]
        weights = scale_weights(len(judge.scales), loss.scales, level)
        if loss.r1:
            image = real.clone().requires_grad_(True)
            score = sum(w * m.mean() for w, m in zip(weights, judge(image, level), strict=True))
            (gradient,) = torch.autograd.grad(score, image, create_graph=True)
            terms[f"r1_{domain}"] = (gradient**2).sum() * loss.r1 / 2 * loss.r1_interval
        if loss.consistency:
            terms[f"consistency_{domain}"] = loss.consistency * (
                inconsistency(judge, real, sample, Purpose.AUGMENT_REAL, weights, level)
                + inconsistency(judge, fake, sample, Purpose.AUGMENT_FAKE, weights, level)
            )
    return terms


def inconsistency(
    judge: MultiScaleDiscriminator, image: Tensor, sample: int, purpose: Purpose, weights: list[float], level: Level
) -> Tensor:
    mirrored_and_shifted = AugmentSettings(preset="blit", rotate90=0)
    numbers = draw(SampleRandom(RandomSource(SEED), torch.tensor([sample])), purpose, mirrored_and_shifted, image.shape)
    moved = augment(image, numbers, 1.0, mirrored_and_shifted)
    total = torch.zeros((), dtype=image.dtype)
    for weight, one, other in zip(weights, judge(image, level), judge(moved, level), strict=True):
        total = total + weight * (one.mean() - other.mean()) ** 2
    return total
