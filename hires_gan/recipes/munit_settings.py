"""The `recipe` block of MUNIT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hires_gan.augment.settings import SMALLEST
from hires_gan.recipes.optimizer_settings import GrowingScheduleSettings, OptimizerSettings, check_growth
from hires_gan.settings import FloatByResolution, HomePath, NonNegative, Positive, PositiveInt, Resolution, Settings


class MunitGeneratorSettings(Settings):
    """Encoders and decoder of each domain (Huang et al. 2018, appendix B)."""

    style_size: PositiveInt = 8
    """Dimensions of a style."""

    base: PositiveInt = 64
    """Channels at full resolution; each halving of the resolution doubles them."""

    most: PositiveInt = 256
    """Channels of the content encoder are no more than this; the decoder halves what it gets at each doubling."""

    content_downs: PositiveInt = 2
    """How often the content encoder halves the resolution. At 1024x1024, 3 suits scenes and 4 centred objects."""

    style_downs: PositiveInt = 4
    """How often the style encoder does; its channels are no more than four times base."""

    blocks: PositiveInt = 4
    """Residual blocks in the content encoder, and as many in the decoder."""

    features: PositiveInt = 256
    """Of the dense layers between a style and the decoder's normalisations."""

    recompute: bool = False
    """Compute what lies at full resolution again in the backward pass, instead of keeping it: less memory, more time;
    the same gradients."""


class MunitDiscriminatorSettings(Settings):
    """The discriminator of each domain, at several scales of an image (Huang et al. 2018, appendix B)."""

    scales: PositiveInt = 3
    """How many there are, each with weights of its own, and with images of half the size of those before."""

    layers: PositiveInt = 4
    """Strided convolutions of each: another one about doubles what a score sees."""

    base: PositiveInt = 64
    """Channels of the first; each further one doubles them."""

    most: PositiveInt = 512
    """Channels are no more than this."""

    spectral: bool = False
    """Divide weights by their largest singular values (Miyato et al. 2018), iterated behind each optimizer step."""


class MunitLossSettings(Settings):
    """The terms of the loss (Huang et al. 2018, section 4 and appendix B); one of weight 0 costs nothing."""

    name: Literal["least_squares", "hinge", "non_saturating"] = "least_squares"
    """The adversarial game; least squares without the factor 1/2, as published for MUNIT."""

    scales: Literal["sum", "mean"] = "sum"
    """Whether the scales of a discriminator are added, as published, or averaged."""

    adversarial: Positive = 1.0
    """Weight of the generators' adversarial term."""

    image: NonNegative = 10.0
    """Weight of |decoded(content, style) - image|, within each domain."""

    content: NonNegative = 1.0
    """Weight of |content of the translation - content|."""

    style: NonNegative = 1.0
    """Weight of |style of the translation - the style that was drawn|."""

    cycle: NonNegative = 10.0
    """Weight of |image there and back, with its own style - image|, the style-augmented cycle; published with 0 for
    edges and shoes, and with 10 for photographs."""

    perceptual: NonNegative = 0.0
    """Weight of the domain-invariant perceptual term: instance-normalised VGG16 features of an image and its
    translation. The paper uses it for images of 512 and more."""

    perceptual_layer: Literal["relu3_3", "relu4_3", "relu5_3"] = "relu5_3"
    """Where VGG16's features are taken: relu4_3 by the paper's appendix, relu5_3 in the authors' code, whose network
    has no pooling before it, and other weights: its features have the stride of relu4_3."""

    detach_content: bool = False
    """Whether the content term moves the second encoding alone, and not the first one, too."""

    style_prior: NonNegative = 0.0
    """Weight of the distance of the encoded styles' running mean and variance from those of N(0, 1), from which random
    styles are drawn: with it, encoded styles are ones that the decoders have met. The term's value says nothing, only
    its gradient does; the distance itself is logged as statistics/style_divergence."""

    style_prior_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """By which these running moments forget in a step."""

    r1: NonNegative = 0.0
    """gamma of R1 on the reals, gamma/2 times the squared gradient (Mescheder et al. 2018)."""

    r1_interval: PositiveInt = 16
    """Every how many steps R1 is taken, as many times as strong."""

    consistency: NonNegative = 0.0
    """Weight of the squared difference between the mean scores, at each scale, of an image, real or fake, and of the
    same mirrored and shifted (Zhao et al. 2021, "Improved Consistency Regularization for GANs")."""


class MunitOptimizerSettings(OptimizerSettings):
    """Adam, for one player."""

    learning_rate: FloatByResolution = 0.0001
    """A number, or a map by resolution; while a resolution fades in, its own entry holds."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.999)
    """Decay of Adam's first and second moment."""

    weight_decay: NonNegative = 0.0
    """Times the weights is added to their gradients; 0.0001 is published."""

    halve_kimg: Positive | None = None
    """The learning rate is halved each time that so many thousand images of a domain were shown; null: never; 100 is
    published, with batches of one."""


class CoarseToFineSettings(GrowingScheduleSettings):
    """When which resolution is trained, where training starts below the full one."""

    start_resolution: Resolution = 256
    """The first resolution, at most as many doublings below the full one as the networks have halvings, less one."""

    stable_kimg: NonNegative = 200.0
    """How long each resolution trains at full strength before the next one fades in."""

    fade_kimg: NonNegative = 100.0
    """How long a new resolution takes to fade in; 0 switches at once."""


