"""How Progressive GAN is trained (Karras et al. 2018, sections 2 and 3, appendix A)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hires_gan.losses import ADVERSARIAL, clip_weights, drift, gradient_penalty, gradient_square
from hires_gan.networks.growth import Growth, Width
from hires_gan.networks.layers import cross_fade
from hires_gan.networks.progressive import Discriminator, Generator
from hires_gan.randomness import Purpose, RandomSource, SampleRandom, initial_weights
from hires_gan.recipes.growing import describe_growth, fade_at, growing_stages, growth_at, live_optimizers
from hires_gan.recipes.optimizers import low_precision
from hires_gan.recipes.passes import in_one_pass
from hires_gan.recipes.progressive_settings import ProgressiveSettings, WassersteinClippedLoss
from hires_gan.recipes.protocol import LabelDistribution, OptimizerPlan, Outcome, Phase, Step
from hires_gan.settings import IntByResolution

Judgement = tuple[Tensor, Tensor | None]
"""Scores, `[n]`, and the logits of classes, if there are any."""


class Progressive:
    """Progressive GAN's recipe: both networks grow together, and new resolutions fade in.

    Args:
        settings: The `recipe` block.
        batch: The global batch, by resolution.
        dtype: In which the highest resolutions compute; float64 makes everything float64.
        seed: Initial weights and the fixed latents of samples follow from it.
        labels: How often each class occurs; None for an unconditional model.
    """

    averaged = "generator"

    def __init__(
        self,
        settings: ProgressiveSettings,
        batch: IntByResolution,
        dtype: torch.dtype,
        seed: int,
        labels: LabelDistribution | None,
    ) -> None:
        self.settings, self.labels = settings, labels
        self.random = RandomSource(seed)
        with initial_weights(seed):
            self.generator = build_generator(settings, dtype, len(labels.counts) if labels else 0)
            self.discriminator = build_discriminator(settings, dtype, len(labels.counts) if labels else 0)
        self.players: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        self.stages = growing_stages(settings.schedule, settings.resolution, batch, settings.group, self._optimizers)

    def growth(self, nimg: int) -> Growth:
        """How far the networks have grown at `nimg`."""
        return growth_at(self.stages, nimg)

    def phases(self, nimg: int) -> list[Phase]:
        """One step of the discriminator, then one of the generator, at every nimg."""
        growth, loss, alpha = self.growth(nimg), self.settings.loss, fade_at(self.stages, nimg)
        clip = None
        if isinstance(loss, WassersteinClippedLoss):
            clip = partial(clip_weights, self.discriminator, loss.clip)
        return [
            Phase("discriminator", "discriminator", partial(self._discriminator_phase, growth), clip, alpha=alpha),
            Phase("generator", "generator", partial(self._generator_phase, growth), alpha=alpha),
        ]

    def advance(self, nimg: int, means: Mapping[str, Tensor]) -> None:
        """Progressive GAN has no state that follows the losses."""

    def sample(self, network: nn.Module, samples: Tensor, nimg: int) -> Tensor:
        """Images of the fixed latents number `samples`, at the resolution of `nimg`; labels as often as in the data."""
        random = SampleRandom(self.random, samples)
        latents = self._latents(random, Purpose.LATENT_SAMPLE)
        images: Tensor = network(latents, self._labels(random, Purpose.LABEL_SAMPLE), self.growth(nimg))
        return images

    def describe(self, nimg: int) -> str:
        """The resolution and, during a fade, how much of it is blended in."""
        return describe_growth(self.growth(nimg))

    def inference(self, nimg: int) -> dict[str, Any]:
        """The growth at `nimg`, and the number of classes."""
        growth = self.growth(nimg)
        return {"resolution": growth.resolution, "alpha": growth.alpha, "classes": self.generator.classes}

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the weights: the growth follows from nimg."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to take back."""

    def _discriminator_phase(self, growth: Growth, step: Step) -> Outcome:
        """The critic's loss: reals against fakes, with whatever penalties have a weight."""
        growth = growth.blending(step.alpha)
        loss, adversarial = self.settings.loss, ADVERSARIAL[self.settings.loss.name]
        real = cross_fade(step.batch.images, growth.alpha)
        fake_labels = self._labels(step.random, Purpose.LABEL_DISCRIMINATOR)
        with torch.no_grad():
            fake = self.generator(self._latents(step.random, Purpose.LATENT_DISCRIMINATOR), fake_labels, growth)
        # R1 and R2 differentiate the scores with respect to the images, through the pass that gives these scores.
        real.requires_grad_(loss.r1 > 0)
        fake.requires_grad_(loss.r2 > 0)
        (real_scores, real_classes), (fake_scores, fake_classes) = self._judged(real, fake, growth)
        terms = {
            "discriminator_real": adversarial.discriminator_real(real_scores),
            "discriminator_fake": adversarial.discriminator_fake(fake_scores),
        }
        if loss.r1:
            terms["r1"] = gradient_square(real, real_scores) * (loss.r1 / 2)
        if loss.r2:
            terms["r2"] = gradient_square(fake, fake_scores) * (loss.r2 / 2)
        if loss.gp:
            epsilon = step.random.uniform(Purpose.PENALTY, 1, 1, 1).to(real.dtype)
            terms["gp"] = loss.gp * gradient_penalty(
                lambda images: self.discriminator(images, growth)[0], real, fake, epsilon, loss.gp_target
            )
        if loss.drift:
            terms["drift"] = loss.drift * drift(real_scores)
        if self.labels and loss.label_weight:
            terms["labels_real"] = loss.label_weight * _classification(real_classes, step.batch.labels)
            terms["labels_fake"] = loss.label_weight * _classification(fake_classes, fake_labels)
        return Outcome(terms, {"score_real": real_scores.detach(), "score_fake": fake_scores.detach()})

    def _judged(self, real: Tensor, fake: Tensor, growth: Growth) -> tuple[Judgement, Judgement]:
        """Scores and classes of reals and fakes: in one pass, unless a group would then hold some of both.

        What is differentiated with respect to the images of one kind has a pass of its own, which is the shorter way.
        """
        if self.settings.loss.apart or not in_one_pass(len(real), self.discriminator.group):
            return self.discriminator(real, growth), self.discriminator(fake, growth)
        scores, classes = self.discriminator(torch.cat((real, fake)), growth)
        n = len(real)
        of_real, of_fake = (None, None) if classes is None else (classes[:n], classes[n:])
        return (scores[:n], of_real), (scores[n:], of_fake)

    def _generator_phase(self, growth: Growth, step: Step) -> Outcome:
        """The generator's loss, from latents of its own."""
        growth = growth.blending(step.alpha)
        loss, adversarial = self.settings.loss, ADVERSARIAL[self.settings.loss.name]
        labels = self._labels(step.random, Purpose.LABEL_GENERATOR)
        fake = self.generator(self._latents(step.random, Purpose.LATENT_GENERATOR), labels, growth)
        scores, classes = self.discriminator(fake, growth)
        terms = {"generator": adversarial.generator(scores)}
        if self.labels and loss.label_weight:
            terms["labels_generator"] = loss.label_weight * _classification(classes, labels)
        return Outcome(terms)

    def _latents(self, random: SampleRandom, purpose: Purpose) -> Tensor:
        dtype = next(self.generator.parameters()).dtype
        return random.normal(purpose, self.settings.generator.latent_size).to(dtype)

    def _labels(self, random: SampleRandom, purpose: Purpose) -> Tensor | None:
        return self.labels.draw(random.uniform(purpose)) if self.labels else None

    def _optimizers(self, growth: Growth) -> dict[str, OptimizerPlan]:
        return live_optimizers(self.settings, self.generator, self.discriminator, growth)


def build_generator(settings: ProgressiveSettings, dtype: torch.dtype, classes: int) -> Generator:
    """The generator of the settings; `dtype` is that of its highest resolutions, float64 that of everything."""
    width = Width(settings.generator.fmap_base, settings.generator.fmap_max)
    dtypes = low_precision(settings, dtype)
    network = Generator(settings.resolution, settings.generator.latent_size, classes, width, dtypes)
    return network.double() if dtype == torch.float64 else network


def build_discriminator(settings: ProgressiveSettings, dtype: torch.dtype, classes: int) -> Discriminator:
    """The discriminator of the settings, likewise."""
    width = Width(settings.discriminator.fmap_base, settings.discriminator.fmap_max)
    dtypes = low_precision(settings, dtype)
    network = Discriminator(settings.resolution, classes, width, settings.discriminator.group_size, dtypes)
    return network.double() if dtype == torch.float64 else network


def _classification(logits: Tensor | None, labels: Tensor | None) -> Tensor:
    assert logits is not None
    assert labels is not None
    return F.cross_entropy(logits, labels, reduction="none")
