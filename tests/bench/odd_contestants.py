"""Contestants that misbehave on purpose; the processes in which they are measured import them from here."""

from __future__ import annotations

import os

from hires_gan.bench.input_contestants import Measurement, Task
from hires_gan.errors import Failure


def works(task: Task) -> Measurement:
    return Measurement(100.0 * task.workers, 0.25, None, float(task.batch))


def fails(task: Task) -> Measurement:
    raise Failure("the sentence of the contestant")


def breaks(task: Task) -> Measurement:
    raise ZeroDivisionError("of a library")


def dies(task: Task) -> Measurement:
    os._exit(7)
