"""What is told where an evaluation has no room in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hires_gan.errors import Failure
from hires_gan.memory import is_out_of_machine_memory, is_out_of_memory


@contextlib.contextmanager
def telling_no_room() -> Iterator[None]:
    """Say in a sentence that the memory is exhausted, the GPU's or the machine's, and what to do about it.

    Smaller parts are no remedy: kernels are chosen by shapes, and numbers would round otherwise than elsewhere. A run
    that evaluates has no room for anything else than the evaluation then: the micro-batch changes nothing.

    Raises:
        Failure: In place of torch's, or Python's, error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failure(_told(error)) from error


def _told(error: Exception) -> str:
    reason = _reason(error)
    if is_out_of_machine_memory(error):
        return (
            f"this machine has no room for the evaluation ({reason}): let nothing else run on it, or evaluate on one "
            "with more memory; evaluation.every_kimg=null trains without"
        )
    return (
        f"the GPU has no room for the evaluation ({reason}): let nothing else run on it, or run hires-gan "
        "evaluate by itself, with CUDA_VISIBLE_DEVICES= on the CPU; evaluation.every_kimg=null trains without"
    )


def _reason(error: Exception) -> str:
    """Without what torch says of its allocator's settings, or of where it may have found out."""
    said = str(error).partition("\n")[0].partition(" See documentation")[0].rstrip(".")
    return said or "out of memory"
