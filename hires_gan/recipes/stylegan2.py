"""How StyleGAN2 is trained (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN").

With the adaptive augmentation of "Training Generative Adversarial Networks with Limited Data" (Karras et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hires_gan.augment.draws import draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.probability import AdaptiveProbability
from hires_gan.losses import ADVERSARIAL, gradient_square, path_lengths
from hires_gan.networks.growth import Width
from hires_gan.networks.stylegan2 import Discriminator, Generator
from hires_gan.randomness import Purpose, RandomSource, SampleRandom, initial_weights
from hires_gan.recipes.optimizers import low_precision, optimizer_plan
from hires_gan.recipes.passes import in_one_pass
from hires_gan.recipes.protocol import LabelDistribution, OptimizerPlan, Outcome, Phase, Stage, Step, due_phases
from hires_gan.recipes.stylegan2_settings import (
    StyleGAN2DiscriminatorSettings,
    StyleGAN2GeneratorSettings,
    StyleGAN2Settings,
)
from hires_gan.recipes.styles import DISCRIMINATOR, GENERATOR, PATH, FakePurposes, Styles, draw_styles
from hires_gan.settings import IntByResolution, at_resolution

_LOSS = ADVERSARIAL["non_saturating"]


class StyleGAN2:
    """StyleGAN2's recipe: four phases, two of which are due now and then only.

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
        settings: StyleGAN2Settings,
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
        size = at_resolution(batch, settings.resolution)
        self.r1 = r1_gamma(settings, size)
        self.share = settings.share(size)
        stage = Stage(0, None, settings.resolution, size, settings.group(size), False, self._optimizers())
        self.stages = [stage]
        self.path_mean = torch.zeros((), dtype=self._dtype)
        self.probability = None if settings.augment is None else AdaptiveProbability(settings.augment.probability)

    def phases(self, nimg: int) -> list[Phase]:
        """The generator's two phases, then the discriminator's, as far as they are due."""
        loss = self.settings.loss
        phases = [Phase("generator", "generator", self._generator_phase)]
        if loss.path_length:
            phases.append(Phase("path_length", "generator", self._path_phase, interval=loss.path_length_interval))
        phases.append(Phase("discriminator", "discriminator", self._discriminator_phase))
        if self.r1:
            phases.append(Phase("r1", "discriminator", self._r1_phase, interval=loss.r1_interval))
        return due_phases(phases, self.stages, nimg)

    def advance(self, nimg: int, means: Mapping[str, Tensor]) -> None:
        """Let the means of W and of the path lengths follow, and the probability of augmentation."""
        self.generator.track_w(means["average/w"], self.settings.w_average_decay)
        if "statistics/path_length" in means:
            length = means["statistics/path_length"]
            self.path_mean = self.path_mean.to(length)
            self.path_mean.lerp_(length, self.settings.loss.path_length_decay)
        if self.probability is not None:
            self.probability.advance(means["statistics/sign_real"], self.stages[0].batch)

    def sample(self, network: nn.Module, samples: Tensor, nimg: int) -> Tensor:
        """Images of the fixed latents number `samples`; labels as often as in the data, constant noise."""
        random = SampleRandom(self.random, samples)
        latents = random.normal(Purpose.LATENT_SAMPLE, self.settings.generator.latent_size)
        labels = self.labels.draw(random.uniform(Purpose.LABEL_SAMPLE)) if self.labels else None
        images: Tensor = network(latents.to(self._dtype), labels)
        return images

    def describe(self, nimg: int) -> str:
        """The resolution."""
        return f"{self.settings.resolution}x{self.settings.resolution}"

    def inference(self, nimg: int) -> dict[str, Any]:
        """The resolution and the number of classes."""
        return {"resolution": self.settings.resolution, "classes": self.generator.classes}

    def state_dict(self) -> dict[str, Any]:
        """The mean path length, and the state of the augmentation; the mean of W lies among the weights."""
        state: dict[str, Any] = {"path_mean": self.path_mean.item()}
        return state if self.probability is None else state | {"augment": self.probability.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.path_mean.fill_(state["path_mean"])
        if self.probability is not None:
            self.probability.load_state_dict(state["augment"])

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _generator_phase(self, step: Step) -> Outcome:
        """The generator's loss, from latents of its own."""
        styles, fake = self._fakes(step.random, GENERATOR)
        scores = self.discriminator(self._augmented(fake, step.random, Purpose.AUGMENT_GENERATOR), styles.labels)
        return Outcome({"generator": _LOSS.generator(scores)})

    def _path_phase(self, step: Step) -> Outcome:
        """The path lengths of every so many-th sample are drawn to their running mean of the step before.

        The authors' mean includes the step's own lengths; that would couple the samples of a batch.
        """
        loss = self.settings.loss
        # Samples come in whole groups, of which the first sample's index is a multiple of the share.
        chosen = SampleRandom(step.random.source, step.random.samples[:: self.share])
        styles = self._styles(chosen, PATH)
        fake = self.generator.synthesis(styles.ws, self._noise(chosen, PATH))
        directions = chosen.normal(Purpose.DIRECTION_PATH, *fake.shape[1:]).to(fake.dtype)
        lengths = path_lengths(fake, styles.ws, directions)
        self.path_mean = self.path_mean.to(lengths)
        # The sum over samples is divided by the whole batch: what only some of them have counts as many times.
        weight = loss.path_length * loss.path_length_interval * self.share
        penalty = (lengths - self.path_mean).square() * weight
        return Outcome({"path_length": penalty}, {"path_length": lengths.detach() * self.share})

    def _discriminator_phase(self, step: Step) -> Outcome:
        """The discriminator's loss on reals and fakes, both augmented."""
        with torch.no_grad():
            styles, fake = self._fakes(step.random, DISCRIMINATOR)
        fake = self._augmented(fake, step.random, Purpose.AUGMENT_FAKE)
        real = self._augmented(step.batch.images, step.random, Purpose.AUGMENT_REAL)
        fake_scores, real_scores = self._scores(fake, styles.labels, real, self._real_labels(step))
        statistics = {"score_real": real_scores, "score_fake": fake_scores, "sign_real": real_scores.sign()}
        if self.probability is not None:
            statistics["augment_probability"] = self.probability.p.to(real_scores).expand_as(real_scores)
        return Outcome(
            {
                "discriminator_real": _LOSS.discriminator_real(real_scores),
                "discriminator_fake": _LOSS.discriminator_fake(fake_scores),
            },
            {name: values.detach() for name, values in statistics.items()},
            {"w": styles.w},
        )

    def _scores(
        self, fake: Tensor, fake_labels: Tensor | None, real: Tensor, real_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The scores of fakes and reals: in one pass, unless a group would then hold some of both."""
        if not in_one_pass(len(fake), self.discriminator.group):
            return self.discriminator(fake, fake_labels), self.discriminator(real, real_labels)
        labels = None if fake_labels is None or real_labels is None else torch.cat((fake_labels, real_labels))
        both: Tensor = self.discriminator(torch.cat((fake, real)), labels)
        return both[: len(fake)], both[len(fake) :]

    def _r1_phase(self, step: Step) -> Outcome:
        """R1 at the reals before their augmentation, through it."""
        real = step.batch.images.detach().requires_grad_(True)
        scores = self.discriminator(self._augmented(real, step.random, Purpose.AUGMENT_REAL), self._real_labels(step))
        penalty = gradient_square(real, scores)
        weight = self.r1 / 2 * self.settings.loss.r1_interval
        return Outcome({"r1": penalty * weight}, {"r1_gradient": penalty.detach()})

    def _styles(self, random: SampleRandom, purposes: FakePurposes) -> Styles:
        return draw_styles(self.generator, random, purposes, self.settings.mixing, self.labels)

    def _noise(self, random: SampleRandom, purposes: FakePurposes) -> list[Tensor]:
        synthesis = self.generator.synthesis
        return synthesis.split_noise(random.normal(purposes.noise, synthesis.noise_total).to(self._dtype))

    def _fakes(self, random: SampleRandom, purposes: FakePurposes) -> tuple[Styles, Tensor]:
        styles = self._styles(random, purposes)
        return styles, self.generator.synthesis(styles.ws, self._noise(random, purposes))

    def _augmented(self, images: Tensor, random: SampleRandom, purpose: Purpose) -> Tensor:
        """What the discriminator sees of some images."""
        if self.probability is None:
            return images
        settings = self.settings.augment
        assert settings is not None
        p = self.probability.on(images.device)
        return augment(images, draw(random, purpose, settings, images.shape), p, settings)

    def _real_labels(self, step: Step) -> Tensor | None:
        return step.batch.labels if self.labels else None

    def _optimizers(self) -> dict[str, OptimizerPlan]:
        settings, loss = self.settings, self.settings.loss
        layers = self.discriminator.layers_from_image()[: settings.discriminator.freeze]
        frozen = {name for layer in layers for name in layer}
        generator = tuple(name for name, _ in self.generator.named_parameters())
        discriminator = tuple(name for name, _ in self.discriminator.named_parameters() if name not in frozen)
        path = loss.path_length_interval if loss.path_length else None
        r1 = loss.r1_interval if loss.r1 else None
        side = settings.resolution
        return {
            "generator": optimizer_plan(settings.generator_optimizer, side, generator, path),
            "discriminator": optimizer_plan(settings.discriminator_optimizer, side, discriminator, r1),
        }


def r1_gamma(settings: StyleGAN2Settings, batch: int) -> float:
    """Gamma of R1; "auto" grows with the number of pixels and falls with the batch (appendix C of the paper on ADA)."""
    if settings.loss.r1 == "auto":
        return 0.0002 * settings.resolution**2 / batch
    return settings.loss.r1


def build_generator(
    settings: StyleGAN2Settings, dtype: torch.dtype, classes: int, clamp: float | None = None
) -> Generator:
    """The generator of the settings; `dtype` is that of its highest resolutions, float64 that of everything.

    Layers clamp at `clamp`; by default at 256 in half precision, and not at all in full.
    """
    own = settings.generator
    network = Generator(
        settings.resolution,
        own.latent_size,
        own.w_size,
        classes,
        own.mapping_layers,
        _width(own, settings.resolution),
        low_precision(settings, dtype),
        clamp,
    )
    return network.double() if dtype == torch.float64 else network


def build_discriminator(settings: StyleGAN2Settings, dtype: torch.dtype, classes: int) -> Discriminator:
    """The discriminator of the settings, likewise."""
    own = settings.discriminator
    network = Discriminator(
        settings.resolution,
        classes,
        _width(own, settings.resolution),
        own.group_size,
        own.architecture,
        dtypes=low_precision(settings, dtype),
    )
    return network.double() if dtype == torch.float64 else network


def _width(settings: StyleGAN2GeneratorSettings | StyleGAN2DiscriminatorSettings, resolution: int) -> Width:
    """fmap_base / R maps at resolution R: `Width` counts with half of that."""
    return Width(at_resolution(settings.fmap_base, resolution) // 2, settings.fmap_max)
