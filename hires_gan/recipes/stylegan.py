"""How StyleGAN is trained (Karras et al. 2019, "A Style-Based Generator Architecture for GANs", appendix C)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hires_gan.losses import ADVERSARIAL, gradient_square
from hires_gan.networks.growth import Growth, Width
from hires_gan.networks.layers import cross_fade
from hires_gan.networks.stylegan import Discriminator, Generator
from hires_gan.randomness import Purpose, RandomSource, SampleRandom, initial_weights
from hires_gan.recipes.growing import describe_growth, fade_at, growing_stages, growth_at, live_optimizers
from hires_gan.recipes.optimizers import low_precision
from hires_gan.recipes.protocol import LabelDistribution, OptimizerPlan, Outcome, Phase, Step
from hires_gan.recipes.stylegan_settings import StyleGANSettings
from hires_gan.recipes.styles import DISCRIMINATOR, GENERATOR, FakePurposes, Styles, draw_styles
from hires_gan.settings import IntByResolution

_LOSS = ADVERSARIAL["non_saturating"]


class StyleGAN:
    """StyleGAN's recipe: Progressive GAN's schedule, styles that mix, and R1 in every step.

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
        settings: StyleGANSettings,
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

    def phases(self, nimg: int) -> list[Phase]:
        """One step of the discriminator, then one of the generator, at every nimg."""
        growth, alpha = growth_at(self.stages, nimg), fade_at(self.stages, nimg)
        return [
            Phase("discriminator", "discriminator", partial(self._discriminator_phase, growth), alpha=alpha),
            Phase("generator", "generator", partial(self._generator_phase, growth), alpha=alpha),
        ]

    def advance(self, nimg: int, means: Mapping[str, Tensor]) -> None:
        """Let the mean of W follow."""
        self.generator.track_w(means["average/w"], self.settings.w_average_decay)

    def sample(self, network: nn.Module, samples: Tensor, nimg: int) -> Tensor:
        """Images of the fixed latents number `samples`, at the resolution of `nimg`; labels as often as in the data."""
        random = SampleRandom(self.random, samples)
        latents = random.normal(Purpose.LATENT_SAMPLE, self.settings.generator.latent_size)
        labels = self.labels.draw(random.uniform(Purpose.LABEL_SAMPLE)) if self.labels else None
        images: Tensor = network(latents.to(self._dtype), labels, growth=growth_at(self.stages, nimg))
        return images

    def describe(self, nimg: int) -> str:
        """The resolution and, during a fade, how much of it is blended in."""
        return describe_growth(growth_at(self.stages, nimg))

    def inference(self, nimg: int) -> dict[str, Any]:
        """The growth at `nimg`, and the number of classes."""
        growth = growth_at(self.stages, nimg)
        return {"resolution": growth.resolution, "alpha": growth.alpha, "classes": self.generator.classes}

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the weights, among which the mean of W lies: the growth follows from nimg."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to take back."""

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _discriminator_phase(self, growth: Growth, step: Step) -> Outcome:
        """The discriminator's loss on reals and fakes, with the penalty on the gradient at the reals."""
        growth = growth.blending(step.alpha)
        gamma = self.settings.loss.r1
        with torch.no_grad():
            styles, fake = self._fakes(growth, step.random, DISCRIMINATOR)
        real = cross_fade(step.batch.images, growth.alpha).requires_grad_(gamma > 0)
        real_scores = self.discriminator(real, step.batch.labels if self.labels else None, growth)
        fake_scores = self.discriminator(fake, styles.labels, growth)
        terms = {
            "discriminator_real": _LOSS.discriminator_real(real_scores),
            "discriminator_fake": _LOSS.discriminator_fake(fake_scores),
        }
        if gamma:
            terms["r1"] = gradient_square(real, real_scores) * (gamma / 2)
        statistics = {"score_real": real_scores.detach(), "score_fake": fake_scores.detach()}
        return Outcome(terms, statistics, {"w": styles.w})

    def _generator_phase(self, growth: Growth, step: Step) -> Outcome:
        """The generator's loss, from latents of its own."""
        growth = growth.blending(step.alpha)
        styles, fake = self._fakes(growth, step.random, GENERATOR)
        return Outcome({"generator": _LOSS.generator(self.discriminator(fake, styles.labels, growth))})

    def _fakes(self, growth: Growth, random: SampleRandom, purposes: FakePurposes) -> tuple[Styles, Tensor]:
        """Fakes whose styles change, if they do, in a layer that lives already."""
        generator = self.generator
        layers = generator.live_ws(growth)
        styles = draw_styles(generator, random, purposes, self.settings.mixing, self.labels, layers)
        total = generator.synthesis.noise_total_at(growth.resolution)
        noise = generator.synthesis.split_noise(random.normal(purposes.noise, total).to(self._dtype))
        return styles, generator.synthesis(styles.ws, noise, growth)

    def _optimizers(self, growth: Growth) -> dict[str, OptimizerPlan]:
        return live_optimizers(self.settings, self.generator, self.discriminator, growth)


def build_generator(settings: StyleGANSettings, dtype: torch.dtype, classes: int) -> Generator:
    """The generator of the settings; `dtype` is that of its highest resolutions, float64 that of everything."""
    own = settings.generator
    width, dtypes = Width(own.fmap_base, own.fmap_max), low_precision(settings, dtype)
    network = Generator(settings.resolution, own.latent_size, own.w_size, classes, own.mapping_layers, width, dtypes)
    return network.double() if dtype == torch.float64 else network


def build_discriminator(settings: StyleGANSettings, dtype: torch.dtype, classes: int) -> Discriminator:
    """The discriminator of the settings, likewise."""
    own = settings.discriminator
    width, dtypes = Width(own.fmap_base, own.fmap_max), low_precision(settings, dtype)
    network = Discriminator(settings.resolution, classes, width, own.group_size, dtypes)
    return network.double() if dtype == torch.float64 else network
