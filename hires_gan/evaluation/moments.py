"""Mean and covariance of features, the same however these arrive in parts.

In float64, and in blocks of a fixed number of rows: the same features in the same order give the same sums, to the
last bit on one machine with one number of threads, whether one process or several computed them. Blocks are merged by
their means (Chan et al. 1979), so that features far from zero lose no digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.errors import Failure
from hires_gan.evaluation.averages import NotFinite

BLOCK = 1024
"""Rows that are summed up at a time."""


@dataclass(frozen=True)
class Moments:
    """What the Fréchet distance knows of a set.

    Attributes:
        count: Size of the set.
        mean: float64 `[d]`.
        scatter: Sum over the set of the outer products of deviations from the mean: float64 `[d, d]`.
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Without bias: the scatter divided by count - 1, as numpy and torch-fidelity have it; float64 `[d, d]`.

        Raises:
            Failure: If the set has a single member.
        """
        if self.count < 2:
            raise Failure(f"a covariance needs at least 2 samples, but there is {self.count}; give more images")
        return self.scatter / (self.count - 1)


class MomentSums:
    """Takes features part by part, in the order of their numbers.

    It needs 8 d^2 bytes (34 MB for 2,048 features) three times, and a block of features.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: NDArray[np.float64] | None = None
        self._scatter: NDArray[np.float64] | None = None
        self._waiting: list[NDArray[np.float64]] = []

    def add(self, features: Tensor) -> None:
        """Take the features of the next samples.

        Args:
            features: floating `[n, d]`, on any device.

        Raises:
            Failure: If they are of another dimension than those before.
            NotFinite: If they are not finite.
        """
        check_features(features, "features")
        rows = features.detach().cpu().double().numpy()
        if self._waiting and rows.shape[1] != self._waiting[0].shape[1]:
            raise _other_dimension(self._waiting[0].shape[1], rows.shape[1])
        if self._mean is not None and rows.shape[1] != len(self._mean):
            raise _other_dimension(len(self._mean), rows.shape[1])
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= BLOCK:
            self._merge_full_blocks()

    def moments(self) -> Moments:
        """The moments of all that was added; more can be added afterwards.

        Raises:
            Failure: If that is nothing.
        """
        last = np.concatenate(self._waiting) if self._waiting else np.zeros((0, 0))
        count, mean, scatter = _merged(self._count, self._mean, self._scatter, last)
        if mean is None or scatter is None:
            raise Failure("there are no features to take moments of; give at least one image")
        return Moments(count, mean, scatter)

    def _merge_full_blocks(self) -> None:
        rows = np.concatenate(self._waiting)
        whole = len(rows) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._count, self._mean, self._scatter = _merged(
                self._count, self._mean, self._scatter, rows[start : start + BLOCK]
            )
        self._waiting = [rows[whole:].copy()] if whole < len(rows) else []


_Array = NDArray[np.float64] | None


def _merged(count: int, mean: _Array, scatter: _Array, block: NDArray[np.float64]) -> tuple[int, _Array, _Array]:
    """Moments of what was there and of one block more."""
    if len(block) == 0:
        return count, mean, scatter
    own_mean = block.mean(axis=0)
    deviations = block - own_mean
    own_scatter = deviations.T @ deviations
    if mean is None or scatter is None:
        return len(block), own_mean, own_scatter
    total = count + len(block)
    shift = own_mean - mean
    between = np.outer(shift, shift) * (count * len(block) / total)
    return total, mean + shift * (len(block) / total), scatter + own_scatter + between


def moments(features: Tensor, stopped: Asked = never) -> Moments:
    """The moments of a whole set.

    Args:
        features: floating `[n, d]`, n at least 1.
        stopped: Asked before each block of them: for 50,000 of 2,048, all take some 10 s on a CPU.

    Raises:
        Stopped: If `stopped` became true.
        Failure: If there are none.
        NotFinite: If they are not finite.
    """
    sums = MomentSums()
    for part in torch.split(features, BLOCK):  # in parts: a float64 copy of all would take twice their memory
        if stopped():
            raise Stopped
        sums.add(part)
    return sums.moments()


def check_features(features: Tensor, what: str) -> None:
    """Refuse what no metric can be computed from.

    Args:
        features: Should be floating `[n, d]`, finite.
        what: What they are, for errors.

    Raises:
        Failure: If they are of another shape or type.
        NotFinite: If they are not finite.
    """
    if features.dim() != 2 or not features.is_floating_point() or features.shape[1] == 0:
        raise Failure(
            f"the {what} are {features.dtype} of shape {list(features.shape)}; one row of floating numbers for each "
            f"image is needed: let the feature network return [n, d]"
        )
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise NotFinite(
            f"the {what} of {bad} of {len(features)} images are not finite, and no metric can be computed from them; "
            f"look at the images, or take another feature network"
        )


def check_alike(reals: int, fakes: int) -> None:
    """Refuse features of two networks.

    Args:
        reals: Dimension of the reals' features.
        fakes: Of the fakes'.

    Raises:
        Failure: If they differ.
    """
    if reals != fakes:
        raise Failure(
            f"the reals have {reals} features each and the fakes {fakes}; both have to come from one feature network"
        )


def _other_dimension(before: int, now: int) -> Failure:
    return Failure(f"features have {now} values each, but those before had {before}; all have to come from one network")
