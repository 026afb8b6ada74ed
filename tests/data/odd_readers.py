"""Readers that misbehave on purpose; worker processes import them from here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from torch import Tensor

from hires_gan.data.replacement import Report
from hires_gan.errors import Failure


class Marks:
    """Writes the decoder's process id into its places, three bytes in the first pixel of each; reports every sample."""

    def fill(self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None]) -> Report:
        for place in range(start, len(samples), step):
            for byte in range(3):
                images[place, 0, 0, byte] = os.getpid() >> (8 * byte) & 0xFF
        return Report({(0, sample): -sample for sample in samples[start::step]})


class Sleeps:
    """Never comes back from samples numbered 100 or more."""

    def fill(self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None]) -> Report:
        images[start::step] = 7
        if samples.start >= 100:
            reading(77)
            time.sleep(600)
        return Report()

    def where(self, row: int) -> str:
        return f"row {row}"


class Breaks:
    """Fails in the way that the sample's number says."""

    def fill(self, images: Tensor, samples: range, start: int, step: int, reading: Callable[[int], None]) -> Report:
        if samples.start == 1:
            raise Failure("the sentence of the worker")
        if samples.start == 2:
            raise ZeroDivisionError
        return Report()
