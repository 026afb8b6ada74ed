"""The order of the samples: sample k of a run is a pure function of (seed, k), in constant time and memory."""

from __future__ import annotations

_MASK64 = (1 << 64) - 1
_ROUNDS = 6
_HALF_AT_LEAST = 4
"""Bits. Networks over 16 places are visibly biased (they are even permutations, for one), over 256 no longer."""


def _mix(value: int) -> int:
    """A bijection of 64-bit words in which every input bit flips every output bit half of the time (SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Order:
    """An endless shuffle: every row once per epoch, each epoch in an order of its own.

    The order of an epoch is a Feistel network over the next power of four, at least 256, keyed by (seed, epoch); a
    result outside the data set goes through the network again (cycle walking), which keeps it a bijection.

    Args:
        seed: The run's seed.
        count: How many rows there are, at least 1.
        stream: Tells apart the orders of several data sets under one seed.
    """

    def __init__(self, seed: int, count: int, stream: int = 0) -> None:
        assert count > 0
        self.count = count
        self._key = _mix(_mix(seed) ^ stream)
        self._half = max(_HALF_AT_LEAST, ((count - 1).bit_length() + 1) // 2)
        self._keys: tuple[int, tuple[int, ...]] = (-1, ())

    def row(self, sample: int) -> int:
        """The row of the data set, in [0, count), that sample number `sample` of the run shows."""
        epoch, place = divmod(sample, self.count)
        keys = self._round_keys(epoch)
        place = self._permute(place, keys)
        while place >= self.count:
            place = self._permute(place, keys)
        return place

    def _round_keys(self, epoch: int) -> tuple[int, ...]:
        if self._keys[0] != epoch:
            base = _mix(self._key ^ epoch)
            self._keys = (epoch, tuple(_mix(base ^ (r + 1)) for r in range(_ROUNDS)))
        return self._keys[1]

    def _permute(self, place: int, keys: tuple[int, ...]) -> int:
        mask = (1 << self._half) - 1
        left, right = place >> self._half, place & mask
        for key in keys:
            left, right = right, left ^ (_mix(key ^ right) & mask)
        return (left << self._half) | right
