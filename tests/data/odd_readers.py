"""Readers that misbehave on purpose; worker processes import them from here."""

from __future__ import annotations

import os
import time

from torch import Tensor

from hires_gan.errors import Failure


class Marks:
    """Writes the decoder's process id into its places, three bytes in the first pixel of each image."""

    def fill(self, images: Tensor, samples: range, start: int, step: int) -> None:
        for place in range(start, len(samples), step):
            for byte in range(3):
                images[place, 0, 0, byte] = os.getpid() >> (8 * byte) & 0xFF


class Sleeps:
    """Never comes back from samples numbered 100 or more."""

    def fill(self, images: Tensor, samples: range, start: int, step: int) -> None:
        images[start::step] = 7
        if samples.start >= 100:
            time.sleep(600)


class Breaks:
    """Fails in the way that the sample's number says."""

    def fill(self, images: Tensor, samples: range, start: int, step: int) -> None:
        if samples.start == 1:
            raise Failure("the sentence of the worker")
        if samples.start == 2:
            raise ZeroDivisionError