class VggSettings(Settings):
    """Where the perceptual term has VGG16's weights from."""

    weights: HomePath | None = None
    """torchvision's file, vgg16-397923af.pth; null: torch hub's cache."""

    download: bool = True
    """Fetch them (528 MB) if they are not in the cache."""


class MunitSettings(Settings):
    """MUNIT: images of two domains, translated into each other in many styles."""

    name: Literal["munit"]

    resolution: Resolution
    """Side of the images: at most that of the shards."""

    crop: PositiveInt | None = None
    """Side of the random crops that are trained on, a multiple of 2^content_downs; null: whole images. Samples and
    evaluation take whole ones."""

    generator: MunitGeneratorSettings = MunitGeneratorSettings()
    discriminator: MunitDiscriminatorSettings = MunitDiscriminatorSettings()
    loss: MunitLossSettings = MunitLossSettings()
    generator_optimizer: MunitOptimizerSettings = MunitOptimizerSettings()
    discriminator_optimizer: MunitOptimizerSettings = MunitOptimizerSettings()

    schedule: CoarseToFineSettings | None = None
    """Coarse to fine: start at a lower resolution and fade the higher ones in; null: the full one from the start."""

    vgg: VggSettings = VggSettings()

    labels: ClassVar[bool] = False
    translates: ClassVar[bool] = True

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.schedule is not None:
            check_growth(self.schedule, self.resolution, self.generator_optimizer, self.discriminator_optimizer)
        problems = [*_generator_problems(self), *_growth_problems(self), *_side_problems(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def first_resolution(self) -> int:
        """The resolution at which training starts."""
        return self.resolution if self.schedule is None else self.schedule.start_resolution

    @property
    def levels(self) -> int:
        """How many resolutions there are below the full one at which the networks work by themselves."""
        return (self.resolution // self.first_resolution).bit_length() - 1

    @property
    def group_size(self) -> int:
        """Nothing couples the samples of a batch."""
        return 1

    def group(self, batch: int) -> int:
        """How many consecutive samples of a batch go through the networks together."""
        return 1


_LEAST_FOR_FEATURES = {"relu3_3": 8, "relu4_3": 16, "relu5_3": 32}
"""Sides from which on VGG16's features have two pixels, without which nothing is left of them when normalised."""


def least_side(scales: int, layers: int) -> int:
    """The least side of the images of a discriminator: its last layer needs two pixels to reflect."""
    side: int = 1 << layers
    for _ in range(scales - 1):
        side = 2 * side - 1
    return side


def _generator_problems(settings: MunitSettings) -> Iterator[str]:
    own = settings.generator
    channels = min(own.base << own.content_downs, own.most)
    if channels % (1 << own.content_downs):
        yield (
            f"the content has {channels} channels, which the decoder cannot halve generator.content_downs = "
            f"{own.content_downs} times; choose generator.base and generator.most such that "
            f"min(base * 2^content_downs, most) is a multiple of {1 << own.content_downs}"
        )


def _growth_problems(settings: MunitSettings) -> Iterator[str]:
    if settings.schedule is None or not settings.levels:
        return
    if settings.crop is not None:
        yield "crop and schedule are both given; a network that grows is trained on whole images: set one to null"
    limits = {
        "generator.content_downs": settings.generator.content_downs,
        "generator.style_downs": settings.generator.style_downs,
        "discriminator.scales": settings.discriminator.scales,
    }
    for key, value in limits.items():
        if settings.levels >= value:
            yield (
                f"schedule.start_resolution is {settings.first_resolution}, {settings.levels} doublings below "
                f"{settings.resolution}, but {key} is {value}, which allows {value - 1}; raise one of them"
            )


def _side_problems(settings: MunitSettings) -> Iterator[str]:
    judge, stride = settings.discriminator, 1 << settings.generator.content_downs
    key, side = ("resolution", settings.resolution) if settings.crop is None else ("crop", settings.crop)
    least = max(least_side(judge.scales, judge.layers), 2 * stride, 1 << settings.generator.style_downs)
    if settings.crop is not None and settings.crop > settings.resolution:
        yield f"crop is {side}, more than the resolution of {settings.resolution}"
    if side % stride:
        yield f"{key} is {side}; a multiple of 2^generator.content_downs, {stride}, is allowed"
    pixels = settings.first_resolution if settings.crop is None else side
    loss = settings.loss
    if loss.consistency and pixels < SMALLEST:
        yield (
            f"loss.consistency is {loss.consistency:g}, and what moves the images wants {SMALLEST} pixels, not "
            f"{pixels}; set loss.consistency to 0, or take larger images"
        )
    if loss.perceptual and pixels < _LEAST_FOR_FEATURES[loss.perceptual_layer]:
        yield (
            f"loss.perceptual is {loss.perceptual:g}, and of images of {pixels} loss.perceptual_layer "
            f"{loss.perceptual_layer} leaves a single pixel; set loss.perceptual to 0, or take larger images"
        )
    if side < least:
        yield (
            f"{key} is {side}, and the networks need {least}; take more pixels, or fewer discriminator.scales, "
            "discriminator.layers, generator.content_downs or generator.style_downs"
        )
