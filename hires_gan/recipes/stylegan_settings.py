"""The `recipe` block of StyleGAN (Karras et al. 2019, "A Style-Based Generator Architecture for GANs")."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hires_gan.recipes.optimizer_settings import GrowingScheduleSettings, OptimizerSettings, check_growth
from hires_gan.settings import NonNegative, PositiveInt, Resolution, Settings

Probability = Annotated[float, Field(ge=0, le=1)]


class StyleGANGeneratorSettings(Settings):
    """The mapping and the synthesis network (section 2)."""

    latent_size: PositiveInt = 512
    """Dimensions of the latent vector."""

    w_size: PositiveInt = 512
    """Dimensions of the intermediate latent space W."""

    mapping_layers: PositiveInt = 8
    """Dense layers between the two."""

    fmap_base: PositiveInt = 8192
    """Feature maps at resolution R: 2 * fmap_base / R, at most fmap_max."""

    fmap_max: PositiveInt = 512
    """The most feature maps that any layer has."""


class StyleGANDiscriminatorSettings(Settings):
    """Progressive GAN's discriminator, with blurred halving."""

    fmap_base: PositiveInt = 8192
    """Feature maps at resolution R: 2 * fmap_base / R, at most fmap_max."""

    fmap_max: PositiveInt = 512
    """The most feature maps that any layer has."""

    group_size: PositiveInt = 4
    """How many consecutive samples share one minibatch standard deviation."""


class StyleGANLossSettings(Settings):
    """The non-saturating loss with a penalty on the gradient at the reals (appendix C)."""

    r1: NonNegative = 10.0
    """gamma of R1, gamma/2 times the squared gradient at the reals, in every step; at 0 it is not computed."""


class StyleGANScheduleSettings(GrowingScheduleSettings):
    """Progressive GAN's schedule, from 8x8 on (appendix C)."""

    start_resolution: Resolution = 8
    """The first resolution."""


class StyleGANSettings(Settings):
    """StyleGAN: styles control a synthesis network that grows to the full resolution."""

    name: Literal["stylegan"]

    resolution: Resolution
    """The resolution at which the growth ends: at most that of the shards."""

    generator: StyleGANGeneratorSettings = StyleGANGeneratorSettings()
    discriminator: StyleGANDiscriminatorSettings = StyleGANDiscriminatorSettings()
    loss: StyleGANLossSettings = StyleGANLossSettings()
    schedule: StyleGANScheduleSettings = StyleGANScheduleSettings()
    generator_optimizer: OptimizerSettings = OptimizerSettings()
    discriminator_optimizer: OptimizerSettings = OptimizerSettings()

    mixing: Probability = 0.9
    """How often the styles of a fake come from two latents (section 3.1)."""

    w_average_decay: Probability = 0.995
    """How much of the running mean of W stays in each step; images are truncated towards it (appendix B)."""

    labels: bool = False
    """Condition on the shards' class labels."""

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
