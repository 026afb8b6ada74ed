"""What is told where an evaluation has no room on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hires_gan.errors import Failure


@contextlib.contextmanager
def telling_no_room() -> Iterator[None]:
    """Say in a sentence that the GPU's memory is exhausted, and what to do about it.

    Smaller parts are no remedy: kernels are chosen by shapes, and numbers would round otherwise than elsewhere. A run
    that evaluates has no room for anything else than the evaluation then: the micro-batch changes nothing.

    Raises:
        Failure: In place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Failure(
            f"the GPU has no room for the evaluation ({_reason(error)}): let nothing else run on it, or run hires-gan "
            "evaluate by itself, with CUDA_VISIBLE_DEVICES= on the CPU; evaluation.every_kimg=null trains without"
        ) from error


def _reason(error: torch.OutOfMemoryError) -> str:
    """Without what torch says of its allocator's settings."""
    return str(error).partition("\n")[0].partition(" See documentation")[0].rstrip(".")
