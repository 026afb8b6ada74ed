"""The `augment` block of the configuration: which transformations there are, how strong, and how often."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from hires_gan.settings import NonNegative, Positive, PositiveInt, Settings

Transformation = Literal[
    "xflip",
    "rotate90",
    "xint",
    "scale",
    "rotate",
    "aniso",
    "xfrac",
    "brightness",
    "contrast",
    "lumaflip",
    "hue",
    "saturation",
    "bands",
    "noise",
    "cutout",
]
Preset = Literal["blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]

_GROUPS: dict[str, tuple[Transformation, ...]] = {
    "blit": ("xflip", "rotate90", "xint"),
    "geom": ("scale", "rotate", "aniso", "xfrac"),
    "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    "filter": ("bands",),
    "noise": ("noise",),
    "cutout": ("cutout",),
}
_BY_INITIAL = {name[0]: name for name in _GROUPS if name != "cutout"}


def _of_initials(preset: str) -> tuple[Transformation, ...]:
    """The transformations of "bgc" and its like; the second c stands for cutout."""
    letters, cutout = (preset[:-1], ("cutout",)) if preset.count("c") == 2 else (preset, ())
    groups = [_BY_INITIAL[letter] for letter in letters] + list(cutout)
    return tuple(transformation for group in groups for transformation in _GROUPS[group])


PRESETS: MappingProxyType[str, tuple[Transformation, ...]] = MappingProxyType(
    _GROUPS | {preset: _of_initials(preset) for preset in ("bg", "bgc", "bgcf", "bgcfn", "bgcfnc")}
)
"""The transformations that each preset turns on, with the strength 1."""

SMALLEST = 8
"""The smallest side of an image, in pixels."""

Strength = Annotated[float, Field(ge=0, le=1)] | None
"""Factor of the probability with which a transformation is applied; null: 1 if the preset has it, else 0."""
Share = Annotated[float, Field(ge=0, le=1)]


class AugmentSettings(Settings):
    """What a discriminator's images go through: the published transformations and magnitudes (appendix B)."""

    preset: Preset = "bgc"
    """Which transformations are on: blit, geom, color, filter, noise, cutout, or by initials bg, bgc ... bgcfnc."""

    xflip: Strength = None
    """Strength of the flip from left to right (half of the images that it is applied to stay as they are)."""
    rotate90: Strength = None
    """Strength of the rotation by a multiple of 90 degrees."""
    xint: Strength = None
    """Strength of the translation by whole pixels."""
    scale: Strength = None
    """Strength of isotropic scaling."""
    rotate: Strength = None
    """Strength of the rotation by any angle, before or behind the anisotropic scaling."""
    aniso: Strength = None
    """Strength of anisotropic scaling."""
    xfrac: Strength = None
    """Strength of the translation by fractions of a pixel."""
    brightness: Strength = None
    """Strength of the change of brightness."""
    contrast: Strength = None
    """Strength of the change of contrast."""
    lumaflip: Strength = None
    """Strength of the inversion of brightness that keeps hue and saturation."""
    hue: Strength = None
    """Strength of the rotation of the hue."""
    saturation: Strength = None
    """Strength of the change of saturation."""
    bands: Strength = None
    """Strength of the amplification of each frequency band."""
    noise: Strength = None
    """Strength of additive noise."""
    cutout: Strength = None
    """Strength of cutting a square out."""

    xint_max: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    """Largest translation by whole pixels, as a share of the image's side."""
    scale_std: NonNegative = 0.2
    """Standard deviation of log2 of the isotropic scale."""
    rotate_max: Share = 1.0
    """Largest angle of rotation; 1 is half a turn to either side."""
    aniso_std: NonNegative = 0.2
    """Standard deviation of log2 of the anisotropic scale."""
    xfrac_std: NonNegative = 0.125
    """Standard deviation of the translation by fractions of a pixel, as a share of the image's side."""
    brightness_std: NonNegative = 0.2
    """Standard deviation of what is added to images in [-1, 1]."""
    contrast_std: NonNegative = 0.5
    """Standard deviation of log2 of the contrast."""
    hue_max: Share = 1.0
    """Largest rotation of the hue; 1 is half a turn to either side."""
    saturation_std: NonNegative = 1.0
    """Standard deviation of log2 of the saturation."""
    bands_on: tuple[Share, Share, Share, Share] = (1.0, 1.0, 1.0, 1.0)
    """Strengths of the four frequency bands, from the lowest to the highest."""
    bands_std: NonNegative = 1.0
    """Standard deviation of log2 of a band's amplification."""
    noise_std: NonNegative = 0.1
    """The standard deviation of the noise is a normal number's magnitude times this."""
    cutout_size: Share = 0.5
    """Side of the square that is cut out, as a share of the image's side."""

    def strength(self, transformation: Transformation) -> float:
        """The strength in [0, 1] that holds: the one that was set, else the preset's."""
        chosen: float | None = getattr(self, transformation)
        return float(transformation in PRESETS[self.preset]) if chosen is None else chosen

    def any_of(self, *transformations: Transformation) -> bool:
        """Whether any of these transformations can happen at all."""
        return any(self.strength(transformation) > 0 for transformation in transformations)


class ProbabilitySettings(Settings):
    """How often images are augmented: the overfitting heuristic r_t (section 3), or one constant."""

    fixed: Share | None = None
    """A constant probability; null: it adapts."""
    initial: Share = 0.0
    """The probability at the start of the run."""
    maximum: Share = 1.0
    """The probability never exceeds this."""
    target: Annotated[float, Field(ge=-1, le=1)] = 0.6
    """The mean sign of D(real) that the probability steers to."""
    kimg: Positive = 500.0
    """Thousands of images in which the probability can go from 0 to 1; 100 suits transfer learning."""
    interval: PositiveInt = 4
    """Steps between adjustments."""
