"""The `recipe` block of StyleGAN2 (Karras et al. 2020) and its adaptive augmentation."""

from __future__ import annotations

from math import lcm
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hires_gan.augment.settings import SMALLEST, AugmentSettings, ProbabilitySettings
from hires_gan.recipes.optimizer_settings import OptimizerSettings
from hires_gan.recipes.stylegan_settings import Probability
from hires_gan.settings import IntByResolution, NonNegative, PositiveInt, Resolution, Settings, at_resolution


class StyleGAN2GeneratorSettings(Settings):
    """The mapping network and the skip generator (section 4, appendix B)."""

    latent_size: PositiveInt = 512
    """Dimensions of the latent vector."""

    w_size: PositiveInt = 512
    """Dimensions of the intermediate latent space W."""

    mapping_layers: PositiveInt = 8
    """Dense layers between the two."""

    fmap_base: IntByResolution = 32768
    """Feature maps at resolution R: fmap_base / R, at most fmap_max; a map chooses by the recipe's resolution."""

    fmap_max: PositiveInt = 512
    """The most feature maps that any layer has."""


class StyleGAN2DiscriminatorSettings(Settings):
    """The residual discriminator (section 4, appendix B)."""

    architecture: Literal["resnet", "orig"] = "resnet"
    """resnet: residual blocks; orig: plain ones, as for CIFAR-10 in "Training GANs with Limited Data"."""

    fmap_base: IntByResolution = 32768
    """Feature maps at resolution R: fmap_base / R, at most fmap_max; a map chooses by the recipe's resolution."""

    fmap_max: PositiveInt = 512
    """The most feature maps that any layer has."""

    group_size: PositiveInt = 4
    """How many consecutive samples share one minibatch standard deviation."""

    freeze: Annotated[int, Field(ge=0)] = 0
    """How many layers, counted from the image, do not learn (Freeze-D, Mo et al. 2020)."""


class StyleGAN2LossSettings(Settings):
    """The non-saturating loss, and two regularisations that are computed now and then (appendix B)."""

    r1: NonNegative | Literal["auto"] = 10.0
    """gamma of R1; auto: 0.0002 * resolution^2 / batch ("Training GANs with Limited Data"); 0: not computed."""

    r1_interval: PositiveInt = 16
    """Every how many steps R1 is computed; it weighs as many times as much."""

    path_length: NonNegative = 2.0
    """Weight of the path length regularisation (section 3.2); 0: not computed."""

    path_length_interval: PositiveInt = 4
    """Every how many steps it is computed; it weighs as many times as much."""

    path_length_decay: Probability = 0.01
    """How far the running mean of the path lengths moves towards those of a step."""

    path_length_share: PositiveInt = 2
    """Path lengths are measured on every so many-th sample of a batch; on all of one that this does not divide."""


class AugmentationSettings(AugmentSettings):
    """Augmentation of all that the discriminator sees ("Training GANs with Limited Data")."""

    probability: ProbabilitySettings = ProbabilitySettings()
    """How often images are augmented."""


class StyleGAN2Settings(Settings):
    """StyleGAN2: modulated convolutions, no growing, lazy regularisation."""

    name: Literal["stylegan2"]

    resolution: Resolution
    """The side of the images: at most that of the shards."""

    generator: StyleGAN2GeneratorSettings = StyleGAN2GeneratorSettings()
    discriminator: StyleGAN2DiscriminatorSettings = StyleGAN2DiscriminatorSettings()
    loss: StyleGAN2LossSettings = StyleGAN2LossSettings()
    generator_optimizer: OptimizerSettings = OptimizerSettings(learning_rate=0.002)
    discriminator_optimizer: OptimizerSettings = OptimizerSettings(learning_rate=0.002)

    augment: AugmentationSettings | None = None
    """Adaptive augmentation; null: none. For fewer than some ten thousand images."""

    mixing: Probability = 0.9
    """How often the styles of a fake come from two latents."""

    w_average_decay: Probability = 0.995
    """How much of the running mean of W stays in each step; images are truncated towards it."""

    labels: bool = False
    """Condition on the shards' class labels: embedded for the mapping, projected in the discriminator."""

    low_precision_resolutions: Annotated[int, Field(ge=0)] = 4
    """How many of the highest resolutions compute in `precision`; the rest computes in float32."""

    translates: ClassVar[bool] = False

    @model_validator(mode="after")
    def _maps_reach_the_resolution(self) -> Self:
        for block in ("generator", "discriminator"):
            maps = {"fmap_base": getattr(self, block).fmap_base}
            rates = {"learning_rate": getattr(self, f"{block}_optimizer").learning_rate}
            for key, value in (maps | rates).items():
                try:
                    at_resolution(value, self.resolution)
                except ValueError as error:
                    where = block if key == "fmap_base" else f"{block}_optimizer"
                    raise ValueError(f"{where}.{key} has {error}; add an entry for {self.resolution}") from None
        return self

    @model_validator(mode="after")
    def _large_enough_to_augment(self) -> Self:
        if self.augment is not None and self.resolution < SMALLEST:
            raise ValueError(
                f"augment needs a resolution of {SMALLEST} or more, found {self.resolution}; set it to null"
            )
        return self

    @property
    def first_resolution(self) -> int:
        """The resolution at which training starts."""
        return self.resolution

    def share(self, batch: int) -> int:
        """Path lengths are measured on every so many-th sample of a batch."""
        share = self.loss.path_length_share if self.loss.path_length else 1
        return share if batch % share == 0 else 1

    @property
    def group_size(self) -> int:
        """How many consecutive samples share one minibatch standard deviation, where a batch has as many."""
        return self.discriminator.group_size

    def group(self, batch: int) -> int:
        """How many consecutive samples of a batch go through the networks together; path lengths want one of them."""
        return lcm(min(self.discriminator.group_size, batch), self.share(batch))
