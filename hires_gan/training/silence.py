"""Processes that are not heard of for a while: said once when it begins, and once when it is over."""

from __future__ import annotations

from collections.abc import Sequence

from hires_gan.training.standing import Standing

SILENCE = 5.0
"""Seconds from which on it is worth a line."""


class Silences:
    """Follows who is silent, from look to look."""

    def __init__(self) -> None:
        self._longest: dict[int, float] = {}

    def look(self, standings: Sequence[Standing]) -> list[str]:
        """What is new about it.

        Args:
            standings: Of all processes, as they are now; those that were never heard of are left out.
        """
        heard = [one for one in standings if one.beat is not None]
        began = [one for one in heard if one.silent >= SILENCE and one.rank not in self._longest]
        over = [one for one in heard if one.silent < SILENCE and one.rank in self._longest]
        lines = [
            f"rank {one.rank} ({one.machine}) has not been heard of for {one.silent:.0f} s: the others wait for it, or "
            "for the network"
            for one in began
        ]
        lines += [
            f"rank {one.rank} is heard of again, after {self._longest.pop(one.rank):.0f} s: the run goes on"
            for one in over
        ]
        self._longest |= {one.rank: one.silent for one in heard if one.silent >= SILENCE}
        return lines
