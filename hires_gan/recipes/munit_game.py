"""The game between MUNIT's generators and its discriminators: scores at many places and several scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hires_gan.augment.draws import draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.settings import AugmentSettings
from hires_gan.losses import ADVERSARIAL, gradient_square, over_scales
from hires_gan.networks.blending import Alpha
from hires_gan.networks.munit import Level
from hires_gan.networks.translation import Discriminators
from hires_gan.randomness import Purpose, SampleRandom
from hires_gan.recipes.munit_settings import MunitSettings
from hires_gan.recipes.passes import in_one_pass
from hires_gan.recipes.protocol import Outcome

Images = Mapping[str, Tensor]
"""By domain `[n, 3, r, r]` in [-1, 1]."""

_MOVED = AugmentSettings(preset="blit", rotate90=0)
"""What consistency asks scores to be blind to: reflections, and shifts by up to an eighth of the side."""


class Game:
    """The adversarial terms of both players, and the discriminators' penalties.

    Args:
        settings: The `recipe` block.
        discriminators: Of both domains.
    """

    def __init__(self, settings: MunitSettings, discriminators: Discriminators) -> None:
        self.settings, self.loss, self.discriminators = settings, settings.loss, discriminators

    def discriminator(self, real: Images, fake: Images, random: SampleRandom, level: Level) -> Outcome:
        """Reals against fakes of each domain, and how much their scores change where images are moved.

        Args:
            real: By domain.
            fake: By domain, without gradient.
            random: Of the samples; the images of both domains are moved alike.
            level: How far the networks have grown.
        """
        terms: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        game, weights = ADVERSARIAL[self.loss.name], self._game_weights(level)
        for domain in real:
            of_real, of_fake = self._judged(domain, real[domain], fake[domain], level)
            terms[f"discriminator_real_{domain}"] = over_scales(game.discriminator_real, of_real, weights)
            terms[f"discriminator_fake_{domain}"] = over_scales(game.discriminator_fake, of_fake, weights)
            statistics[f"score_real_{domain}"] = self._score(of_real, level).detach()
            statistics[f"score_fake_{domain}"] = self._score(of_fake, level).detach()
            if self.loss.consistency:
                moved = self._judged(domain, *_moved(random, real[domain], fake[domain]), level)
                changes = self._inconsistency((of_real, of_fake), moved, level)
                terms[f"consistency_{domain}"] = self.loss.consistency * changes
        return Outcome(terms, statistics)

    def r1(self, real: Images, level: Level) -> Outcome:
        """R1 at the reals of each domain, as many times as strong as there are steps between."""
        terms: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        for domain, given in real.items():
            images = given.detach().requires_grad_(True)
            maps = self.discriminators.discriminator(domain)(images, level)
            penalty = gradient_square(images, self._score(maps, level))
            terms[f"r1_{domain}"] = penalty * (self.loss.r1 / 2 * self.loss.r1_interval)
            statistics[f"r1_gradient_{domain}"] = penalty.detach()
        return Outcome(terms, statistics)

    def generator(self, fakes: Images, level: Level) -> dict[str, Tensor]:
        """The generators' terms, `[n]` each: their images are to be taken for reals."""
        game, weights = ADVERSARIAL[self.loss.name], self._game_weights(level)
        return {
            f"generator_{domain}": self.loss.adversarial
            * over_scales(game.generator, self.discriminators.discriminator(domain)(fake, level), weights)
            for domain, fake in fakes.items()
        }

    def _judged(self, domain: str, real: Tensor, fake: Tensor, level: Level) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of scores of reals and fakes, in one pass: nothing couples them."""
        discriminator = self.discriminators.discriminator(domain)
        if not in_one_pass(len(fake)):
            return discriminator(real, level), discriminator(fake, level)
        maps = discriminator(torch.cat((real, fake)), level)
        return [one[: len(real)] for one in maps], [one[len(real) :] for one in maps]

    def _inconsistency(
        self, before: Sequence[Sequence[Tensor]], behind: Sequence[Sequence[Tensor]], level: Level
    ) -> Tensor:
        """How much the mean scores of each scale change, squared: of reals and of fakes."""
        squares = [
            (_mean(a) - _mean(b)).square() * weight
            for one, other in zip(before, behind, strict=True)
            for a, b, weight in zip(one, other, self._weights(level), strict=True)
        ]
        return torch.stack(squares).sum(0)

    def _score(self, maps: Sequence[Tensor], level: Level) -> Tensor:
        """One score for each sample, `[n]`."""
        return over_scales(lambda scores: scores, maps, self._weights(level))

    def _weights(self, level: Level) -> list[Alpha]:
        """Of the scales that live: one that fades in counts as much as it has come."""
        live = self.settings.discriminator.scales - level.number
        weights: list[Alpha] = [level.alpha, *[1.0] * (live - 1)]
        total = sum(weights) if self.loss.scales == "mean" else 1.0
        return [weight / total for weight in weights]

    def _game_weights(self, level: Level) -> list[Alpha]:
        """The same for the adversarial terms: MUNIT's least squares have no factor 1/2."""
        factor = 2.0 if self.loss.name == "least_squares" else 1.0
        return [weight * factor for weight in self._weights(level)]


def _moved(random: SampleRandom, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Reals and fakes, mirrored and shifted."""
    pairs = ((real, Purpose.AUGMENT_REAL), (fake, Purpose.AUGMENT_FAKE))
    one, other = (augment(x, draw(random, purpose, _MOVED, x.shape), 1.0, _MOVED) for x, purpose in pairs)
    return one, other


def _mean(scores: Tensor) -> Tensor:
    return scores.flatten(1).mean(1)
