"""The order of a streamed set: several lanes, each of which reads whole shards one after another.

An epoch is the shards in an order of their own, each shard's samples in an order of theirs, cut into `lanes` segments
of equal length. Place p of the epoch is position p div lanes in lane p mod lanes. So at any time about as many shards
are read as there are lanes, each shard is needed once per epoch (twice where a cut goes through it), and sample k of a
run is still a pure function of (seed, lanes, k): nothing has to be remembered to go on.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hires_gan.data.order import Permutation, mix

_KIND = 0x6C616E6573
"""Keeps these keys apart from those of `Order` under the same seed."""
_SHARD = 1 << 40
"""Keeps the keys of the shards apart from the round keys of their permutation."""
_EPOCHS = 2
"""How many epochs' orders are kept: a batch and those ahead of it lie in at most two, as a rule."""


class _Epoch(NamedTuple):
    """The order of one epoch."""

    key: int
    shards: list[int]
    """The shards' numbers, in the order in which they are read."""
    ends: list[int]
    """How many samples the shards up to and with each of these hold together."""


class LaneOrder:
    """An endless shuffle of a set of shards: every row once per epoch, each epoch in an order of its own.

    Memory is proportional to the number of shards, the time for a sample to its logarithm.

    Args:
        seed: The run's seed.
        counts: How many samples each shard holds, at least 1 together.
        lanes: How many segments an epoch is cut into, at least 1.
        stream: Tells apart the orders of several data sets under one seed.

    Attributes:
        count: How many rows there are.
        lanes: As above.
    """

    def __init__(self, seed: int, counts: Sequence[int], lanes: int, stream: int = 0) -> None:
        self.count, self.lanes = sum(counts), lanes
        assert self.count > 0
        assert lanes > 0
        self._counts = tuple(counts)
        self._starts = tuple(itertools.accumulate(counts, initial=0))
        self._key = mix(mix(mix(seed) ^ stream) ^ _KIND)
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def row(self, sample: int) -> int:
        """The row of the data set, in [0, count), that sample number `sample` of the run shows."""
        number, place = divmod(sample, self.count)
        epoch = self._epoch(number)
        index = self._index(place)
        turn = bisect_right(epoch.ends, index)
        shard = epoch.shards[turn]
        before = epoch.ends[turn] - self._counts[shard]
        inside = Permutation(mix(epoch.key ^ (_SHARD + shard)), self._counts[shard])
        return self._starts[shard] + inside.at(index - before)

    def shards_ahead(self, *batches: range) -> list[int]:
        """The numbers of the shards that these samples and the next ones of the same lanes need, most urgent first.

        Lanes of equal shards all go on to the next ones at the same place: so all that follow are named, from the
        moment on when a lane begins its present shard.

        Args:
            batches: Consecutive sample numbers of the run, as one process shows them in each of the next steps.

        Returns:
            First the shards of these samples, in their order; then those that follow in their lanes (where the epoch
            ends, the lane's first one of the next epoch), those that are reached first before others.
        """
        samples = list(itertools.chain(*batches))
        wanted = [self._turn(sample) for sample in samples]
        now = [self._epoch(epoch).shards[turn] for epoch, turn, _ in wanted]
        last = {self._lane(sample): sample for sample in samples}
        ahead = sorted((self._following(sample) for sample in last.values()), key=lambda found: found[0])
        return list(dict.fromkeys([*now, *(shard for _, shard in ahead)]))

    def _lane(self, sample: int) -> int:
        return sample % self.count % self.lanes

    def _turn(self, sample: int) -> tuple[int, int, int]:
        """A sample's epoch, which shard of the epoch it lies in, and how many samples of its lane there still are."""
        number, place = divmod(sample, self.count)
        index, epoch = self._index(place), self._epoch(number)
        turn = bisect_right(epoch.ends, index)
        lane_end = self._first(place % self.lanes + 1)
        return number, turn, min(epoch.ends[turn], lane_end) - index

    def _following(self, sample: int) -> tuple[int, int]:
        """After how many samples of its lane a sample's lane goes on to another shard, and which."""
        number, turn, left = self._turn(sample)
        lane, index = self._lane(sample), self._index(sample % self.count)
        if index + left < self._first(lane + 1):
            return left, self._epoch(number).shards[turn + 1]
        following = self._epoch(number + 1)
        return left, following.shards[bisect_right(following.ends, self._first(lane))]

    def _index(self, place: int) -> int:
        """Where in the epoch's sequence of samples a place of the epoch lies."""
        return self._first(place % self.lanes) + place // self.lanes

    def _first(self, lane: int) -> int:
        """The index at which a lane starts: the first count mod lanes of them are longer by one."""
        return lane * (self.count // self.lanes) + min(lane, self.count % self.lanes)

    def _epoch(self, number: int) -> _Epoch:
        known = self._epochs.get(number)
        if known is None:
            known = self._epochs[number] = self._make(number)
            while len(self._epochs) > _EPOCHS:
                self._epochs.popitem(last=False)
        return known

    def _make(self, number: int) -> _Epoch:
        key = mix(self._key ^ number)
        shards = Permutation(key, len(self._counts)).all()
        ends = np.cumsum(np.array(self._counts, np.int64)[shards])
        return _Epoch(key, shards.tolist(), ends.tolist())
