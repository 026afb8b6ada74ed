"""How MUNIT is trained (Huang et al. 2018, "Multimodal Unsupervised Image-to-Image Translation").

Two domains, two players: the generators of both domains learn with one optimizer, their discriminators with another.
Sample k of a run is one image of each domain. Terms of weight 0 are left out, with all passes that only they need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hires_gan.networks.growth import Growth
from hires_gan.networks.layers import cross_fade, halve_box
from hires_gan.networks.munit import Generator, Level
from hires_gan.networks.munit_discriminator import MultiScaleDiscriminator
from hires_gan.networks.translation import Discriminators, Translator
from hires_gan.networks.vgg import VGG16Features
from hires_gan.randomness import Purpose, RandomSource, SampleRandom, initial_weights
from hires_gan.recipes.growing import describe_growth, fade_at, growing_stages, growth_at
from hires_gan.recipes.munit_game import Game
from hires_gan.recipes.munit_images import random_crops, speckled
from hires_gan.recipes.munit_settings import MunitOptimizerSettings, MunitSettings
from hires_gan.recipes.munit_terms import Terms
from hires_gan.recipes.optimizers import optimizer_plan
from hires_gan.recipes.protocol import OptimizerPlan, Outcome, Phase, Stage, Step, due_phases
from hires_gan.settings import IntByResolution, at_resolution


class Munit:
    """MUNIT's recipe.

    Args:
        settings: The `recipe` block.
        batch: The global batch, by resolution: so many images of each domain.
        dtype: In which convolutions compute; float64 makes everything float64.
        seed: Initial weights and the fixed styles of samples follow from it.
        domains: What the two domains are called.
        vgg: For the perceptual term; None if it has no weight.
    """

    averaged = "generator"

    def __init__(
        self,
        settings: MunitSettings,
        batch: IntByResolution,
        dtype: torch.dtype,
        seed: int,
        domains: tuple[str, ...],
        vgg: VGG16Features | None = None,
    ) -> None:
        self.settings, self.domains = settings, domains
        self.random = RandomSource(seed)
        with initial_weights(seed):
            self.generator = build_translator(settings, dtype, domains)
            self.discriminator = build_discriminators(settings, dtype, domains)
        self.players: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        self.terms = Terms(settings.loss, self.generator, vgg, self._dtype)
        self.game = Game(settings, self.discriminator)
        self.stages = _stages(settings, batch, self._optimizers)

    def phases(self, nimg: int) -> list[Phase]:
        """The discriminators' phases, then the generators', as far as they are due."""
        loss, level, alpha, iterate = self.settings.loss, self.level(nimg), fade_at(self.stages, nimg), None
        if self.settings.discriminator.spectral:
            iterate = self._iterate_spectral_norm
        judge = partial(self._discriminator_phase, level)
        phases = [Phase("discriminator", "discriminator", judge, iterate, alpha=alpha)]
        if loss.r1:
            r1 = Phase("r1", "discriminator", partial(self._r1_phase, level), iterate, loss.r1_interval, alpha)
            phases.append(r1)
        phases.append(Phase("generator", "generator", partial(self._generator_phase, level), alpha=alpha))
        return due_phases(phases, self.stages, nimg)

    def advance(self, nimg: int, means: Mapping[str, Tensor]) -> None:
        """Let the moments of the styles follow."""
        self.terms.advance(means)

    def translate(
        self, network: nn.Module, images: Tensor, samples: Tensor, nimg: int, source: str, target: str
    ) -> Tensor:
        """Translations of images in the fixed styles number `samples`, at the resolution of `nimg`."""
        assert isinstance(network, Translator)
        level = self.level(nimg)
        style = SampleRandom(self.random, samples).normal(Purpose.LATENT_SAMPLE, self.settings.generator.style_size)
        return network.translated(self._reduced(images, level), style.to(images.dtype), source, target, level)

    def level(self, nimg: int) -> Level:
        """How far the networks have grown at `nimg`."""
        return _level(self.settings, growth_at(self.stages, nimg))

    def describe(self, nimg: int) -> str:
        """The resolution; during a fade, how much of it is blended in; and the crops."""
        growth = growth_at(self.stages, nimg)
        crop = self.settings.crop
        return describe_growth(growth) if crop is None else f"{crop}x{crop} of {describe_growth(growth)}"

    def inference(self, nimg: int) -> dict[str, Any]:
        """The domains, and the growth at `nimg`."""
        level = self.level(nimg)
        return {
            "resolution": growth_at(self.stages, nimg).resolution,
            "domains": list(self.domains),
            "level": level.number,
            "alpha": level.alpha,
        }

    def state_dict(self) -> dict[str, Any]:
        """The moments of the styles, if a term needs them."""
        return self.terms.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.terms.load_state_dict(state)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _discriminator_phase(self, level: Level, step: Step) -> Outcome:
        """Reals against translations in styles that are drawn for this phase; of the generators no graph is kept."""
        level = level.blending(step.alpha)
        real = self._seen(step, level)
        styles = self._styles(step.random, Purpose.STYLE_DISCRIMINATOR)
        with torch.no_grad():
            fake = {
                target: self.generator.translated(real[source], styles[target], source, target, level)
                for source, target in self.generator.directions
            }
        return self.game.discriminator(real, fake, step.random, level)

    def _r1_phase(self, level: Level, step: Step) -> Outcome:
        """R1 at the reals of each domain."""
        level = level.blending(step.alpha)
        return self.game.r1(self._seen(step, level), level)

    def _generator_phase(self, level: Level, step: Step) -> Outcome:
        """Translations that the discriminators take for reals, and all that has to come back as it was."""
        level = level.blending(step.alpha)
        found = self.terms.reconstructions(
            self._seen(step, level), self._styles(step.random, Purpose.STYLE_GENERATOR), level
        )
        return Outcome(found.losses | self.game.generator(found.fakes, level), found.statistics, found.averages)

    def _styles(self, random: SampleRandom, purpose: Purpose) -> dict[str, Tensor]:
        """By domain `[n, style_size]`, from N(0, 1)."""
        drawn = random.normal(purpose, len(self.domains), self.settings.generator.style_size).to(self._dtype)
        return dict(zip(self.domains, drawn.unbind(1), strict=True))

    def _seen(self, step: Step, level: Level) -> dict[str, Tensor]:
        """The images of each domain that the networks see."""
        images = {name: step.batch.domain(name) for name in self.domains}
        if self.settings.crop is not None:
            images = random_crops(images, self.settings.crop, step.random)
        return {name: speckled(cross_fade(one, level.alpha)) for name, one in images.items()}

    def _reduced(self, images: Tensor, level: Level) -> Tensor:
        """Images at the full resolution, at that of a level."""
        for _ in range(level.number):
            images = halve_box(images)
        return cross_fade(images, level.alpha)

    def _iterate_spectral_norm(self) -> None:
        for domain in self.domains:
            self.discriminator.discriminator(domain).iterate_spectral_norm()

    def _optimizers(self, growth: Growth) -> dict[str, OptimizerPlan]:
        settings, level = self.settings, _level(self.settings, growth)
        interval = settings.loss.r1_interval if settings.loss.r1 else None
        generator = tuple(self.generator.live_parameters(level))
        discriminator = tuple(self.discriminator.live_parameters(level))
        return {
            "generator": _plan(settings.generator_optimizer, growth.resolution, generator),
            "discriminator": _plan(settings.discriminator_optimizer, growth.resolution, discriminator, interval),
        }


def build_translator(settings: MunitSettings, dtype: torch.dtype, domains: Sequence[str]) -> Translator:
    """The generators of the settings; convolutions compute in `dtype`, and with float64 everything does."""
    network = Translator({domain: _generator(settings, dtype) for domain in domains})
    return network.double() if dtype == torch.float64 else network


def build_discriminators(settings: MunitSettings, dtype: torch.dtype, domains: Sequence[str]) -> Discriminators:
    """The discriminators of the settings, likewise."""
    network = Discriminators({domain: _discriminator(settings, dtype) for domain in domains})
    return network.double() if dtype == torch.float64 else network


def _generator(settings: MunitSettings, dtype: torch.dtype) -> Generator:
    own = settings.generator
    return Generator(
        style_size=own.style_size,
        base=own.base,
        most=own.most,
        content_downs=own.content_downs,
        style_downs=own.style_downs,
        blocks=own.blocks,
        features=own.features,
        dtype=_half(dtype),
        recompute=own.recompute,
        levels=settings.levels,
    )


def _discriminator(settings: MunitSettings, dtype: torch.dtype) -> MultiScaleDiscriminator:
    own = settings.discriminator
    return MultiScaleDiscriminator(
        scales=own.scales,
        layers=own.layers,
        base=own.base,
        most=own.most,
        spectral=own.spectral,
        dtype=_half(dtype),
        levels=settings.levels,
    )


def _half(dtype: torch.dtype) -> torch.dtype | None:
    """In which convolutions compute, if that is not the dtype of the images."""
    return None if dtype in (torch.float32, torch.float64) else dtype


def _stages(
    settings: MunitSettings, batch: IntByResolution, optimizers: Callable[[Growth], Mapping[str, OptimizerPlan]]
) -> list[Stage]:
    if settings.schedule is None:
        size = at_resolution(batch, settings.resolution)
        return [Stage(0, None, settings.resolution, size, 1, False, optimizers(Growth(settings.resolution)))]
    return growing_stages(settings.schedule, settings.resolution, batch, settings.group, optimizers)


def _level(settings: MunitSettings, growth: Growth) -> Level:
    return Level((settings.resolution // growth.resolution).bit_length() - 1, growth.alpha)


def _plan(
    settings: MunitOptimizerSettings, resolution: int, live: tuple[str, ...], interval: int | None = None
) -> OptimizerPlan:
    halving = None if settings.halve_kimg is None else round(settings.halve_kimg * 1000)
    plan = optimizer_plan(settings, resolution, live, interval)
    return replace(plan, weight_decay=settings.weight_decay, halving=halving)
