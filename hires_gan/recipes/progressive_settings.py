"""The `recipe` block of Progressive GAN."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hires_gan.recipes.optimizer_settings import GrowingScheduleSettings, OptimizerSettings, check_growth
from hires_gan.settings import NonNegative, Positive, PositiveInt, Resolution, Settings


class ProgressiveGeneratorSettings(Settings):
    """Progressive GAN's generator (Karras et al. 2018, table 2)."""

    latent_size: PositiveInt = 512
    """Dimensions of the latent vector."""

    fmap_base: PositiveInt = 8192
    """Feature maps at resolution R: 2 * fmap_base / R, at most fmap_max."""

    fmap_max: PositiveInt = 512
    """The most feature maps that any layer has."""


class ProgressiveDiscriminatorSettings(Settings):
    """Progressive GAN's discriminator (Karras et al. 2018, table 2)."""

    fmap_base: PositiveInt = 8192
    """Feature maps at resolution R: 2 * fmap_base / R, at most fmap_max."""

    fmap_max: PositiveInt = 512
    """The most feature maps that any layer has."""

    group_size: PositiveInt = 4
    """How many consecutive samples share one minibatch standard deviation."""


class PenaltySettings(Settings):
    """Gradient penalties on the discriminator; one of weight 0 is not computed at all."""

    r1: NonNegative = 0.0
    """gamma of R1, gamma/2 times the squared gradient at the reals (Mescheder et al. 2018)."""

    r2: NonNegative = 0.0
    """gamma of R2, likewise at the fakes."""

    gp: NonNegative = 0.0
    """Weight of the gradient penalty between reals and fakes (Gulrajani et al. 2017)."""

    gp_target: Positive = 1.0
    """The norm of the gradient that this penalty asks for."""

    drift: NonNegative = 0.0
    """Weight of the squared score of the reals, which keeps scores near zero (Karras et al. 2018, appendix A.1)."""

    @property
    def apart(self) -> bool:
        """Whether the scores of reals, or of fakes, are differentiated with respect to these images."""
        return self.r1 > 0 or self.r2 > 0


class WassersteinGpLoss(PenaltySettings):
    """The Wasserstein critic with gradient penalty: the paper's own loss."""

    name: Literal["wgan_gp"]
    gp: Positive = 10.0
    """Weight of the gradient penalty between reals and fakes."""
    drift: NonNegative = 0.001
    """Weight of the squared score of the reals."""
    label_weight: NonNegative = 1.0
    """Weight of the classification of reals and fakes (AC-GAN), if there are labels."""


class WassersteinClippedLoss(PenaltySettings):
    """The Wasserstein critic whose weights are clipped after each of its steps (Arjovsky et al. 2017)."""

    name: Literal["wgan"]
    clip: Positive = 0.01
    """Each weight of the critic is kept within plus and minus this."""
    label_weight: NonNegative = 1.0
    """Weight of the classification of reals and fakes (AC-GAN), if there are labels."""


class LogitLoss(PenaltySettings):
    """One of the losses on the discriminator's logit, with whatever penalties are asked for."""

    name: Literal["minimax", "non_saturating", "least_squares", "hinge"]
    label_weight: NonNegative = 1.0
    """Weight of the classification of reals and fakes (AC-GAN), if there are labels."""


LossSettings = Annotated[WassersteinGpLoss | WassersteinClippedLoss | LogitLoss, Field(discriminator="name")]


class ProgressiveSettings(Settings):
    """Progressive GAN: both networks grow from a few pixels to the full resolution."""

    name: Literal["progressive"]

    resolution: Resolution
    """The resolution at which the growth ends: at most that of the shards."""

    generator: ProgressiveGeneratorSettings = ProgressiveGeneratorSettings()
    discriminator: ProgressiveDiscriminatorSettings = ProgressiveDiscriminatorSettings()
    loss: LossSettings = WassersteinGpLoss(name="wgan_gp")
    schedule: GrowingScheduleSettings = GrowingScheduleSettings()
    generator_optimizer: OptimizerSettings = OptimizerSettings()
    discriminator_optimizer: OptimizerSettings = OptimizerSettings()

    labels: bool = False
    """Condition on the shards' class labels (AC-GAN, Odena et al. 2017)."""

    low_precision_resolutions: Annotated[int, Field(ge=0)] = 4
    """How many of the highest resolutions compute in `precision`; the rest computes in float32."""

    translates: ClassVar[bool] = False

    @model_validator(mode="after")
    def _starts_below_the_end(self) -> Self:
        check_growth(self.schedule, self.resolution, self.generator_optimizer, self.discriminator_optimizer)
        return self

    @property
    def first_resolution(self) -> int:
        """The resolution at which training starts."""
        return self.schedule.start_resolution

    @property
    def group_size(self) -> int:
        """How many consecutive samples share one minibatch standard deviation, where a batch has as many."""
        return self.discriminator.group_size

    def group(self, batch: int) -> int:
        """How many consecutive samples of a batch go through the networks together."""
        return min(self.discriminator.group_size, batch)
