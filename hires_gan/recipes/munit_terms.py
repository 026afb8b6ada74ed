"""The terms of MUNIT's generators: what has to come back as it was (Huang et al. 2018, section 4, equations 1 to 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hires_gan.losses import absolute_difference, moment_matching
from hires_gan.networks.munit import Level
from hires_gan.networks.translation import Translator
from hires_gan.networks.vgg import VGG16Features, perceptual_distance
from hires_gan.recipes.munit_settings import MunitLossSettings


@dataclass(frozen=True)
class Reconstructions:
    """What a step of the generators gives, before their discriminators are asked.

    Attributes:
        fakes: By target domain, translations `[n, 3, r, r]` in drawn styles.
        losses: Terms, `[n]` each.
        statistics: As in `Outcome`.
        averages: As in `Outcome`.
    """

    fakes: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)


class Terms:
    """The generators' terms, and the moments of styles that one of them compares.

    Args:
        loss: The settings.
        translator: The generators.
        vgg: For the perceptual term; None if it has no weight.
        dtype: float32 or float64, of the moments.
    """

    def __init__(
        self, loss: MunitLossSettings, translator: Translator, vgg: VGG16Features | None, dtype: torch.dtype
    ) -> None:
        self.loss, self.translator, self.vgg = loss, translator, vgg
        # Of each domain the mean of the encoded styles, and of their squares, as those of N(0, 1) at first.
        size = translator.generator(translator.domains[0]).style_size
        start = torch.stack((torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)))
        self.moments = {domain: start.clone() for domain in translator.domains} if loss.style_prior else {}

    def reconstructions(
        self, real: Mapping[str, Tensor], styles: Mapping[str, Tensor], level: Level
    ) -> Reconstructions:
        """Translate images of both domains, and compare what is to be the same.

        Args:
            real: By domain `[n, 3, r, r]` in [-1, 1].
            styles: By target domain `[n, style_size]`, drawn.
            level: How far the networks have grown.
        """
        found = Reconstructions()
        for source, target in self.translator.directions:
            self._one_way(found, source, target, real[source], styles[target], level)
        return found

    def advance(self, means: Mapping[str, Tensor]) -> None:
        """Let the moments of the styles follow the means of a step."""
        for domain, moments in self.moments.items():
            mean = means[f"average/style_moments_{domain}"]
            self.moments[domain] = moments.to(mean)
            self.moments[domain].lerp_(mean, 1 - self.loss.style_prior_decay)

    def state_dict(self) -> dict[str, Any]:
        """The moments of the styles."""
        return {"style_moments": {domain: moments.tolist() for domain, moments in self.moments.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        for domain, moments in self.moments.items():
            moments.copy_(torch.tensor(state["style_moments"][domain], dtype=torch.float64))

    def _one_way(
        self, found: Reconstructions, source: str, target: str, x: Tensor, drawn: Tensor, level: Level
    ) -> None:
        """From one domain to the other, and back."""
        loss, own, other = self.loss, self.translator.generator(source), self.translator.generator(target)
        content = own.encode_content(x, level=level)
        fake = other.decode(content, drawn, level=level)
        found.fakes[target] = fake
        style = None
        if loss.image or loss.cycle or loss.style_prior:
            style = own.encode_style(x, level=level)
            self._compare_styles(found, source, style)
        if loss.image:
            within = own.decode(content, _given(style), level=level)
            found.losses[f"image_{source}"] = loss.image * absolute_difference(within, x)
        if loss.style:
            again = other.encode_style(fake, level=level)
            found.losses[f"style_{target}"] = loss.style * absolute_difference(again, drawn)
        if loss.content or loss.cycle:
            self._there_and_back(found, source, target, x, content, style, level)
        if loss.perceptual:
            distance = self._perceptual(fake, x)
            found.losses[f"perceptual_{source}"] = loss.perceptual * distance

    def _there_and_back(
        self,
        found: Reconstructions,
        source: str,
        target: str,
        x: Tensor,
        content: Tensor,
        style: Tensor | None,
        level: Level,
    ) -> None:
        """The content of the translation; and with the image's own style, the image again."""
        loss, own, other = self.loss, self.translator.generator(source), self.translator.generator(target)
        again = other.encode_content(found.fakes[target], level=level)
        if loss.content:
            wanted = content.detach() if loss.detach_content else content
            found.losses[f"content_{source}"] = loss.content * absolute_difference(again, wanted)
        if loss.cycle:
            cycled = own.decode(again, _given(style), level=level)
            found.losses[f"cycle_{source}"] = loss.cycle * absolute_difference(cycled, x)

    def _compare_styles(self, found: Reconstructions, domain: str, style: Tensor) -> None:
        found.statistics[f"style_square_{domain}"] = style.detach().square().mean(1)
        if self.loss.style_prior:
            self.moments[domain] = self.moments[domain].to(style.device)
            mean, square = self.moments[domain]
            variance = square - mean.square()
            term = moment_matching(style, mean, variance)
            apart = (mean.square() / 2 + (variance - 1).square() / 4).mean()
            found.statistics[f"style_divergence_{domain}"] = apart.expand(len(style))
            found.losses[f"style_prior_{domain}"] = self.loss.style_prior * term
            found.averages[f"style_moments_{domain}"] = torch.stack((style, style.square()), 1).detach()

    def _perceptual(self, fake: Tensor, x: Tensor) -> Tensor:
        assert self.vgg is not None
        vgg = self.vgg.to(fake.device)
        with torch.no_grad():
            wanted = vgg.features_at(x, self.loss.perceptual_layer)
        return perceptual_distance(vgg.features_at(fake, self.loss.perceptual_layer), wanted)


def _given(style: Tensor | None) -> Tensor:
    assert style is not None
    return style
