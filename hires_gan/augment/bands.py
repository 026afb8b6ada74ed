"""Image-space filtering (appendix B): four octave bands, each amplified with some probability, the power kept.

The half-band filter H of sym2, undecimated: H(z) H(z^2) H(z^4) is the lowest band, H(z) H(z^2) (1 - H(z^4)) the next,
H(z) (1 - H(z^2)) the third and 1 - H(z) the highest. They sum to 1, so that gains of 1 change nothing; and a filter of
gains g is what three filterings in a row, l1 = H x, l2 = H(z^2) l1, l3 = H(z^4) l2, say about an image x:
g4 x + (g3 - g4) l1 + (g2 - g3) l2 + (g1 - g2) l3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hires_gan.augment.draws import Choice
from hires_gan.augment.reflection import reflected
from hires_gan.augment.wavelets import splitting
from hires_gan.ops import upfirdn2d

POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""The expected share of each band in an image's power, the lowest first: spectra fall with 1/f."""

_REACH = 3 * (1 + 2 + 4)
"""Pixels that the lowest band's filter reaches to either side."""


def filtered(x: Tensor, choice: Choice) -> Tensor:
    """`[n, c, s, s]` -> the same; an image that nothing is applied to comes back bit for bit."""
    if not choice.settings.any_of("bands"):
        return x
    changes, gain = gains(choice)
    result = x
    for dim in (3, 2):
        result = _amplified(result, gain, dim)
    return torch.where(changes[:, None, None, None], result, x)


def gains(choice: Choice) -> tuple[Tensor, Tensor]:
    """Whether anything changes, bool `[n]`; and float64 `[n, 4]`, the gains of the bands, the lowest first."""
    applied, columns = [], []
    for band, power in enumerate(POWER):
        happens = choice.happens("bands", 2 * band, choice.probability("bands", choice.settings.bands_on[band]))
        gain = torch.exp2(choice.normal("bands", 2 * band + 1) * choice.settings.bands_std)
        gain = torch.where(happens, gain, 1)
        common = (1 + power * (gain.square() - 1)).rsqrt()  # the power of an expected image stays 1
        applied.append(happens)
        columns.append(
            common[:, None] * torch.stack([gain if b == band else torch.ones_like(gain) for b in range(4)], 1)
        )
    return torch.stack(applied).any(0), torch.stack(columns).prod(0)


def _amplified(x: Tensor, gain: Tensor, dim: int) -> Tensor:
    """Filter along one dimension by the bands' gains."""
    size = x.shape[dim]
    factors = gain[..., None, None, None].to(x.dtype)
    low = reflected(x, dim, _REACH, _REACH)
    result = factors[:, 3] * x
    for step, here, lower in ((1, 2, 3), (2, 1, 2), (4, 0, 1)):
        taps = splitting(x.device, step)
        low = upfirdn2d(low, taps[None, :] if dim == 3 else taps[:, None])
        inner = low.narrow(dim, (low.shape[dim] - size) // 2, size)
        result = torch.addcmul(result, factors[:, here] - factors[:, lower], inner)
    return result
