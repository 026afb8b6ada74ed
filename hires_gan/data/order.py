"""The order of the samples: sample k of a run is a pure function of (seed, k), in constant time and memory."""

from __future__ import annotations

import numpy as np

_MASK64 = (1 << 64) - 1
_WEYL, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 6
_HALF_AT_LEAST = 4
"""Bits. Networks over 16 places are visibly biased (they are even permutations, for one), over 256 no longer."""


def mix(value: int) -> int:
    """A bijection of 64-bit words in which every input bit flips every output bit half of the time (SplitMix64)."""
    value = (value + _WEYL) & _MASK64
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK64
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK64
    return value ^ (value >> 31)


def _mix_all(values: np.ndarray) -> np.ndarray:
    """`mix` of every word: uint64 `[n]` to uint64 `[n]`."""
    values = values + np.uint64(_WEYL)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


class Permutation:
    """A keyed bijection of [0, count): a Feistel network over the next power of four, at least 256.

    A result outside the range goes through the network again (cycle walking), which keeps it a bijection.

    Args:
        key: Any 64-bit word.
        count: How many places there are, at least 1.
    """

    def __init__(self, key: int, count: int) -> None:
        assert count > 0
        self.count = count
        self._half = max(_HALF_AT_LEAST, ((count - 1).bit_length() + 1) // 2)
        self._keys = tuple(mix(key ^ (r + 1)) for r in range(_ROUNDS))

    def at(self, place: int) -> int:
        """Where a place goes; both in [0, count)."""
        place = self._once(place)
        while place >= self.count:
            place = self._once(place)
        return place

    def all(self) -> np.ndarray:
        """Where every place goes: int64 `[count]`."""
        places = self._all_once(np.arange(self.count, dtype=np.uint64))
        while (outside := np.flatnonzero(places >= self.count)).size:
            places[outside] = self._all_once(places[outside])
        return places.astype(np.int64)

    def _once(self, place: int) -> int:
        mask = (1 << self._half) - 1
        left, right = place >> self._half, place & mask
        for key in self._keys:
            left, right = right, left ^ (mix(key ^ right) & mask)
        return (left << self._half) | right

    def _all_once(self, places: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = places >> half, places & mask
        for key in self._keys:
            left, right = right, left ^ (_mix_all(np.uint64(key) ^ right) & mask)
        joined: np.ndarray = (left << half) | right
        return joined


class Order:
    """An endless shuffle: every row once per epoch, each epoch in an order of its own, keyed by (seed, epoch).

    Args:
        seed: The run's seed.
        count: How many rows there are, at least 1.
        stream: Tells apart the orders of several data sets under one seed.
    """

    def __init__(self, seed: int, count: int, stream: int = 0) -> None:
        assert count > 0
        self.count = count
        self._key = mix(mix(seed) ^ stream)
        self._epoch: tuple[int, Permutation] | None = None

    def row(self, sample: int) -> int:
        """The row of the data set, in [0, count), that sample number `sample` of the run shows."""
        epoch, place = divmod(sample, self.count)
        return self._permutation(epoch).at(place)

    def _permutation(self, epoch: int) -> Permutation:
        known = self._epoch  # one read: several threads may ask
        if known is None or known[0] != epoch:
            known = self._epoch = (epoch, Permutation(mix(self._key ^ epoch), self.count))
        return known[1]
